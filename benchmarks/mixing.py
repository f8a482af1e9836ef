"""What an independent draw costs: effective draws a second, and LDS, at equal wall-clock.

The same posterior (nbeta and gamma of `bif lds SETTING`) by different chains, each for so many
seconds with its calibration, judged by networks retrained on other subsets than it was tuned on.

    python -m benchmarks.mixing digits --seconds 30 --out benchmarks/results
    python -m benchmarks.mixing fashion --seconds 30 --data DIR --out DIR --device cuda
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bif
from benchmarks.common import add_banks, judge, parser, print_table, reported_part, write
from bif.benchmark import SETTINGS, named_task

WAYS: dict[str, dict[str, Any]] = {
    "BAOAB, Kronecker mass": {"mass": "kronecker"},
    "BAOAB, unit mass": {"mass": "identity"},
    "BAOAB, unit mass, control variate": {"mass": "identity", "gradient": "control_variate"},
    "BAOAB, unit mass, mini-batches": {"mass": "identity", "gradient": "minibatch"},
    "SGLD": {"sampler": "sgld"},
    "SGLD, mini-batches": {"sampler": "sgld", "gradient": "minibatch"},
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("setting", choices=SETTINGS)
    options.add_argument("--seconds", type=float, default=30.0)
    add_banks(options)
    arguments = options.parse_args()
    task = named_task(
        arguments.setting, arguments.data, device=arguments.device, seed=arguments.seed
    )
    part = reported_part(task, arguments.banks)
    chosen = task.settings[0]
    base = bif.Settings(
        nbeta=chosen.nbeta, gamma=chosen.gamma, weight_decay=chosen.weight_decay,
        gradient_precision=chosen.gradient_precision, loss_precision=chosen.loss_precision,
        budget=arguments.seconds, seed=arguments.seed,
    )  # fmt: skip
    rows = []
    for name, way in WAYS.items():
        row = {"how": name, **judge(task, replace(base, **way), part)}
        if row.get("ess_median"):
            row["effective_per_second"] = row["ess_median"] / row["seconds"]
        rows.append(row)
        print(row, flush=True)
    print_table(rows)
    write(
        f"mixing-{arguments.setting}", arguments, rows, about=task.about, target=task.targets[-1],
        nbeta=chosen.nbeta, gamma=chosen.gamma, budget=arguments.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
