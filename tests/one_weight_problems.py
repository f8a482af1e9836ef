"""Problems with one weight, where every expectation is an integral, and draws are quantiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import bif
from bif.types import Batch
from exact_problems import Point
from small_problems import TINY

ITEMS = torch.tensor(
    [  # the item's slope, curvature, third and fourth derivative at 0
        [0.5, 1.0, 0.6, 1.2],
        [-0.3, 2.0, -0.4, 1.0],
        [0.4, 0.6, 1.0, 0.8],
        [-0.6, 1.5, 0.2, 1.4],
        [0.0, 0.9, 0.8, 0.6],
        [0.2, 1.2, -0.2, 1.0],
    ],
    dtype=torch.float64,
)
QUERIES = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-0.4, 2.0, 0.5, 0.3]], dtype=torch.float64)
NBETA, GAMMA = 12.0, 0.5


def polynomial(model: nn.Module, batch: Batch) -> Tensor:
    w = cast(Tensor, model.w)
    powers = torch.cat([w, w**2 / 2, w**3 / 6, w**4 / 24], dim=-1)
    return (batch * powers).sum(dim=-1)


def polynomial_problem(
    items: Tensor = ITEMS, queries: Tensor = QUERIES, **changed: Any
) -> bif.Problem:
    observable = bif.Observable("loss", polynomial, "lower")
    given = {"train": items, "queries": queries, "observables": [observable], **changed}
    return bif.Problem(Point(torch.zeros(1).double()), polynomial, **given)


@dataclass(frozen=True)
class Line:
    """The posterior of one weight on a fine grid, for weights rho of the items."""

    rho: Tensor
    nbeta: float = NBETA
    gamma: float = GAMMA
    items: Tensor = ITEMS

    @property
    def grid(self) -> Tensor:
        return torch.linspace(-6, 6, 60_001, dtype=torch.float64)

    @property
    def density(self) -> Tensor:
        """Probabilities of the grid's points."""
        loss = self.rho @ values(self.items, self.grid) / len(self.items)
        return torch.softmax(-self.nbeta * loss - self.gamma / 2 * self.grid.square(), dim=0)

    def mean(self, of: Tensor) -> Tensor:
        """`E[polynomials]`, `[K]`, of coefficients `[K, 4]`."""
        return values(of, self.grid) @ self.density

    def quantiles(self, count: int) -> Tensor:
        """Midpoints of `count` intervals of equal probability: as good as integration."""
        edges = np.cumsum(self.density.numpy())
        at = (np.arange(count) + 0.5) / count
        return torch.from_numpy(np.interp(at, edges - self.density.numpy() / 2, self.grid.numpy()))


def values(coefficients: Tensor, w: Tensor) -> Tensor:
    """Polynomials at weights, `[K, D]`."""
    return coefficients @ torch.stack([w, w**2 / 2, w**3 / 6, w**4 / 24])


def run_of(w: Tensor, problem: bif.Problem | None = None, **settings: Any) -> bif.Run:
    """A run whose chains `[C, D]` are these weights."""
    problem = problem or polynomial_problem()
    asked = replace(TINY, **{"nbeta": NBETA, "gamma": GAMMA, **settings})
    run = bif.attribute(problem, asked)
    train, query = (values(x, w.flatten()).T.reshape(*w.shape, -1) for x in (ITEMS, QUERIES))
    traces = bif.LossTraces.from_arrays(train, query)
    mean = query.flatten(0, 1).mean(dim=0)[None].numpy()
    dataset = run.influence.dataset.assign(query_mean=(("observable", "query"), mean))
    return replace(run, traces=traces, influence=bif.Influence(dataset, traces))
