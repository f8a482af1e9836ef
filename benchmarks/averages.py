"""Damped influence averaged over a few draws beside the covariance of thousands, by retraining.

Small sets (`SETS` of benchmarks.calibration.small), or `concrete` (with --data) in a file of its
own, at temperatures in units of n and the default damping: the linear system solved at w*, the
mean of solves at 4 and 12 draws, EK-FAC at w* and at the same draws, and the covariance of all
draws of a run, each judged by networks retrained on halves of the items.  `slope` is that of what
12 draws add to the solve at w* on what the covariance adds: 2 where losses are quadratic.

    python -m benchmarks.averages --out benchmarks/results
    python -m benchmarks.averages --sets concrete --nbeta .25 --data DIR --out benchmarks/results
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bif
from benchmarks.calibration.small import small_task
from benchmarks.common import parser, print_table, write
from bif.bank import Plan
from bif.baselines import EKFAC
from bif.benchmark import Task, named_task
from bif.benchmark.harness import retrain_banks
from bif.evaluate import lds

SETS = ("wine", "diabetes", "linear")
FEW = (4, 12)
_SOLVED, _KRONECKER = "solved", "ekfac"
Scores = NDArray[Any]


def measure(task: Task, times_n: float, parts: Mapping[str, Any], draws: int) -> dict[str, Any]:
    """Return the LDS of every method at one temperature, and its seconds."""
    problem, seed = task.problem, task.settings[0].seed
    decay = task.settings[0].weight_decay
    nbeta = times_n * problem.num_train
    whole = bif.Settings(
        estimator="covariance", nbeta=nbeta, weight_decay=decay, chains=16, draws=draws, seed=seed
    )
    row: dict[str, Any] = {
        "set": task.name, "items": problem.num_train, "queries": problem.num_queries,
        "nbeta/n": times_n, "draws": 16 * draws,
    }  # fmt: skip
    run, seconds = _timed(lambda: bif.attribute(problem, whole))
    gamma = run.manifest.settings["gamma"]
    row |= {"gamma/nbeta": gamma / nbeta, "reliability": run.summary.reliability,
            "trusted": run.summary.trusted, "covariance_seconds": seconds}  # fmt: skip
    here = whole.reopened(chains=None, draws=None, gamma=gamma, estimator=None)
    found: dict[str, Scores] = {"covariance": _values(run.influence)}
    solve = here.reopened(estimator="response")
    found[f"{_SOLVED}_0"], row[f"{_SOLVED}_0_seconds"] = _timed(
        lambda: _values(bif.attribute(problem, solve).influence)
    )
    damping = gamma / nbeta + decay
    found[f"{_KRONECKER}_0"], row[f"{_KRONECKER}_0_seconds"] = _timed(
        lambda: _kronecker([problem], damping)
    )
    for count in FEW:
        found[f"{_SOLVED}_{count}"], row[f"{_SOLVED}_{count}_seconds"] = _timed(
            lambda k=count: _values(bif.average_over_draws(problem, here, num_draws=k))
        )
        found[f"{_KRONECKER}_{count}"], row[f"{_KRONECKER}_{count}_seconds"] = _timed(
            lambda k=count: _kronecker(bif.at_draws(problem, here, num_draws=k), damping)
        )
    most, solved = (found[f"{_SOLVED}_{k}"] for k in (max(FEW), 0))
    row["slope"] = _slope(most, solved, found["covariance"])
    for target, part in parts.items():
        outcome = part.outcomes[problem.observables[0].name]
        for name, scores in found.items():
            row[f"{name}_{target}"] = lds(scores, part.masks, outcome, num_bootstrap=1).mean
    return row


def _values(found: bif.Influence) -> Scores:
    return found.dataset["influence"].values[0]


def _kronecker(places: Any, damping: float) -> Scores:
    """Return the mean of EK-FAC influence over places."""
    each = [np.asarray(EKFAC.fit(place).scores(place, damping=damping)) for place in places]
    return np.mean(each, axis=0)


def _slope(mean: Scores, solved: Scores, covariance: Scores) -> float:
    """Return the slope of what draws add to a solve on what the covariance adds to it."""
    beside, added = mean - solved, covariance - solved
    return float((beside * added).sum() / (added * added).sum())


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sets", nargs="+", default=list(SETS))
    options.add_argument("--nbeta", nargs="+", type=float, default=[1, 10])
    options.add_argument("--draws", type=int, default=250, help="of each of 16 chains")
    options.add_argument("--subsets", type=int, default=60)
    arguments = options.parse_args()
    plan = Plan(
        num_subsets=arguments.subsets,
        seeds=3,
        num_tuning_subsets=8,
        tuning_seeds=1,
        mask_seed=arguments.seed,
    )
    rows = []
    for name in arguments.sets:
        given = {"device": arguments.device, "seed": arguments.seed}
        task = (
            named_task(name, arguments.data, **given) if name == "concrete"
            else small_task(name, **given)
        )  # fmt: skip
        banks, _ = retrain_banks(replace(task, plan=plan))
        parts = {t: bank.reported for t, bank in zip(task.targets, banks, strict=True)}
        for times_n in arguments.nbeta:
            rows.append(measure(task, times_n, parts, arguments.draws))
            print(rows[-1], flush=True)
    write("averages-concrete" if arguments.sets == ["concrete"] else "averages", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
