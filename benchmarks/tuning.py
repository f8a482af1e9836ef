"""Where retraining for nbeta and gamma begins to pay: `bif.tune` beside what needs none.

The defaults, the same told what networks are retrained from, and `bif.tune`, all within the same
seconds, its retrained networks and pilots counted in them, on the reported part of a bank; beside
them the setting that was best of the newest sweep, with nothing to be chosen but draws.

    python benchmarks/tuning.py digits --seconds 60 120 --data DIR --out benchmarks/results

`--add FILE` begins with the rows of an earlier file of the same machine and runs what it lacks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import newest, parser, print_table, write
from judging import add_banks, judged, reported_part
from sweep import grid, swept, tuned, usual_posterior

import bif
from bif.benchmark import SETTINGS, Task, named_task
from bif.calibration.temperature import untempered


def ways(task: Task, within: bif.Settings) -> Iterator[tuple[str, Callable[[], bif.Settings]]]:
    """The ways to be calibrated, each to be called when its time begins."""
    yield "defaults", lambda: within
    yield "retrained_from", lambda: replace(within, retrained_from=task.targets[-1])
    yield "tuned", lambda: tuned(task, within)
    run = newest(f"sweep-{task.name}")
    tried = [row for row in run["sweep"] if row["name"] == "sweep"] if run else []
    if len(tried) == len(list(grid())):  # of an unfinished sweep the best is not known
        best = max(tried, key=lambda r: r.get("lds", 0))
        yield (
            "best of the sweep",
            lambda: swept(task, within, best, usual_posterior(task, within)),
        )


def main() -> None:
    options = parser(__doc__ or "")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("setting", choices=SETTINGS)
    options.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0, 240.0])
    add_banks(options)
    options.add_argument("--add", type=Path, help="file whose rows are not run again")
    arguments = options.parse_args()
    setting = arguments.setting
    rows: list[dict[str, Any]] = []
    if arguments.add:
        rows = json.loads(arguments.add.read_text(encoding="utf-8"))["rows"]
    task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
    part = reported_part(task, arguments.banks)
    base = bif.Settings(weight_decay=task.settings[0].weight_decay, seed=arguments.seed)
    for seconds in arguments.seconds:
        for name, way in ways(task, replace(base, budget=seconds)):
            about = {"setting": setting, "budget": seconds, "name": name}
            if any(about.items() <= row.items() for row in rows):
                continue
            try:
                settings = way()
            except ValueError as error:  # no time for it
                rows.append({**about, "failed": str(error)})
            else:
                usual, _ = untempered(task.problem)
                judgement = judged(task, settings, part)
                of_n = float(judgement.get("nbeta", float("nan"))) / usual
                rows.append({**about, "nbeta/n": of_n, **judgement})
            print(rows[-1], flush=True)
            rows.sort(key=lambda r: r["budget"])
            write(f"tuning-{setting}", arguments, rows, threads=torch.get_num_threads())
    print_table(rows)


if __name__ == "__main__":
    main()
