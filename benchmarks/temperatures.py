"""Scores averaged over posteriors of several temperatures, beside each alone, for as many draws.

Which nbeta predicts retraining best differs by what is retrained; model and data do not tell.  An
average does not need to know: each run's scores are divided by their standard deviation over the
train items of a query, and added.  Of k temperatures each gives the first 1/k of its draws.

    python benchmarks/temperatures.py digits concrete --data DIR --out benchmarks/results
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from common import parser, print_table, write
from judging import add_banks, reported_part

import bif
from bif.bank import BankPart
from bif.benchmark import SETTINGS, Task, named_task
from bif.estimate import estimate_covariance
from bif.estimate.traces import LossTraces
from bif.evaluate import lds

NBETAS = (0.25, 1.0, 4.0, 16.0)
"""In units of the number of train items; gamma is the default's share of nbeta."""


def sampled(task: Task, nbeta: float, arguments: argparse.Namespace) -> bif.Run:
    """A run at one temperature."""
    settings = bif.Settings(
        nbeta=nbeta * task.problem.num_train, weight_decay=task.settings[0].weight_decay,
        chains=arguments.chains, draws=arguments.draws, seed=arguments.seed,
    )  # fmt: skip
    return bif.attribute(task.problem, settings)


def scores(task: Task, traces: LossTraces, draws: int) -> np.ndarray:
    """From the first draws of every chain, in units of their spread: `[O, Q, N]`."""
    cut = estimate_covariance(traces.truncated(draws), num_groups=2)
    shape = (len(task.problem.observables), task.problem.num_queries, -1)
    values = -cut.value.cpu().numpy().reshape(shape)[..., : task.problem.num_train]
    return values / values.std(axis=-1, keepdims=True)


def judged(
    task: Task, runs: Mapping[float, bif.Run], chosen: Sequence[float], part: BankPart
) -> dict[str, Any]:
    """LDS of the average over some of the temperatures, and whether all of their runs are trusted.

    R-hat is that of the whole runs, of which an average takes a part.
    """
    draws = min(run.traces.shortest for run in runs.values()) // len(chosen)
    own = [runs[nbeta] for nbeta in chosen]
    whole = sum(scores(task, run.traces, draws) for run in own)
    found: dict[str, Any] = {
        f"lds_{o.name}": lds(matrix, part.masks, part.outcomes[o.name], num_bootstrap=1).mean
        for o, matrix in zip(task.problem.observables, np.asarray(whole), strict=True)
    }
    return {
        **found, "lds": float(np.mean(list(found.values()))), "draws_of_each": draws,
        "rhat_max": max(run.summary["rhat_max"] for run in own),
        "trusted": all(run.summary["trusted"] for run in own),
        "failed_gates": sorted({gate for run in own for gate in run.failed_gates}),
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--chains", type=int, default=24)
    options.add_argument("--draws", type=int, default=180)
    options.add_argument("--subsets", type=int, default=100)
    add_banks(options)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
        part = reported_part(task, arguments.banks, num_subsets=arguments.subsets)
        runs: dict[float, bif.Run] = {}
        for nbeta in NBETAS:
            runs[nbeta] = sampled(task, nbeta, arguments)
            print(
                f"{setting}, nbeta/n {nbeta:g}: {runs[nbeta].traces.total_draws} draws", flush=True
            )
        own = [
            {"setting": setting, "target": task.targets[-1],
             "nbeta/n": ", ".join(f"{b:g}" for b in chosen), **judged(task, runs, chosen, part)}
            for count in range(1, 1 + len(NBETAS))
            for chosen in combinations(NBETAS, count)
        ]  # fmt: skip
        best = max(row["lds"] for row in own if "," not in row["nbeta/n"])
        rows += [{**row, "share_of_best": row["lds"] / best} for row in own]
        write("temperatures", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
