"""What `docs/kernel-images.md` shows of the runs of `benchmarks.kernel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import newest_run
from benchmarks.pages.runs import Run, describe_run
from benchmarks.pages.sections import table

Row = Mapping[str, Any]
_SHARES = ("auroc", "found")
"""Between 0 and 1, which intervals of few seeds leave."""
_SETS = ("fashion", "fashion-small", "cifar", "cifar-long")
"""Ends of the files' names."""


def hierarchies() -> list[str]:
    """Return the agreement of each kernel with the tree, and that of the loss kernel less it."""
    lines = []
    for run in _runs("kernel-{}"):
        lines += ["", *_said(run), "", _trust(run), ""]
        lines += table(
            ["network", "similarity", "rank correlation", "p", "triplet accuracy",
             "loss kernel less it", "its squares less it", "seeds"],
            [
                [row["network"], row["kernel"], _interval(row, "rank_correlation"),
                 _figure(row["rank_correlation_p"]), _interval(row, "triplet_accuracy"),
                 _interval(row, "less_rank_correlation"),
                 _interval(row, "squared_less_rank_correlation"), str(row["seeds"])]
                for row in run["rows"]
            ],
        )  # fmt: skip
    return lines


def mislabelled() -> list[str]:
    """Return how well scores find mislabelled items, by share and set."""
    return _found("kernel-mislabel-{}", "share", lambda value: f"{value:.0%} mislabelled")


def backdoored() -> list[str]:
    """Return how well kernels find the other items with a backdoor."""
    return _found("kernel-backdoor-{}", "among", lambda value: f"among {value}")


def levels() -> list[str]:
    """Return when each level of the tree is half-way there, by kernel."""
    run = newest_run("kernel-checkpoints")
    if run is None:
        return []
    kernels = list(dict.fromkeys(row["kernel"] for row in run["rows"]))
    names = list(dict.fromkeys(row["level"] for row in run["rows"]))
    by = {(row["kernel"], row["level"]): row for row in run["rows"]}
    rows = [[name, *(_interval(by[k, name], "half_way", digits=0) for k in kernels)]
            for name in names]  # fmt: skip
    return ["", *_said(run), "", _trust(run), "", *table(["level", *kernels], rows)]


def toy() -> list[str]:
    """Return the moments of each level of the hierarchical toy, by similarity."""
    run = newest_run("kernel-hierarchy")
    if run is None:
        return []
    rows = [
        [row["level"], row["kernel"], f"{row['peak_step']:.0f}", _step(row["flip_step"]),
         f"{row['branching_step']:.0f}", f"{row['trusted']} of {row['checkpoints']}"]
        for row in sorted(run["rows"], key=lambda row: row["level"])
    ]  # fmt: skip
    heads = ["level", "similarity", "peak", "negative from", "learned at", "trusted checkpoints"]
    return ["", *table(heads, rows)]


def _step(value: float | None) -> str:
    return "never" if value is None or value != value else f"{value:.0f}"


def _found(files: str, key: str, label: Any) -> list[str]:
    lines = []
    for run in _runs(files):
        kinds = list(dict.fromkeys(row[key] for row in run["rows"]))
        scores = list(dict.fromkeys(row["score"] for row in run["rows"]))
        by = {(row[key], row["score"]): row for row in run["rows"]}
        heads = [f"{what}, {label(kind)}" for kind in kinds
                 for what in ("AUROC", "found at 5 % false alarms")]  # fmt: skip
        rows = [
            [score, *(_interval(by.get((kind, score)), what) for kind in kinds
                      for what in ("auroc", "found"))]
            for score in scores
        ]  # fmt: skip
        lines += ["", *_said(run), "", _trust(run), "", *table(["score", *heads], rows)]
    return lines


def _runs(files: str) -> list[Run]:
    found = (newest_run(files.format(name)) for name in _SETS)
    return [run for run in found if run is not None]


def _said(run: Run) -> Sequence[str]:
    return [f"**{run['benchmark'].removeprefix('kernel-')}**: {describe_run(run)}"]


def _trust(run: Run) -> str:
    """Say how many of the runs behind a table are trusted, and what failed in the others."""
    sampled = [row for row in run["runs"] if "trusted" in row]
    trusted = sum(bool(row["trusted"]) for row in sampled)
    failed = sorted({gate for row in sampled for gate in row["failed_gates"]})
    why = f"; gates that failed in the others: {', '.join(failed)}" if failed else ""
    return f"{trusted} of {len(sampled)} sampled runs are trusted{why}."


def _interval(row: Row | None, name: str, *, digits: int = 2) -> str:
    value = None if row is None else row.get(name)
    if row is None or value is None or value != value:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = low is not None and low == low and row["seeds"] != 2  # of two seeds it says nothing
    if known and name in _SHARES:
        low, high = max(float(low or 0.0), 0.0), min(float(high), 1.0)
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if known else "")


def _figure(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2g}"
