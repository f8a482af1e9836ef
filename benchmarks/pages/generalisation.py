"""Test loss predicted from training draws, in short."""

from __future__ import annotations

from benchmarks.common import newest_run
from benchmarks.pages.runs import describe_run
from benchmarks.pages.sections import table

SETTINGS = ("digits", "letters", "fashion")
_ROWS = {
    ("center", "train loss"): "train loss at w*",
    ("center", "held-out tenth"): "loss of a held-out tenth",
    ("center", "influence functions"): "influence functions at w*",
    ("center", "number of weights"): "number of weights",
    ("center", "first"): "w*, first order",
    ("center", "second"): "w*, second order",
    ("center", "importance"): "w*, all orders",
    ("draws", "train"): "mean train loss of the draws",
    ("draws", "first"): "draws, first order",
    ("draws", "second"): "draws, second order",
    ("draws", "importance"): "draws, all orders",
    ("predictive", "train"): "train loss of the averaged likelihood",
    ("predictive", "first"): "averaged likelihood, WAIC",
    ("predictive", "importance"): "averaged likelihood, PSIS-LOO",
}


def summary() -> list[str]:
    """Show relative errors and rank correlations at the untempered nbeta, setting by setting."""
    runs = {name: run for name in SETTINGS if (run := newest_run(f"generalisation-{name}"))}
    found = {
        name: {(r["of"], r["by"]): r for r in run["rows"] if r["temperature"] == 1.0}
        for name, run in runs.items()
    }
    lines = [
        [label, *(cell for name in runs for cell in _cells(found[name][key]))]
        for key, label in _ROWS.items()
    ]
    labels = ["predicted by"]
    for name in runs:
        trusted = found[name]["draws", "train"]["trusted"]
        labels += [f"{name}, relative error", f"rank (trusted: {trusted})"]
    commands = [line for run in runs.values() for line in (describe_run(run), "")]
    return [*table(labels, lines), "", *commands[:-1]]


def _cells(row: dict[str, float]) -> list[str]:
    return [f"{row['relative']:.0%}".replace("%", " %"), f"{row['rank_correlation']:.2f}"]
