"""The rivals: `bif.baselines` as methods of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif import baselines
from bif.benchmark.measure import measure_cost
from bif.benchmark.methods.base import FittedMethod, Judge, Scored, Unsuited
from bif.benchmark.task import Task
from bif.problem.problem import Problem

_DAMPING_SCALES = (
    1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0
)  # fmt: skip
"""Dampings in units of the mean eigenvalue: small networks fitted well need almost none."""
_TRAK_DIMENSIONS = (128, 512, 2048, 4096)
_TRAK_DAMPING_SCALES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Dampings of TRAK in the same units; with the largest, curvature hardly counts."""
_DAMPINGS, _STEPS = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0), (4, 10)
"""Dampings of conjugate gradients in units of the mean loss's curvature, and their steps: stopping
early damps, too."""


@dataclass(frozen=True)
class FittedRival:
    """A fitted rival, whose `scores` takes a damping or another choice."""

    fitted: Any

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        return _to_numpy(self.fitted.scores(problem, observable=outcome, **choice))


@dataclass(frozen=True)
class _FunctionRival:
    """A rival that is a function of the problem, with nothing to fit."""

    function: Callable[..., Tensor]

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        return _to_numpy(self.function(problem, observable=outcome, **choice))


@dataclass(frozen=True)
class _ProjectedTRAK:
    """TRAK for several projections, fitted as they are asked for; small models need none."""

    problem: Problem
    by_dimension: dict[int | None, Any]

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        given = dict(choice)
        dimension = given.pop("dimension")
        if dimension >= sum(leaf.numel() for leaf in self.problem.center().values()):
            dimension = None
        if dimension not in self.by_dimension:
            self.by_dimension[dimension] = baselines.TRAK.fit(self.problem, dimension=dimension)
        return _to_numpy(self.by_dimension[dimension].scores(problem, observable=outcome, **given))


def _ekfac_cg(problem: Problem) -> baselines.ConjugateGradients:
    """Make conjugate gradients that begin every step with EK-FAC's inverse."""
    try:
        ekfac = baselines.EKFAC.fit(problem, other_layers="diagonal")
    except ValueError:  # too many outputs
        ekfac = baselines.EKFAC.fit(problem, fisher_type="mc", other_layers="diagonal")
    return baselines.ConjugateGradients.fit(problem, curvature="gauss_newton", preconditioner=ekfac)


def _ekfac(problem: Problem) -> baselines.EKFAC:
    """Fit EK-FAC to all weights, or to the layers of a language model that have factors."""
    try:
        return baselines.EKFAC.fit(problem)
    except ValueError:  # too many outputs, or layers without factors
        return baselines.EKFAC.fit(problem, fisher_type="mc", other_layers="leave_out")


@dataclass(frozen=True)
class SameDamping:
    """Influence with the exact Gauss-Newton matrix at the damping of the BIF's own run.

    What the BIF is to leading order, `docs/scale-and-sign.md`: the difference of the two is what
    sampling adds, or loses.  Nothing is tuned.
    """

    name: str = "exact_ggn@bif"

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        dampings = {s.outcome: s.facts["damping"] for s in found if s.method == "bif"}
        if not dampings:
            raise Unsuited("it takes the damping of `bif`: name that before it.")
        with measure_cost(task.problem.device) as fitting:
            try:
                fitted = baselines.ExactInfluence.fit(task.problem, curvature="gauss_newton")
            except (ValueError, torch.OutOfMemoryError) as error:
                raise Unsuited(str(error)) from error
        made = []
        for outcome, damping in dampings.items():
            choice = {"damping": damping}
            with measure_cost(task.problem.device) as scoring:
                scores = FittedRival(fitted).scores(task.problem, outcome, choice)
            made.append(Scored(self.name, outcome, scores, fitting.then(scoring), choice=choice))
        return made


def _to_numpy(scores: Tensor) -> np.ndarray:
    return scores.double().cpu().numpy()


def rivals() -> dict[str, FittedMethod]:
    """Return all rivals by name, in the order of the table."""
    scales = tuple({"damping_scale": scale} for scale in _DAMPING_SCALES)
    early_stops = tuple({"damping": d, "steps": k} for d in _DAMPINGS for k in _STEPS)
    projections = tuple(
        {"dimension": d, "damping_scale": s} for d in _TRAK_DIMENSIONS for s in _TRAK_DAMPING_SCALES
    )
    made = [
        FittedMethod("random", lambda _: _FunctionRival(baselines.random_scores)),
        FittedMethod(
            "representation",
            lambda _: _FunctionRival(baselines.representation_similarity),
            tuple(
                {"kind": kind, "labels": labels}
                for kind in ("cosine", "dot")
                for labels in ("ignore", "match")
            ),
        ),
        FittedMethod("gradient_product", lambda _: _FunctionRival(baselines.gradient_product)),
        FittedMethod("gradient_cosine", lambda _: _FunctionRival(baselines.gradient_cosine)),
        FittedMethod("trak", lambda problem: _ProjectedTRAK(problem, {}), projections),
        FittedMethod("ekfac", lambda problem: FittedRival(_ekfac(problem)), scales),
        FittedMethod("ekfac_cg", lambda problem: FittedRival(_ekfac_cg(problem)), early_stops),
        FittedMethod(
            "empirical_fisher",
            lambda problem: FittedRival(baselines.EmpiricalFisher.fit(problem)),
            scales,
        ),
        FittedMethod(
            "cg_ggn",
            lambda problem: FittedRival(
                baselines.ConjugateGradients.fit(problem, curvature="gauss_newton")
            ),
            early_stops,
        ),
        FittedMethod(
            "exact_ggn",
            lambda problem: FittedRival(
                baselines.ExactInfluence.fit(problem, curvature="gauss_newton")
            ),
            scales,
        ),
        FittedMethod(
            "exact_hessian",
            lambda problem: FittedRival(baselines.ExactInfluence.fit(problem)),
            scales,
        ),
    ]
    return {method.name: method for method in made}
