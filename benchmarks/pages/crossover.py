"""The table of what solving and sampling cost, setting by setting, and where they cross."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common import all_runs
from benchmarks.pages.runs import Run, describe_run, machine
from benchmarks.pages.sections import table
from benchmarks.pages.tables import by_columns, figure
from bif.calibration.default_estimator import RELIABILITY

_LARGE = {
    "ResNet-20, 268,346 weights": ("lds-resnet20-solver", "lds-resnet20"),
    "stories, 260,032 weights": ("lds-stories-solver", "lds-stories"),
    "GPT, 3,821,568 weights": ("language-lds-solver", "language-lds"),
}
"""Files of the solved and of the sampled scores."""


def crossover() -> list[str]:
    """Show the seconds of both sides of the law at measured points, with the LDS that either has.

    Draws needed are those of the run, times `9 (1 - R) / R` for its reliability R.
    """
    labels = (
        "setting | queries | steps | solved on | to solve, s | sampled on | draws for .9 | "
        "of a draw, ms | to sample, s | as long at queries | LDS, solved | LDS, sampled"
    ).split(" | ")
    lines, commands = [], []
    for name, solved, sampled, runs in _points():
        odds = sampled["reliability"] / (1 - sampled["reliability"])
        needed = sampled["draws"] * RELIABILITY / (1 - RELIABILITY) / odds
        draw = sampled["sampling_seconds"] / sampled["draws"]
        to_solve = solved["seconds"] - solved["tuning_seconds"]
        lines.append([
            name, str(solved["num_queries"]), figure(solved["solver_steps"], 0), machine(runs[0]),
            f"{to_solve:.3g}", machine(runs[1]), f"{needed:,.0f}", f"{1e3 * draw:.3g}",
            f"{needed * draw:.3g}", f"{needed * draw / to_solve * solved['num_queries']:,.0f}",
            figure(solved["lds"]), figure(sampled["lds"]),
        ])  # fmt: skip
        commands += [describe_run(run) for run in runs]
    between = [line for command in dict.fromkeys(commands) for line in ("", command)]
    return [*table(labels, lines), *between]


def _points() -> Iterator[tuple[str, dict[str, Any], dict[str, Any], tuple[Run, Run]]]:
    """Yield name, solved row, sampled row and the runs that these are of."""
    small = all_runs("small-solver")[-1]
    rows = [r for r in small["rows"] if "told" not in r and r["target"] == "scratch"]
    for (name,), own in by_columns(rows, ["set"], "method").items():
        yield name, dict(own["solver_default"]), dict(own["bif"]), (small, small)
    for name, (solved, sampled) in _LARGE.items():
        (first, one), (second, other) = _row(solved, "solver_default"), _row(sampled, "bif")
        yield name, one, other, (first, second)


def _row(name: str, method: str) -> tuple[Run, dict[str, Any]]:
    """Return the newest run of a name that has a method, and its row for the loss."""
    return next(
        (run, row)
        for run in reversed(all_runs(name))
        for row in run["rows"]
        if row.get("method") == method and row["observable"] == "loss"
    )
