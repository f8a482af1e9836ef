"""What the tests of exact cases share: quadratic problems, their answers, and the assertion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.estimate import estimate_covariance
from bif.samplers import BAOAB, BAOABState
from bif.types import Batch, Noise, Params
from law_checks import STANDARD_ERRORS, ScaledNoise
from small_problems import normal

DRAWS, CHAINS = 60, 512


class Point(nn.Module):
    """Weights and nothing else."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())


def quadratic_loss(model: nn.Module, batch: Batch) -> Tensor:
    minimum, hessian = batch
    away = model.w - minimum
    return 0.5 * ((hessian @ away.unsqueeze(-1)).squeeze(-1) * away).sum(dim=-1)


@dataclass(frozen=True)
class Quadratics:
    """Items with losses `½ (w - minimum)ᵀ hessian (w - minimum)`."""

    minimum: Tensor
    hessian: Tensor

    @classmethod
    def random(cls, num_items: int, num_weights: int, *, seed: int) -> Quadratics:
        root = normal(num_items, num_weights, num_weights, seed=seed)
        return cls(
            normal(num_items, num_weights, seed=seed + 1),
            root @ root.mT / num_weights + torch.eye(num_weights, dtype=torch.float64),
        )

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.minimum, self.hessian

    def gradient(self, w: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.hessian, w - self.minimum)


@dataclass(frozen=True)
class GaussianPosterior:
    """The local posterior of quadratic train items: mean and covariance S."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(
        cls, train: Quadratics, center: Tensor, *, nbeta: float, gamma: float
    ) -> GaussianPosterior:
        pull = torch.einsum("bij,bj->bi", train.hessian, train.minimum).mean(dim=0)
        precision = nbeta * train.hessian.mean(dim=0) + gamma * torch.eye(len(center)).double()
        covariance = torch.linalg.inv(precision)
        return cls(covariance @ (nbeta * pull + gamma * center), covariance)

    def influence(self, queries: Quadratics, train: Quadratics) -> Tensor:
        """`-(g_qᵀ S g_i + ½ tr(H_q S H_i S))`, `[Q, N]`, gradients at the posterior mean."""
        S = self.covariance
        first = queries.gradient(self.mean) @ S @ train.gradient(self.mean).T
        second = torch.einsum("qab,bc,icd,da->qi", queries.hessian, S, train.hessian, S)
        return -(first + 0.5 * second)

    def expectation(self, queries: Quadratics) -> Tensor:
        """`E[loss]` of every query, `[Q]`."""
        trace = torch.einsum("qab,ba->q", queries.hessian, self.covariance)
        away = self.mean - queries.minimum
        return 0.5 * (torch.einsum("qa,qa->q", away, queries.gradient(self.mean)) + trace)


def settings_for(precision: Tensor, *, nbeta: float, gamma: float, seed: int = 0) -> bif.Settings:
    """BAOAB at `h² k_max = 1` with critical friction, thinned until draws are independent."""
    eigenvalues = torch.linalg.eigvalsh(precision)
    k_min, k_max = float(eigenvalues[0]), float(eigenvalues[-1])
    relaxation = sqrt(k_max / k_min)
    return bif.Settings(
        sampler="baoab",
        nbeta=nbeta,
        gamma=gamma,
        step_size=1 / sqrt(k_max),
        friction=2 * sqrt(k_min),
        # The critically damped autocorrelation is about (1 + t) exp(-t) after t relaxations.
        burn_in=ceil(20 * relaxation),
        thin=ceil(5 * relaxation),
        chains=CHAINS,
        block_size=CHAINS,
        draws=DRAWS,
        seed=seed,
    )


def assert_influence(run: bif.Run, expected: Tensor, *, precision: float, bias: float = 0) -> None:
    """Assert the scores `[A, Q, N]` within five of the library's standard errors.

    64 groups of chains, so that five standard errors mean what they do for a normal law.  Gate:
    no standard error above `precision` times the root mean square of the expected scores.

    Args:
        bias: What the expected answer leaves out, relative to each score.
    """
    covariance = estimate_covariance(run.traces, num_groups=64)
    shape = expected.shape
    got, error = -covariance.value.view(shape), covariance.standard_error.view(shape)
    reported = -estimate_covariance(run.traces).value.view(shape)
    np.testing.assert_allclose(run.influence.dataset["influence"], reported, rtol=1e-5, atol=1e-12)
    effect = float(expected.square().mean().sqrt())
    assert float(error.max()) < precision * effect, "the errors are too large to tell"
    gap = (got - expected).abs()
    assert (gap <= STANDARD_ERRORS * error + bias * expected.abs()).all(), (
        f"off by up to {float((gap / error).max()):.1f} standard errors"
    )


def mutate_baoab(
    monkeypatch: pytest.MonkeyPatch, *, noise: float = 1.0, gradient: float = 1.0
) -> None:
    """Multiply BAOAB's noise and gradients for the rest of the test."""
    true_step = BAOAB.step

    def step(self: BAOAB, state: BAOABState, force: Params, source: Noise) -> BAOABState:
        scaled = {name: leaf * gradient for name, leaf in force.items()}
        return true_step(self, state, scaled, ScaledNoise(source, noise))

    monkeypatch.setattr(BAOAB, "step", step)


SAMPLER_MUTANTS = pytest.mark.parametrize(
    "mutation",
    [{"noise": sqrt(0.5)}, {"gradient": 0.5}],
    ids=["halved noise", "half kick"],
)


NUM_WEIGHTS = 3
TRAIN = Quadratics.random(5, NUM_WEIGHTS, seed=0)
QUERIES = Quadratics.random(4, NUM_WEIGHTS, seed=10)
CENTER = normal(NUM_WEIGHTS, seed=20)


def quadratic_problem(
    center: Tensor = CENTER, train: Quadratics = TRAIN, queries: Quadratics = QUERIES
) -> bif.Problem:
    return bif.Problem(Point(center), quadratic_loss, train=train.batch, queries=queries.batch)


def quadratic_run(
    train: Quadratics = TRAIN,
    queries: Quadratics = QUERIES,
    *,
    nbeta: float,
    gamma: float,
    sampled_gamma: float | None = None,
    sampled_nbeta: float | None = None,
) -> bif.Run:
    """A run whose sampler settings suit (nbeta, gamma), sampling perhaps other values."""
    center = CENTER if train.minimum.shape[1] == NUM_WEIGHTS else torch.zeros(4).double()
    problem = quadratic_problem(center, train, queries)
    posterior = GaussianPosterior.of(train, center, nbeta=nbeta, gamma=gamma)
    settings = settings_for(torch.linalg.inv(posterior.covariance), nbeta=nbeta, gamma=gamma)
    settings = replace(
        settings,
        gamma=gamma if sampled_gamma is None else sampled_gamma,
        nbeta=nbeta if sampled_nbeta is None else sampled_nbeta,
    )
    return bif.attribute(problem, settings)


def quadratic_answer(*, nbeta: float, gamma: float) -> Tensor:
    posterior = GaussianPosterior.of(TRAIN, CENTER, nbeta=nbeta, gamma=gamma)
    return posterior.influence(QUERIES, TRAIN).unsqueeze(0)


PLACES = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)


def half_square(model: nn.Module, batch: Batch) -> Tensor:
    return 0.5 * (model.w - batch) ** 2


def case_9_problem(**changed: Any) -> bif.Problem:
    """One dimension worked by hand: `U = 2 w²`, query `(w - 1)²/2`, items `(w - a)²/2`.

    From `docs/scale-and-sign.md`; the items' mean loss is w²/2 but for a constant.
    """
    center, query = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return bif.Problem(Point(center), half_square, train=PLACES, queries=query, **changed)
