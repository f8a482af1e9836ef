"""Anchors of query columns: solutions of their linear systems at the minimum of U.

An anchor is a vector v, near `(∇²U)⁻¹ ∇phi`.  `v·∇U` then moves with phi as far as phi is linear
and U quadratic, and `bif.estimate.anchored` takes it out of the covariance, unbiased for any v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from bif import tensors
from bif.curvature.products import join_leaves, split_rows
from bif.linear_response.column_gradients import column_gradients, products_with_gradients
from bif.linear_response.solver import Solver
from bif.problem.problem import Problem
from bif.sampling.engine import Engine
from bif.sampling.item_gradients import NotVmapped
from bif.sampling.oracles.precision import matmul_precision
from bif.types import Params

_MOST_STEPS = 10
"""Newton steps to the minimum of U at most; any place near it serves."""
_NEAR = 0.01
"""Fall of U that a further step promises, in units of the temperature, at which to stop."""
_HALVINGS = 6
"""Halvings of a step that does not lower U."""


@dataclass(frozen=True)
class Anchors:
    """The anchors of all query columns.

    Attributes:
        vectors: v, `[A·Q, P]`, of the weights that move in their order.
        linear: `-∇l_i·v` at the place of linearisation, the classical influence, `[A·Q, N]`.
        residual: Of each system, relative to its gradient, `[A·Q]`.
        steps: Products with the curvature, `[A·Q]`.
        distance: `|w - w*|` of the place of linearisation.
    """

    vectors: Tensor
    linear: Tensor
    residual: Tensor
    steps: Tensor
    distance: float

    def along(self, potential_gradient: Params) -> Tensor:
        """Return `v·∇U` of each chain, `[C, A·Q]`, from ∇U with leaves `[C, *shape]`."""
        return join_leaves(potential_gradient).to(self.vectors) @ self.vectors.T


class AnchorSolver:
    """A maker of anchors for a run's chains.

    Args:
        engine: The run's.
        solver_at: Returns the solver of a problem at its weights, with the run's nbeta and gamma.
    """

    def __init__(self, engine: Engine, solver_at: Callable[[Problem], Solver]) -> None:
        self._engine, self._solver_at = engine, solver_at
        self._problem = engine.problem.with_plain_losses()

    def solve(self) -> Anchors:
        """Go to the minimum of U and solve the systems of all query columns there.

        Raises:
            ValueError: Negative curvature beyond the damping; gradients that are not finite.
        """
        engine = self._engine
        with matmul_precision(engine.settings.precisions[0]):
            place = self._minimum()
            solver = self._solver_there(place)
            found = [
                solver.solve_rows(some, keeps_earlier=False)
                for some in self._query_gradients(solver).split(solver.vectors.num_rows)
            ]
            value = torch.cat([part.value for part in found])
            (linear,) = solver.scores(value)
        vectors = (value / solver.nbeta).to(engine.device)
        residual = torch.cat([part.residuals.cpu() for part in found])
        steps = torch.cat([part.steps for part in found])
        distance = float(engine.distance_squared(place)) ** 0.5
        return Anchors(vectors, linear, residual, steps, distance)

    def _query_gradients(self, solver: Solver) -> Tensor:
        """Return the gradients of what is recorded of the queries, rows `[A·Q, P]`."""
        problem = solver.problem
        shift = problem.query_shift if problem.query_by_token else None
        columns = range(problem.num_queries)
        there = solver.posterior
        rows = torch.cat([
            column_gradients(problem, asked.function, asked.groups, columns, there, shift)
            for asked in self._engine.observer.asked
        ])  # fmt: skip
        bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            ids = [str(problem.query_ids[i % problem.num_queries]) for i in bad[:5]]
            raise ValueError(
                f"the gradient of an observable is NaN or infinite at the minimum of U for "
                f"{len(bad)} queries, such as {ids}: mend it, or leave these out."
            )
        return rows

    def _minimum(self) -> Params:
        """Return weights near the minimum of U, leaves `[1, *shape]`, by Newton steps from w*."""
        engine = self._engine
        place = engine.center(1)
        value, force = self._potential(place)
        for _ in range(_MOST_STEPS):
            solver = self._solver_there(place)
            right = join_leaves(force) / -solver.nbeta
            step = solver.solve_rows(right, keeps_earlier=False).value.to(engine.device)
            fall = 0.5 * solver.nbeta * float((step * right).sum(dtype=torch.float64))
            if not fall > _NEAR:
                break
            leaves = split_rows(step, engine.posterior.center)
            for halving in range(_HALVINGS):
                tried = tensors.add_(tensors.copied(place), leaves, 0.5**halving)
                lower, along = self._potential(tried)
                if lower < value:
                    break
            else:
                break
            place, value, force = tried, lower, along
        return place

    def _potential(self, params: Params) -> tuple[float, Params]:
        """Return U at one chain's weights, infinite where it is NaN, and its gradient."""
        engine = self._engine
        found = engine.full_gradient()(params, 0)
        assert found.losses is not None
        mean = (found.losses * engine.weights.to(found.losses)).mean(dim=1)
        value = float(engine.posterior.potential(mean, params))
        force = engine.posterior.potential_gradient_(found.gradient, params)
        return value if math.isfinite(value) else math.inf, force

    def _solver_there(self, place: Params) -> Solver:
        return self._solver_at(
            at_position(self._problem, self._engine.posterior.center, tensors.chain(place, 0))
        )


class AnchorSlopes:
    """Derivatives of the items' losses along anchors at any weights.

    Args:
        engine: The run's.
        vectors: v, `[A·Q, P]`.
        along: Returns `v·∇l_i` by forward derivatives, for a problem at its weights, where items'
            gradients cannot be had together: `[A·Q, N]`.
    """

    def __init__(
        self, engine: Engine, vectors: Tensor, along: Callable[[Problem, Tensor], Tensor]
    ) -> None:
        self._engine, self._vectors, self._along = engine, vectors, along
        self._problem = engine.problem.with_plain_losses()

    def at(self, params: Params) -> Tensor:
        """Return `∇l_i·v` at one chain's weights, leaves `[*shape]`: `[A·Q, N]` on the host."""
        engine = self._engine
        problem = at_position(self._problem, engine.posterior.center, params)
        if not problem.train_by_token:
            with suppress(NotVmapped, torch.OutOfMemoryError):
                (found,) = products_with_gradients(
                    problem, [self._vectors], engine.posterior,
                    chunk_size=engine.settings.chunk_size,
                )  # fmt: skip
                return found.cpu()
        return self._along(problem, self._vectors)


def at_position(problem: Problem, center: Params, params: Params) -> Problem:
    """Return the problem at a position of its chains.

    Args:
        problem: Whose weights are the chains' w*.
        center: w*, of the weights that move.
        params: Leaves `[*shape]`, in the coordinates of the problem's metric if it has one.
    """
    scale = problem.metric_scale(center)
    if scale is not None:
        params = {n: center[n] + scale[n] * (leaf - center[n]) for n, leaf in params.items()}
    return problem.at_weights({**problem.parameters(), **params})
