"""What the tests of responses share: problems with known linear responses, and dense references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import bif
from bif.losses import per_item
from bif.types import Batch, ItemLoss
from exact_problems import Point
from small_problems import normal

NUM_WEIGHTS = 3


def polynomial(model: Any, batch: Batch) -> Tensor:
    """`a·w + ½ wᵀHw` of items (a, H)."""
    slope, curvature = batch
    bent = (curvature @ model.w.unsqueeze(-1)).squeeze(-1)
    return ((slope + 0.5 * bent) * model.w).sum(dim=-1)


def polynomials(num_items: int, curvature: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor]:
    """Items of random slopes that share a curvature; without one their losses are linear."""
    slope = normal(num_items, NUM_WEIGHTS, seed=seed)
    shared = torch.zeros(NUM_WEIGHTS, NUM_WEIGHTS).double() if curvature is None else curvature
    return slope, shared.expand(num_items, -1, -1).clone()


@dataclass(frozen=True)
class Straight:
    """A quadratic U with linear candidates and linear queries: responses have no noise at all."""

    curvature: Tensor
    nbeta: float = 6.0
    gamma: float = 1.5

    @classmethod
    def of(cls, *curvatures: float) -> Straight:
        return cls(torch.diag(torch.tensor(curvatures, dtype=torch.float64)))

    @property
    def problem(self) -> bif.Problem:
        return bif.Problem(
            Point(normal(NUM_WEIGHTS, seed=3)),
            polynomial,
            train=polynomials(6, self.curvature, seed=0),
            candidates=polynomials(5, None, seed=1),
            queries=polynomials(4, None, seed=2),
        )

    @property
    def answer(self) -> Tensor:
        """`-bᵀ S a` of queries b with candidates a, `[4, 5]`."""
        precision = self.nbeta * self.curvature + self.gamma * torch.eye(NUM_WEIGHTS).double()
        queries, candidates = (polynomials(n, None, seed=s)[0] for n, s in ((4, 2), (5, 1)))
        return -queries @ torch.linalg.solve(precision, candidates.T)


STRAIGHT = Straight.of(1.0, 2.0, 4.0)
# The curvatures of its U are 7.5, 13.5 and 25.5.
QUICK = bif.Settings(nbeta=6.0, gamma=1.5, step_size=0.2, friction=4.0, burn_in=120, thin=2, seed=5)


def flat(model: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def as_function(model: nn.Module, function: ItemLoss, batch: Batch) -> Callable[[Tensor], Tensor]:
    """`function` of a batch as a function of the flat weights, `[P] -> [B]`."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch) -> Tensor:
            return per_item(function(self.model, batch))

    def values(w: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes.values()])
        named = {f"model.{n}": x.view(s) for (n, s), x in zip(shapes.items(), parts, strict=True)}
        return functional_call(Whole(), named, (batch,))

    return values


@dataclass(frozen=True)
class Dense:
    """A small problem with every matrix written out."""

    train: Callable[[Tensor], Tensor]
    queries: Callable[[Tensor], Tensor]
    center: Tensor
    nbeta: float
    gamma: float
    decay: float = 0.0

    @classmethod
    def of(cls, problem: bif.Problem, settings: bif.Settings, function: ItemLoss) -> Dense:
        model = problem.model
        (queries,) = problem.query_groups.values()
        assert settings.nbeta is not None and settings.gamma is not None
        return cls(
            as_function(model, problem.loss, problem.train.data),
            as_function(model, function, queries.data),
            flat(model),
            settings.nbeta,
            settings.gamma,
            settings.weight_decay,
        )

    def potential(self, w: Tensor) -> Tensor:
        return (
            self.nbeta * (self.train(w).mean() + 0.5 * self.decay * w.square().sum())
            + 0.5 * self.gamma * (w - self.center).square().sum()
        )

    def minimum(self, start: Tensor | None = None) -> Tensor:
        """The minimum of U from w* or elsewhere, by Newton steps, shortened until U falls."""
        w = self.center.clone() if start is None else start.clone()
        for _ in range(200):
            gradient = jacrev(self.potential)(w)
            if gradient.norm() < 1e-12:
                break
            values, vectors = torch.linalg.eigh(hessian(self.potential)(w))
            step = vectors @ ((vectors.T @ gradient) / values.abs().clamp(min=self.gamma / 10))
            while self.potential(w - step) > self.potential(w) + 1e-13:
                step = step / 2
            w = w - step
        return w

    def influence(self, w: Tensor, curvature: Tensor) -> Tensor:
        """`-g_qᵀ curvature⁻¹ g_i` with gradients at w, `[Q, N]`."""
        assert torch.linalg.eigvalsh(curvature)[0] > 0
        return -jacrev(self.queries)(w) @ torch.linalg.solve(curvature, jacrev(self.train)(w).T)
