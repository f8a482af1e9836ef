"""The BIF on digits with one setting at a time off its default: nbeta, gamma and the step size.

The task of `bif lds digits`, given only the weight decay.  nbeta changes with gamma/nbeta fixed,
gamma with nbeta fixed; steps, burn-in and thinning are then calibrated anew.  The step size
changes with all else as calibrated, so that larger steps go further.

    python -m benchmarks.ablation --banks BANKS --out benchmarks/results
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bif
from benchmarks.common import add_banks, bank_folder, parser, print_table, trust_figures, write
from bif.bank import Plan
from bif.benchmark import named_task
from bif.benchmark.harness import retrain_banks
from bif.evaluate import lds

FACTORS = {
    "default": (1.0,),
    "nbeta": (0.03, 0.1, 0.3, 3.0, 10.0),
    "gamma": (0.1, 0.3, 3.0, 10.0, 100.0),
    "step_size": (0.125, 0.25, 0.5, 1.5, 2.0),
}
"""Factors on the default of each setting."""


def varied(base: bif.Settings, whole: bif.Settings) -> Iterator[tuple[str, float, bif.Settings]]:
    """Yield the name of the setting that changes, the factor, and settings.

    Args:
        base: Nothing given but the weight decay and the number of draws.
        whole: What calibration makes of it.
    """
    assert whole.nbeta is not None and whole.gamma is not None and whole.step_size is not None
    for name, factors in FACTORS.items():
        for factor in factors:
            nbeta, gamma = whole.nbeta, whole.gamma
            if name == "step_size":
                yield name, factor, replace(whole, step_size=factor * whole.step_size)
                continue
            if name == "nbeta":
                nbeta, gamma = factor * nbeta, factor * gamma
            if name == "gamma":
                gamma *= factor
            yield name, factor, replace(base, nbeta=nbeta, gamma=gamma)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--chains", type=int, default=16)
    options.add_argument("--draws", type=int, default=100)
    options.add_argument("--subsets", type=int, default=60)
    add_banks(options)
    arguments = options.parse_args()
    task = named_task("digits", None, device=arguments.device, seed=arguments.seed)
    plan = Plan(num_subsets=arguments.subsets, seeds=2, num_tuning_subsets=8, tuning_seeds=1)
    with bank_folder(arguments.banks, "digits-ablation") as folder:
        banks, _ = retrain_banks(replace(task, plan=plan), folder)
    base = bif.Settings(
        estimator="covariance", weight_decay=task.settings[0].weight_decay,
        chains=arguments.chains, draws=arguments.draws, seed=arguments.seed,
    )  # fmt: skip
    rows = []
    for name, factor, settings in varied(base, bif.calibrate(task.problem, base).settings):
        row: dict[str, Any] = {"varied": name, "factor": factor}
        try:
            run = bif.attribute(task.problem, settings)
        except (ValueError, RuntimeError) as error:
            rows.append({**row, "failed": str(error)[:200]})
            continue
        chosen = run.manifest.settings
        scores = run.influence.dataset["influence"].sel(observable="loss").values
        row |= {
            "nbeta/n": chosen["nbeta"] / task.problem.num_train,
            "gamma/nbeta": chosen["gamma"] / chosen["nbeta"], "step_size": chosen["step_size"],
            **trust_figures(run), "ess_median": run.summary.ess_median,
            "seconds": run.summary.seconds,
        }  # fmt: skip
        for target, bank in zip(task.targets, banks, strict=True):
            part = bank.reported
            row[f"lds_{target}"] = lds(scores, part.masks, part.outcomes["loss"]).mean
        rows.append(row)
        print(row, flush=True)
    write("ablation", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
