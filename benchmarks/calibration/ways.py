"""Where retraining for nbeta and gamma begins to pay: `bif.tune` beside what needs none.

The defaults, the same told what networks are retrained from, and `bif.tune`, its retrained networks
and pilots counted in the seconds, on the reported part of a bank; beside them the setting that was
best of the newest sweep, with nothing to be chosen but draws.

    python -m benchmarks.calibration.ways digits --seconds 60 120 --out benchmarks/results
    python -m benchmarks.calibration.ways --elsewhere digits concrete --data DIR --out DIR

The widths of `retrained_from` were read off digits retrained from the checkpoint and concrete and
Fashion-MNIST retrained from scratch.  With `--elsewhere` a setting is retrained from the other
place, which had no part in that, and told either answer, right or wrong, besides the defaults.

`--add FILE` begins with the rows of an earlier file of the same machine and runs what it lacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

import bif
from benchmarks.common import add_banks, newest_run, parser, print_table, read, reported_part, write
from benchmarks.sweep import default_posterior, grid, judge_way, settings_of_entry, ways
from bif.benchmark import SETTINGS, Task, named_task
from bif.calibration.temperature import untempered
from bif.types import Target

Ways = dict[str, Callable[[], bif.Settings]]


def ways_and_best(task: Task, within: bif.Settings) -> Ways:
    """Return the ways of a sweep, and what was best of the newest whole one."""
    run = newest_run(f"sweep-{task.name}")
    tried = [row for row in run["sweep"] if row["name"] == "sweep"] if run else []
    if len(tried) < len(list(grid())):  # of an unfinished sweep the best is not known
        return ways(task, within)
    best = max(tried, key=lambda r: r.get("lds", 0))

    def best_of_the_sweep() -> bif.Settings:
        return settings_of_entry(task, within, best, default_posterior(task, within))

    return {**ways(task, within), "best of the sweep": best_of_the_sweep}


def answers(within: bif.Settings) -> Ways:
    """Return the defaults, and settings that are told each place to be retrained from."""
    return {
        "nothing": lambda: within,
        "scratch": lambda: replace(within, retrained_from="scratch"),
        "checkpoint": lambda: replace(within, retrained_from="checkpoint"),
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0, 240.0])
    options.add_argument("--elsewhere", action="store_true", help="retrain from the other place")
    add_banks(options)
    options.add_argument("--add", type=Path, help="file whose rows are not run again")
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = read(arguments.add)["rows"] if arguments.add else []
    for setting in arguments.settings:
        rows = measure(setting, arguments, rows)
        print_table(rows)
        rows = rows if arguments.elsewhere else []


def measure(
    setting: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run what is not among the rows; the file is written anew after each.

    Settings share a file where they are retrained elsewhere, else each has its own.
    """
    task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
    kind, named, banks = f"tuning-{setting}", "name", arguments.banks
    about: dict[str, Any] = {"setting": setting}
    if arguments.elsewhere:
        (target,) = {*get_args(Target)} - {task.targets[-1]}
        task, banks = replace(task, targets=(target,)), banks and banks / target
        kind, named = "elsewhere", "told"
        about["target"] = target
    part = reported_part(task, banks)
    base = bif.Settings(weight_decay=task.settings[0].weight_decay, seed=arguments.seed)
    usual, _ = untempered(task.problem)
    for seconds in arguments.seconds:
        within = replace(base, budget=seconds)
        asked = answers(within) if arguments.elsewhere else ways_and_best(task, within)
        for name, way in asked.items():
            row = {**about, "budget": seconds, named: name}
            if any(row.items() <= known.items() for known in rows):
                continue
            row |= judge_way(task, way, part)
            if "nbeta" in row:
                row["nbeta/n"] = row["nbeta"] / usual
            print(row, flush=True)
            rows = sorted([*rows, row], key=lambda r: r["budget"])
            write(kind, arguments, rows, budget=seconds, threads=torch.get_num_threads())
    return rows


if __name__ == "__main__":
    main()
