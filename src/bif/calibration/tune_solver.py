"""Choose the damping and the steps of a solve by how well they predict a few retrained networks.

One Lanczos recursion of the tuning queries gives the scores at every damping and after every number
of steps, so all candidates cost about one solve.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bif.calibration.solving import calibrate_solver
from bif.curvature.krylov import KrylovSpace
from bif.evaluate import lds
from bif.evaluate.retraining import BankPart
from bif.linear_response.solver import Solver
from bif.linear_response.vectors import VECTORS
from bif.problem.problem import Problem
from bif.sampling.choices import Choice, Choices
from bif.sampling.oracles.precision import matmul_precision
from bif.sampling.settings import Settings

STEPS = (2, 4, 6, 10)
"""Numbers of steps that are tried: stopping early damps, too."""
MORE_STEPS = (20, 40)
"""Numbers that are tried beyond these, where the largest of them is the best."""
FACTORS = (1 / 300, 1 / 100, 1 / 30, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Dampings that are tried, in units of the default."""
_FINER = (0.6, 1.0, 1.7)
"""Dampings around the best of these, in units of it."""
_MOST_QUERIES = 32
"""Tuning queries that are solved."""
_BESIDE = 7
"""Vectors of the weights' length that the recursion of a query holds beside its basis."""
_NOISE = 0.005
"""LDS by which fewer steps may be worse and still be taken."""


@dataclass(frozen=True)
class TriedSolve:
    """A candidate.

    Attributes:
        damping: gamma/nbeta.
        steps: Products with the curvature.
        lds: On the tuning part, mean over queries and observables.
    """

    damping: float
    steps: int
    lds: float


@dataclass(frozen=True)
class TunedSolver:
    """Settings of a response by solving with damping and steps, what was tried, what was chosen."""

    settings: Settings
    tried: tuple[TriedSolve, ...]
    choices: tuple[Choice, ...]


def tune_solver(asked: Problem, settings: Settings, parts: Sequence[BankPart]) -> TunedSolver:
    """Return the damping and the steps whose scores predict retraining best.

    Args:
        asked: The problem with the tuning queries.
        settings: With `estimator="response"`, gamma open.
        parts: Tuning parts of banks, of these queries; one for each kind of retraining.
    """
    started = time.perf_counter()
    asked = asked.with_plain_losses()
    found = calibrate_solver(asked, settings)
    s = found.settings
    assert s.nbeta is not None and s.gamma is not None
    solver = Solver(asked, s, num_together=found.num_together, vectors=found.vectors)
    outcomes = [(n, p) for p in parts for n in _names(asked) if n in p.outcomes]
    tried: dict[tuple[float, int], TriedSolve] = {}
    best = _best_of(STEPS, solver, outcomes, tried)
    if best.steps == STEPS[-1] and _queries_at_once(solver, MORE_STEPS[-1]) > 0:
        best = _best_of(MORE_STEPS, solver, outcomes, tried)
    top = max(t.lds for t in tried.values())
    choices = Choices()
    choices.choose(
        "gamma, solver_steps", f"{best.damping * s.nbeta:.4g}, {best.steps}",
        f"damping {best.damping:.3g} and {best.steps} steps have an LDS of {best.lds:.3f} on the "
        f"tuning part, the best of {len(tried)} candidates is {top:.3f} "
        f"({time.perf_counter() - started:.1f} s)",
    )  # fmt: skip
    chosen = replace(
        settings, nbeta=s.nbeta, gamma=best.damping * s.nbeta, solver_steps=best.steps,
        retrained_from=None, solver_residual=None,
    )  # fmt: skip
    return TunedSolver(chosen, tuple(tried.values()), tuple(choices))


def _best_of(
    numbers: Sequence[int],
    solver: Solver,
    outcomes: Sequence[tuple[str, BankPart]],
    tried: dict[tuple[float, int], TriedSolve],
) -> TriedSolve:
    """Try these numbers of steps at all dampings; return the best of all that was tried."""
    s = solver.settings
    assert s.nbeta is not None and s.gamma is not None
    with matmul_precision(s.precisions[0]):
        spaces = {name: _Scored(solver, name, max(numbers)) for name, _ in outcomes}

    def judge(damping: float) -> None:
        for steps in numbers:
            key = float(f"{damping:.4g}"), steps
            if key in tried:
                continue
            values = [
                lds(spaces[n].at(damping + s.weight_decay, steps), p.masks,
                    p.outcomes[n][..., : spaces[n].num_queries], num_bootstrap=1).mean
                for n, p in outcomes
            ]  # fmt: skip
            tried[key] = TriedSolve(*key, float(np.mean(values)))

    for factor in FACTORS:
        judge(factor * s.gamma / s.nbeta)
    first = max(tried.values(), key=lambda t: t.lds)
    for factor in _FINER:
        judge(factor * first.damping)
    top = max(t.lds for t in tried.values())
    good = [t for t in tried.values() if t.lds >= top - _NOISE]
    return max(good, key=lambda t: (-t.steps, t.lds))


def _queries_at_once(solver: Solver, steps: int) -> int:
    """Return how many queries' recursions of so many steps fit into memory together."""
    return solver.vectors.num_rows * VECTORS // (steps + _BESIDE)


class _Scored:
    """Scores of the first tuning queries at any damping and number of steps."""

    def __init__(self, solver: Solver, observable: str, steps: int) -> None:
        self.num_queries = min(_MOST_QUERIES, solver.problem.num_queries)
        place = _names(solver.problem).index(observable)
        self._spaces: list[tuple[KrylovSpace, Tensor]] = []
        size = max(1, _queries_at_once(solver, steps))
        for start in range(0, self.num_queries, size):
            rows = solver.gradients(place, range(self.num_queries)[start : start + size])
            space = KrylovSpace(solver.times, rows, steps=steps)
            along = torch.stack(solver.scores(*space.basis)).double()
            del space.basis  # what remains of the recursion is small
            self._spaces.append((space, along))

    def at(self, damping: float, steps: int) -> np.ndarray:
        found: list[Tensor] = [
            torch.einsum(
                "qs,sqn->qn",
                space.coefficients(damping=damping, steps=steps).cpu(), along[:steps],
            )
            for space, along in self._spaces
        ]  # fmt: skip
        return torch.cat(found).numpy()


def _names(problem: Problem) -> list[str]:
    return [observable.name for observable in problem.observables]


def as_choice(tuned: TunedSolver) -> Mapping[str, float]:
    """Return what was chosen, for a table."""
    s = tuned.settings
    return {"damping": (s.gamma or 0.0) / (s.nbeta or 1.0), "steps": s.solver_steps or 0}
