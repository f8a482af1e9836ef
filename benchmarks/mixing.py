"""What an independent draw costs: effective draws a second, and LDS, at equal wall-clock.

The same posterior (nbeta and gamma of `bif lds SETTING`) by different chains, each for so many
seconds with its calibration, judged by networks retrained on other subsets than it was tuned on.

    python benchmarks/mixing.py digits --seconds 30 --out benchmarks/results
    python benchmarks/mixing.py fashion --seconds 30 --data DIR --out DIR --device cuda
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import parser, print_table, write
from judging import add_banks, judged, reported_part
from perturbed import PerturbAndOptimise
from refreshed import Refreshed

import bif
from bif.benchmark import SETTINGS, named_task
from bif.losses import cross_entropy

STEPS = (8, 16, 32, 64)
"""To the minimum of a perturbed potential."""
BATCHES, CHAINS, FRICTION = (64, 128), 16, 10.0
"""Of control variates whose anchor is the last draw; friction in units of that of full gradients:
the noise of gradients is kept as long as velocities are."""
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

    def add(name: str, row: dict[str, Any]) -> None:
        if row.get("ess_median"):
            row["effective_per_second"] = row["ess_median"] / row["seconds"]
        rows.append({"how": name, **row})
        print(rows[-1], flush=True)

    for name, way in WAYS.items():
        add(name, judged(task, replace(base, **way), part))
    complete = bif.calibrate(task.problem, replace(base, budget=None, mass="kronecker")).settings
    assert complete.friction is not None
    often = replace(
        complete, friction=FRICTION * complete.friction, chains=CHAINS, block_size=CHAINS
    )
    for batch_size in BATCHES:
        made = Refreshed(task.problem, often, batch_size)
        row = made.judged(part, seconds=arguments.seconds)
        add(f"BAOAB, Kronecker mass, refreshed control variates of {batch_size}", row)
    if task.problem.loss is cross_entropy:
        complete = bif.calibrate(task.problem, replace(base, budget=None, mass="identity")).settings
        for steps in STEPS:
            made = PerturbAndOptimise(task.problem, complete, steps)
            row = made.judged(part, seconds=arguments.seconds)
            add(f"perturb and optimise, {steps} steps", row)
    print_table(rows)
    write(
        f"mixing-{arguments.setting}", arguments, rows, about=task.about, target=task.targets[-1],
        nbeta=chosen.nbeta, gamma=chosen.gamma, budget=arguments.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
