"""The BIF itself: covariances of losses under the local posterior."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bif.benchmark.measure import Cost, measure_cost
from bif.benchmark.methods.base import Judge, Scored
from bif.benchmark.task import Task
from bif.estimate.covariance import estimate_covariance
from bif.estimate.diagnostics import convergence
from bif.estimate.traces import LossTraces
from bif.problem.problem import Observable, Problem
from bif.runs.attribute import attribute
from bif.runs.run import Run
from bif.sampling.settings import Settings

_TUNING_GROUP = "tuning queries"
_CHAINS_DIVISOR, _DRAWS_DIVISOR = 4, 2
"""Divisors of the run's chains and draws for a pilot: burn-in costs the same."""
_DRAWS_ANCHORED = 10
"""Divisor of the draws of a run with anchors, which are worth several plain ones each."""
_CURVE_POINTS = 12
"""Points of the curve over draws."""


@dataclass(frozen=True)
class Fluctuation:
    """`-Cov(l_i, phi)` from one run for all queries of both parts.

    Where the task gives several settings, short pilots with each are judged on the tuning part;
    so is, for every outcome, what stands in for it: itself or one of its proxies.

    Attributes:
        name: The name of its rows.
        hand_set: Whether the task's settings are used; else only their weight decay and seed, and
            calibration chooses the rest.
        anchored: Whether the linear part is solved for, with a tenth of the draws.
    """

    name: str = "bif"
    hand_set: bool = True
    anchored: bool = False

    @classmethod
    def with_defaults(cls) -> Fluctuation:
        """Return the method with default settings, given only the weight decay."""
        return cls("bif_default", hand_set=False)

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        if not self.hand_set:
            first = task.settings[0]
            plain = Settings(weight_decay=first.weight_decay, seed=first.seed)
            task = replace(task, settings=(plain,))
        task = replace(task, settings=tuple(self._settings(s) for s in task.settings))
        asked = _TwoPartProblem(task)
        device = task.problem.device
        with measure_cost(device) as tuning:
            pilots = asked.pilots(judge) if len(task.settings) > 1 else []
        made, runs = [], {}
        for outcome in task.problem.observables:
            settings = asked.best(pilots, outcome.name)
            if settings not in runs:
                with measure_cost(device) as cost:
                    run = attribute(asked.problem, settings)
                runs[settings] = run, cost
            run, cost = runs[settings]
            complete = Settings.from_dict(run.manifest["settings"])
            where = temperatures(complete, task.problem.num_train)
            matrices = asked.matrices(_scores_by_observable(run.influence.dataset), outcome)
            chosen, tuned = asked.best_proxy(matrices, outcome.name, judge)
            whole = Scored(
                self.name,
                outcome.name,
                matrices[chosen]["reported"],
                tuning.then(cost),
                tuning.seconds,
                {**where, "through": chosen},
                [*(p.row for p in pilots if p.outcome == outcome.name), *tuned],
                {**_run_figures(run), "damping": where["gamma/nbeta"] + complete.weight_decay},
            )
            made.append(replace(whole, curve=self._curve(asked, run, whole, outcome, cost)))
        return made

    def _settings(self, settings: Settings) -> Settings:
        """Return the task's settings with the method's estimator."""
        if not self.anchored:
            return replace(settings, estimator="covariance")
        draws = None if settings.draws is None else max(8, settings.draws // _DRAWS_ANCHORED)
        return replace(settings, estimator="anchored", draws=draws)

    def _curve(
        self, asked: _TwoPartProblem, run: Run, whole: Scored, outcome: Observable, cost: Cost
    ) -> list[Scored]:
        """Return the same run cut short: scores from the first draws of every chain."""
        longest = run.traces.shortest
        sampling = min(float(run.summary["sampling_seconds"]), cost.seconds)
        points = []
        for draws in np.unique(np.geomspace(min(8, longest), longest, _CURVE_POINTS).astype(int)):
            traces = run.traces.truncated(int(draws))
            matrices = asked.matrices(_scores_from_traces(traces, asked.problem), outcome)
            shortened = cost.seconds - sampling * (1 - draws / longest)
            seconds = whole.tuning_seconds + shortened
            points.append(
                replace(
                    whole,
                    scores=matrices[str(whole.choice["through"])]["reported"],
                    cost=Cost(seconds, cost.peak_memory_gib),
                    facts={
                        "draws": traces.total_draws,
                        "ess_median": float(np.nanmedian(convergence(traces)[0])),
                    },
                )
            )
        return points


@dataclass(frozen=True)
class _Pilot:
    outcome: str
    settings: Settings
    lds: float
    row: Mapping[str, Any]


class _TwoPartProblem:
    """A task's problem with the queries of both parts, and every predictor of every outcome.

    An outcome is predicted by itself and through each of its proxies; all are observables of one
    run.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._reported = len(task.problem.query_ids)
        self._predictors: dict[str, dict[str, str]] = {}
        observables: list[Observable] = []
        for outcome in task.problem.observables:
            ways = {outcome.name: replace(outcome, through=None)}
            for proxy in task.proxies_of(outcome):
                name = f"{outcome.name} through the {proxy.name}"
                ways[proxy.name] = replace(outcome, name=name, through=proxy)
            self._predictors[outcome.name] = {way: o.name for way, o in ways.items()}
            observables += ways.values()
        groups = {**task.problem.query_groups, _TUNING_GROUP: task.tuning_queries}
        self.problem: Problem = task.problem.asking(groups, observables=observables)

    def pilots(self, judge: Judge) -> list[_Pilot]:
        """Return short runs with each of the settings, judged on the tuning part."""
        found = []
        for settings in self._task.settings:
            started = time.perf_counter()
            run = attribute(self.problem, _pilot_settings(settings))
            seconds = time.perf_counter() - started
            for outcome in self._task.problem.observables:
                matrices = self.matrices(_scores_by_observable(run.influence.dataset), outcome)
                through, tuned = self.best_proxy(matrices, outcome.name, judge)
                best = max(row["lds"] for row in tuned)
                where = temperatures(settings, self.problem.num_train)
                figures = {"draws": run.summary["draws"], "seconds": seconds}
                row = {"choice": {**where, "through": through, **figures}, "lds": best}
                found.append(_Pilot(outcome.name, settings, best, row))
        return found

    def best(self, pilots: Sequence[_Pilot], outcome: str) -> Settings:
        """Return the settings whose pilot did best on an outcome."""
        own = [p for p in pilots if p.outcome == outcome]
        return max(own, key=lambda p: p.lds).settings if own else self._task.settings[0]

    def best_proxy(
        self, matrices: Mapping[str, Mapping[str, np.ndarray]], outcome: str, judge: Judge
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the best predictor of an outcome on the tuning part, and how well each does."""
        tuned = [
            {"choice": {"through": name}, "lds": judge(parts["tuning"], outcome)}
            for name, parts in matrices.items()
        ]
        best = max(tuned, key=lambda row: row["lds"])
        return best["choice"]["through"], tuned

    def matrices(
        self, values: Mapping[str, np.ndarray], outcome: Observable
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return scores `[Q, N]` of an outcome by predictor and by part."""
        first, n = self._reported, self.problem.num_train
        return {
            way: {"reported": values[name][:first, :n], "tuning": values[name][first:, :n]}
            for way, name in self._predictors[outcome.name].items()
        }


def _pilot_settings(settings: Settings) -> Settings:
    chains = max(4, (settings.chains or 64) // _CHAINS_DIVISOR)
    draws = max(25, (settings.draws or 200) // _DRAWS_DIVISOR)
    block = None if settings.block_size is None else min(chains, settings.block_size)
    return replace(settings.with_draws(draws), chains=chains, block_size=block)


def _scores_by_observable(dataset: Any) -> dict[str, np.ndarray]:
    return {
        str(o): dataset["influence"].sel(observable=o).values for o in dataset.observable.values
    }


def _scores_from_traces(traces: LossTraces, problem: Problem) -> dict[str, np.ndarray]:
    value = -estimate_covariance(traces, device=problem.device).value.cpu().numpy()
    parts = value.reshape(len(problem.observables), problem.num_queries, -1)
    return {o.name: part for o, part in zip(problem.observables, parts, strict=True)}


def temperatures(settings: Settings, num_train: int) -> dict[str, Any]:
    """Return nbeta and gamma in units that compare between data sets."""
    found: dict[str, Any] = {}
    if settings.nbeta is not None:
        found["nbeta/n"] = settings.nbeta / num_train
        if settings.gamma is not None:
            found["gamma/nbeta"] = settings.gamma / settings.nbeta if settings.nbeta else np.inf
    return found


def _run_figures(run: Run) -> dict[str, Any]:
    """Return how long and how well a run sampled, and whether it is trusted."""
    names = (
        "draws", "ess_median", "rhat_max", "reliability", "sampling_seconds", "variance_left",
        "effective_draws", "slopes",
    )  # fmt: skip
    figures = {name: float(run.summary[name]) for name in names if name in run.summary}
    return {**figures, "trusted": bool(run.summary["trusted"]), "failed_gates": run.failed_gates}
