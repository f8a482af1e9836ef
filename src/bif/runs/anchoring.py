"""Give the chains of a run their anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bif.calibration.solving import solver_of_chains
from bif.linear_response.anchors import Anchors, AnchorSlopes, AnchorSolver
from bif.linear_response.solver import Solver
from bif.problem.problem import Problem
from bif.sampling.device_memory import free_bytes
from bif.sampling.engine import Engine
from bif.sampling.movable_weights import num_moving
from bif.sampling.settings import Settings
from bif.terminal import as_bytes

_SHARE = 0.5
"""Part of the device's free memory that anchors may take."""


@dataclass(frozen=True)
class Anchoring:
    """The anchors of a run, and what takes the items' slopes along them."""

    anchors: Anchors
    slopes: AnchorSlopes

    def in_words(self) -> str:
        """Return what was solved for."""
        found = self.anchors
        return (
            f"anchors of {len(found.vectors):,} query columns solved in at most "
            f"{int(found.steps.max())} steps, residual {float(found.residual.max()):.2g}, at the "
            f"minimum of U, {found.distance:.3g} from w*"
        )


def make_anchoring(engine: Engine) -> Anchoring | None:
    """Solve for the anchors of a run's chains; None where its settings ask for none.

    Args:
        engine: The run's.

    Raises:
        ValueError: Anchors that do not fit; negative curvature beyond the damping; a loss that
            cannot be differentiated as it takes.
    """
    problem, settings = engine.problem, engine.settings
    if settings.estimator != "anchored":
        return None
    _refuse_overflow(engine)
    found = solver_of_chains(problem.with_plain_losses(), settings)

    def solver_at(there: Problem) -> Solver:
        return Solver(there, found.settings, num_together=found.num_together, vectors=found.vectors)

    def along(there: Problem, vectors: Tensor) -> Tensor:
        (scores,) = solver_at(there).scores(vectors)
        return -scores * (settings.nbeta or 1.0)

    anchors = AnchorSolver(engine, solver_at).solve()
    return Anchoring(anchors, AnchorSlopes(engine, anchors.vectors, along))


def in_bytes(problem: Problem, settings: Settings) -> str:
    """Return what the anchors of all query columns take, in words."""
    count, weights = len(problem.observables) * problem.num_queries, num_moving(problem, settings)
    return (
        f"the anchors of {count:,} query columns are vectors of {weights:,} weights, "
        f"{as_bytes(4 * count * weights)}"
    )


def _refuse_overflow(engine: Engine) -> None:
    """Raise where the anchors do not fit on the device, or slopes on the host."""
    problem, s = engine.problem, engine.settings
    count = len(problem.observables) * problem.num_queries
    needed = 4 * count * engine.posterior.num_moving
    free = free_bytes(engine.device)
    if needed > _SHARE * free:
        raise ValueError(
            f"{in_bytes(problem, s)}, and {as_bytes(free)} are free on {engine.device}: ask fewer "
            "queries at a time, let fewer weights move (movable), or use estimator='response', "
            "which solves for some at a time."
        )
    slopes = 4 * s.chains * count * len(problem.scored_ids)
    if slopes > _SHARE * free_bytes(torch.device("cpu")):
        raise ValueError(
            f"the slopes of {len(problem.scored_ids):,} train columns along {count:,} anchors take "
            f"{as_bytes(slopes)} for {s.chains} chains: ask fewer queries at a time, or use "
            "estimator='response'."
        )
