"""The response estimator, and the automatic choice between the two estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bif.benchmark.measure import Cost, measure_cost
from bif.benchmark.methods.base import Judge, Scored, Unsuited
from bif.benchmark.methods.fluctuation import Fluctuation, temperatures
from bif.benchmark.task import Task
from bif.calibration.estimator_choice import choose_estimator
from bif.curvature.products import Curvature
from bif.linear_response.request import Request
from bif.problem.items import Items
from bif.problem.problem import UNNAMED, Problem
from bif.runs.estimator_costs import measure_costs
from bif.runs.respond import respond
from bif.sampling.settings import Settings

_TUNING_QUERIES = 16
"""Queries that judge a candidate: each needs chains of its own."""


@dataclass(frozen=True)
class Responses:
    """Pairs of chains around each query, at temperature 1 or 0 as the tuning part decides.

    Candidates: each of the task's settings as it is at temperature 1, and at temperature 0 with
    several values of gamma.

    Attributes:
        name: The name of its rows.
        dampings: Dampings at temperature 0, in units of the settings' gamma/nbeta.
        curvatures: Curvatures at temperature 0; "gauss_newton" has that matrix in the
            Hessian's place and takes a loss of `bif.losses`.
    """

    name: str = "bif_response"
    dampings: tuple[float, ...] = (0.3, 1.0, 3.0)
    curvatures: tuple[Curvature, ...] = ("hessian",)

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        device = task.problem.device
        candidates = _candidates(task, self.dampings, self.curvatures)
        few = _first_items(task.tuning_queries, _TUNING_QUERIES)
        tuning = task.problem.asking({UNNAMED: few})
        made = []
        for outcome in task.problem.observables:
            with measure_cost(device) as pilots:
                tuned = [
                    {
                        "choice": c.as_choice(task.problem.num_train),
                        "lds": judge(
                            _zero_failed(_scores(tuning, c, outcome.name)), outcome.name, len(few)
                        ),
                    }
                    for c in candidates
                ]
            best = candidates[int(np.argmax([t["lds"] for t in tuned]))]
            with measure_cost(device) as cost:
                scores, failed = _replace_failed(_scores(task.problem, best, outcome.name))
            made.append(
                Scored(
                    self.name,
                    outcome.name,
                    scores,
                    pilots.then(cost),
                    pilots.seconds,
                    best.as_choice(task.problem.num_train),
                    tuned,
                    failed,
                )
            )
        return made


@dataclass(frozen=True)
class Automatic:
    """The covariance at temperature 1 by the estimator that pilots find cheaper.

    The response runs until its error is that of the fluctuations' run.
    """

    name: str = "bif_auto"

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        device = task.problem.device
        fluctuations = [s for s in found if s.method == Fluctuation().name]
        if not fluctuations:
            fluctuations = Fluctuation().run(task, judge, found)
        made = []
        for outcome in task.problem.observables:
            own = next(s for s in fluctuations if s.outcome == outcome.name)
            settings = next(
                s for s in task.settings
                if temperatures(s, task.problem.num_train).items() <= own.choice.items()
            )  # fmt: skip
            with measure_cost(device) as pilots:
                fluctuation, response = measure_costs(
                    task.problem, settings.reopened(chains=None), observable=outcome.name
                )
                choice = choose_estimator(
                    task.problem.num_queries, fluctuation=fluctuation, response=response
                )
            facts = {"estimator": choice.value}
            if choice.value == "fluctuation":
                made.append(
                    replace(
                        own, method=self.name, cost=own.cost.then(pilots), curve=(),
                        tuning_seconds=own.tuning_seconds + pilots.seconds,
                        choice={**own.choice, **facts}, tuned=(),
                    )
                )  # fmt: skip
                continue
            # As exact as the fluctuations' own run, and no longer than asked for.
            sampling = own.cost.seconds - own.tuning_seconds
            error = fluctuation.standard_error * (fluctuation.seconds / sampling) ** 0.5
            enough = max(response.steps // 4, response.steps_to(error))
            steps = min(task.response_steps, enough)
            candidate = _Candidate(settings.with_draws(None), 1.0, steps)
            with measure_cost(device) as cost:
                scores, failed = _replace_failed(_scores(task.problem, candidate, outcome.name))
            row_choice = {**candidate.as_choice(task.problem.num_train), **facts}
            # The settings were chosen by the fluctuations' pilots.
            tuning = pilots.then(Cost(own.tuning_seconds, own.cost.peak_memory_gib))
            made.append(
                Scored(
                    self.name, outcome.name, scores, tuning.then(cost), tuning.seconds, row_choice,
                    (), failed,
                )
            )  # fmt: skip
        return made


@dataclass(frozen=True)
class _Candidate:
    settings: Settings
    temperature: float
    steps: int | None
    curvature: Curvature = "hessian"

    def refusal(self) -> str:
        """Return why these settings allow no response, "" if they do."""
        try:
            Request(self.settings, self.temperature, self.curvature, None, self.steps, 1)
        except ValueError as error:
            return str(error)
        return ""

    def as_choice(self, num_train: int) -> Mapping[str, Any]:
        choice = {**temperatures(self.settings, num_train), "temperature": self.temperature}
        return choice if self.curvature == "hessian" else {**choice, "curvature": self.curvature}


def _candidates(
    task: Task, dampings: Sequence[float], curvatures: Sequence[Curvature]
) -> list[_Candidate]:
    """Return settings at temperature 1, and at 0 around their dampings, each once."""
    warm, cold = [], {}
    for settings in task.settings:
        chainless = settings.reopened(
            draws=None, reliability=None, budget=None, chains=None, block_size=None
        )
        warm.append(_Candidate(chainless, 1.0, task.response_steps))
        if settings.nbeta and settings.gamma is not None:
            for factor in dampings:
                damping = settings.gamma / settings.nbeta * factor
                cold[f"{damping:.3g}"] = replace(chainless, gamma=damping * settings.nbeta)
        else:
            cold["default"] = chainless
    found = [*(_Candidate(s, 0.0, None, c) for c in curvatures for s in cold.values()), *warm]
    reasons = {candidate: candidate.refusal() for candidate in found}
    fit = [candidate for candidate, reason in reasons.items() if not reason]
    if not fit:
        raise Unsuited(" ".join(dict.fromkeys(filter(None, reasons.values()))))
    return fit


def _scores(problem: Problem, candidate: _Candidate, outcome: str) -> np.ndarray:
    try:
        return respond(
            problem,
            candidate.settings,
            observable=outcome,
            temperature=candidate.temperature,
            curvature=candidate.curvature,
            steps=candidate.steps,
        ).scores
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise Unsuited(str(error)) from error
        # Pairs that diverged: this candidate has failed, another may not.
        return np.full((problem.num_queries, len(problem.scored_ids)), np.nan)


def _replace_failed(scores: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Return scores without NaN, and the number of queries that failed."""
    failed = np.asarray(~np.isfinite(scores).all(axis=1))
    if failed.all():
        raise Unsuited("all pairs of chains diverged.")
    return _zero_failed(scores), {"failed_queries": float(failed.sum())}


def _zero_failed(scores: np.ndarray) -> np.ndarray:
    """Return scores with 0 for queries whose pairs diverged."""
    whole = np.isfinite(scores).all(axis=1, keepdims=True)
    return np.where(whole, scores, 0.0)


def _first_items(items: Items, count: int) -> Items:
    chosen = torch.arange(min(count, len(items)))
    return Items(items.take(chosen), ids=items.ids[: len(chosen)].tolist())
