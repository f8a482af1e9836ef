"""Where retraining for nbeta and gamma begins to pay: `bif.tune` beside the defaults.

Both within the same seconds, the retrained networks and pilots of `bif.tune` counted in them, on
the reported part of a bank.

    python benchmarks/tuning.py digits concrete --seconds 60 120 --data DIR --out benchmarks/results
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from common import parser, print_table, write
from judging import judged, reported_part
from sweep import tuned

import bif
from bif.benchmark import SETTINGS, named_task


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0, 240.0])
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
        part = reported_part(task)
        base = bif.Settings(weight_decay=task.settings[0].weight_decay, seed=arguments.seed)
        for seconds in arguments.seconds:
            within = replace(base, budget=seconds)
            for name, settings in (("defaults", within), *tuned(task, within)):
                about = {"setting": setting, "budget": seconds, "name": name}
                of_n = (settings.nbeta or task.problem.num_train) / task.problem.num_train
                rows.append({**about, "nbeta/n": of_n, **judged(task, settings, part)})
                print(rows[-1], flush=True)
                write("tuning", arguments, rows, threads=torch.get_num_threads())
    print_table(rows)


if __name__ == "__main__":
    main()
