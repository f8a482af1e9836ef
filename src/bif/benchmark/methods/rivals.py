"""The rivals: `bif.baselines` as methods of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif import baselines
from bif.baselines.source import SourceCurvature
from bif.benchmark.measure import measure_cost
from bif.benchmark.methods.base import Fitted, FittedMethod, Judge, Method, Scored, Unsuited
from bif.benchmark.task import Task
from bif.evaluate import Recipe
from bif.problem.checkpoints import Checkpoint, require_checkpoints
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

_SOURCE_DAMPINGS = (0.0, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0)
"""Dampings of SOURCE beside the weight decay alone, in units of the mean loss's curvature."""


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


@dataclass(frozen=True)
class AlongPath:
    """A rival that follows the way of training, another one for each target.

    Its seconds hold the training of the path, which a user who kept checkpoints does not need.

    Attributes:
        name: The method's name in tables.
        fit: A function from the problem at the end of the path, and its checkpoints, to what is
            `Fitted`.
        candidates: A function from the number of checkpoints and the weight decay to choices.
    """

    name: str
    fit: Callable[[Problem, Sequence[Checkpoint]], Fitted]
    candidates: Callable[[int, float], tuple[Mapping[str, Any], ...]]

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        made = []
        recipe = task.retraining
        decay = recipe.weight_decay if isinstance(recipe, Recipe) else 0.0
        for target in task.targets:
            with measure_cost(task.problem.device) as training:
                try:
                    model, checkpoints = task.path(target)
                    ended = replace(task, problem=task.problem.with_model(model))
                    require_checkpoints(ended.problem, checkpoints)
                except (ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
                    raise Unsuited(str(error)) from error
            method = FittedMethod(
                self.name,
                lambda problem, path=checkpoints: self.fit(problem, path),
                self.candidates(len(checkpoints), decay),
            )
            made += [
                replace(scored, target=target, cost=training.then(scored.cost))
                for scored in method.run(ended, judge.of(target), found)
            ]
        return made


@dataclass(frozen=True)
class _LastCheckpoints:
    """TracIn on the last checkpoints of a path."""

    problem: Problem
    checkpoints: Sequence[Checkpoint]

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        kept = self.checkpoints[-choice["num_checkpoints"] :]
        fitted = baselines.TracIn.fit(self.problem, kept)
        return _to_numpy(fitted.scores(problem, observable=outcome))


@dataclass(frozen=True)
class _Segmented:
    """SOURCE for several numbers of segments, fitted as they are asked for."""

    problem: Problem
    checkpoints: Sequence[Checkpoint]
    curvature: SourceCurvature = "ekfac"
    by_segments: dict[int, baselines.Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_segments[1] = self._fit(1)  # what the task does not allow is refused here

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        number = choice["num_segments"]
        if number not in self.by_segments:
            self.by_segments[number] = self._fit(number)
        fitted = self.by_segments[number]
        scores = fitted.scores(problem, damping=choice["damping"], observable=outcome)
        return _to_numpy(scores)

    def _fit(self, number: int) -> baselines.Source:
        fit = partial(
            baselines.Source.fit, self.problem, self.checkpoints, num_segments=number,
            curvature=self.curvature, other_layers="diagonal",
        )  # fmt: skip
        try:
            return fit()
        except ValueError:  # too many outputs
            if self.curvature != "ekfac":
                raise
            return fit(fisher_type="mc")


def _last_checkpoints(num_checkpoints: int, weight_decay: float) -> tuple[Mapping[str, Any], ...]:
    """Return how many of the last checkpoints count: the first ones may be worth nothing."""
    kept = {min(k, num_checkpoints) for k in (1, 3, 6, num_checkpoints)}
    return tuple({"num_checkpoints": k} for k in sorted(kept))


def _segmentations(
    num_checkpoints: int, weight_decay: float, *, numbers: Sequence[int] = (1, 3, 6)
) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"num_segments": k, "damping": damping}
        for k in sorted({min(k, num_checkpoints) for k in numbers})
        for damping in sorted({weight_decay, *_SOURCE_DAMPINGS})
    )


def _to_numpy(scores: Tensor) -> np.ndarray:
    return scores.double().cpu().numpy()


def rivals() -> dict[str, Method]:
    """Return all rivals by name, in the order of the table."""
    scales = tuple({"damping_scale": scale} for scale in _DAMPING_SCALES)
    early_stops = tuple({"damping": d, "steps": k} for d in _DAMPINGS for k in _STEPS)
    projections = tuple(
        {"dimension": d, "damping_scale": s} for d in _TRAK_DIMENSIONS for s in _TRAK_DAMPING_SCALES
    )
    made: list[Method] = [
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
        AlongPath("tracin", _LastCheckpoints, _last_checkpoints),
        AlongPath("source", _Segmented, _segmentations),
        AlongPath(
            "source_ggn",
            partial(_Segmented, curvature="gauss_newton"),
            partial(_segmentations, numbers=(1, 3)),
        ),
    ]
    return {method.name: method for method in made}
