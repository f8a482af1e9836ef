"""`retrained_from` on kinds of retraining that had no part in choosing what it does.

Its two widths were read off digits retrained from the checkpoint and concrete and Fashion-MNIST
retrained from scratch.  Here the same problems are retrained from the other place: the defaults,
and what either answer would give, right or wrong, each within the same seconds.

    python benchmarks/elsewhere.py digits concrete --seconds 60 --data DIR --out benchmarks/results
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from common import parser, print_table, write
from judging import add_banks, judged, reported_part

import bif
from bif.benchmark import SETTINGS, named_task

WAYS = (None, "scratch", "checkpoint")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--seconds", type=float, default=60.0)
    add_banks(options)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
        target = "scratch" if task.targets[-1] == "checkpoint" else "checkpoint"
        task = replace(task, targets=(target,))
        part = reported_part(task, arguments.banks and arguments.banks / target)
        for way in WAYS:
            settings = bif.Settings(
                weight_decay=task.settings[0].weight_decay, seed=arguments.seed,
                budget=arguments.seconds, retrained_from=way,
            )  # fmt: skip
            about = {"setting": setting, "target": target, "told": way or "nothing"}
            rows.append({**about, **judged(task, settings, part)})
            print(rows[-1], flush=True)
            write(
                "elsewhere", arguments, rows, budget=arguments.seconds,
                threads=torch.get_num_threads(),
            )  # fmt: skip
    print_table(rows)


if __name__ == "__main__":
    main()
