"""Healthy and sick runs on scikit-learn's digits, for the docs page "Is my run converged?".

One row a run with its figures and the gates that failed, and a picture of its traces, drawn by the
library's own report.

    python -m benchmarks.converged.traces --out benchmarks/results --pictures docs/images
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import bif
from benchmarks.common import parser, print_table, write
from benchmarks.converged.remedies import shared_mini_batches
from bif.cli import digits_demo
from bif.report import plots

HEALTHY = bif.Settings(nbeta=1000.0, gamma=50.0, weight_decay=1e-3, chains=16, draws=200)
NOISY = replace(HEALTHY, gradient="minibatch", batch_size=100, step_size=0.02, burn_in=200)
RUNS: dict[str, bif.Settings] = {
    "healthy": HEALTHY,
    "stopped before burn-in": replace(HEALTHY, burn_in=0, thin=1, draws=40, step_size=0.005),
    "too short": replace(HEALTHY, thin=1, draws=40, step_size=0.004, burn_in=600),
    "step too large": replace(HEALTHY, sampler="sgld", step_size=9e-4, burn_in=400, thin=3),
    "gradient noise too hot": replace(NOISY, batch_size=16, nbeta=4000.0, step_size=0.01),
    "shared mini-batches": NOISY,
}
"""What is wrong with each; shared mini-batches take a patch besides."""
FIGURES = (
    "rhat_max", "ess_median", "reliability", "drift_removed", "drift_common",
    "chains_shared_variance", "virial", "kinetic", "step_share", "heat", "significant_share",
    "significant_share_null",
)  # fmt: skip


def picture(run: bif.Run) -> str:
    """Draw the traces of the mean loss as the report does, with the page's colours filled in."""
    shown = run.diagnostics
    svg = plots.traces(
        np.asarray(shown["mean_loss"].values, dtype=float),
        np.asarray(shown["draw"].values),
        center=float(shown["center_mean_loss"]),
        marked=[],
    )
    return plots.standalone_svg(svg)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    options.add_argument("--pictures", type=Path, help="folder for SVG files")
    arguments = options.parse_args()
    problem, rows = digits_demo.digits(arguments.seed).problem, []
    for name in arguments.runs:
        with shared_mini_batches() if name == "shared mini-batches" else nullcontext():
            run = bif.attribute(problem, replace(RUNS[name], seed=arguments.seed))
        row: dict[str, Any] = {"run": name, "trusted": run.summary["trusted"]}
        row["failed"] = ", ".join(run.failed_gates) or "none"
        rows.append({**row, **{figure: run.summary[figure] for figure in FIGURES}})
        print_table(rows[-1:])
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            file = arguments.pictures / f"traces-{name.replace(' ', '-')}.svg"
            file.write_text(picture(run), encoding="utf-8")
    print(write("converged", arguments, rows))


if __name__ == "__main__":
    main()
