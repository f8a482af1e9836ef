"""What steering achieved beside what was intended, from the committed runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import newest_run
from benchmarks.pages.runs import describe_run
from benchmarks.pages.sections import table
from bif.estimate.intervals import t_quantile

SETTINGS = ("digits", "fashion")
_BASELINE = "baseline"
_NEAR = 0.25
"""Size up to which side effects are told: beyond, baselines of the same length go far."""
Row = Mapping[str, Any]


def achieved() -> list[str]:
    """Show achieved over intended change by its size, and by how much it is missed."""
    lines: list[str] = []
    for run in _runs():
        shares = run["sizes"]
        labels = ["weights by", *(f"{share:+.0%}" for share in shares), "missed by",
                  "to 25 %"]  # fmt: skip
        rows = [
            [name, *(_ratio(_of(own, share)) for share in shares), _missed(own),
             _missed([row for row in own if abs(row["share"]) <= 0.25])]
            for name, own in _by_way(run).items()
        ]  # fmt: skip
        lines += ["", _said(run), "", *table(labels, rows)]
    return lines


def beside() -> list[str]:
    """Show how far other queries moved: of the same class, and of other classes."""
    labels = ["setting", "weights by", "same class, B, −25%", "same class, B, +25%",
              "other classes, A", "other classes, B"]  # fmt: skip
    rows = []
    for run in _runs():
        for name, own in _by_way(run).items():
            near = [row for row in own if abs(row["share"]) <= _NEAR]
            target = np.sqrt(np.mean([_moved(row, "A").mean() ** 2 for row in near]))
            sides = [np.sqrt(np.mean([row[f"side_{part}"] ** 2 for row in near])) / target
                     for part in "AB"]  # fmt: skip
            rows.append([
                run["benchmark"].removeprefix("steering-"), name,
                *(_ratio(_of(own, share), "B") for share in (-_NEAR, _NEAR)),
                *("–" if name == "random" else f"{side:.1%}" for side in sides),
            ])  # fmt: skip
    return table(labels, rows)


def told() -> list[str]:
    """Show how well the changes were told beforehand, over A and over B, by size."""
    limits = (0.1, 0.25, 0.5, 1.0)
    labels = ["setting", "queries", "order", *(f"R², to {limit:.0%}" for limit in limits)]
    rows = []
    for run in _runs():
        own = _by_way(run)["covariance, clipped"]
        for part in "AB":
            for order, name in (("first", "predicted"), ("second", "second")):
                cells = []
                for limit in limits:
                    near = [row for row in own if abs(row["share"]) <= limit]
                    moved = np.stack([_moved(row, part) for row in near])
                    away = moved - np.asarray([row[f"{name}_{part}"] for row in near])[:, None]
                    cells.append(_interval(1 - (away**2).sum(axis=0) / (moved**2).sum(axis=0)))
                rows.append([run["benchmark"].removeprefix("steering-"), part, order, *cells])
    return table(labels, rows)


def _runs() -> list[Mapping[str, Any]]:
    found = [newest_run(f"steering-{setting}") for setting in SETTINGS]
    return [_asked(run) for run in found if run is not None]


def _asked(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run whose rows say what was asked for, as baselines do, in place of the nearest."""
    asked = {(r["class"], r["share"]): r["intended"] for r in run["rows"] if r["by"] == _BASELINE}
    rows = [{**r, "asked": asked[r["class"], r["share"]]} for r in run["rows"]]
    return {**run, "rows": rows}


def _by_way(run: Mapping[str, Any]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in run["rows"]:
        by = "" if row["by"] == _BASELINE else f"{row['by']}, "
        found.setdefault(f"{by}{row['how']}", []).append(row)
    return found


def _of(rows: Sequence[Row], share: float) -> list[Row]:
    return [row for row in rows if row["share"] == share]


def _moved(row: Row, part: str) -> np.ndarray:
    return np.asarray(row[f"seeds_{part}"], dtype=float)


def _ratio(rows: Sequence[Row], part: str = "A") -> str:
    """Return achieved over asked, the mean over classes, with its interval by seeds."""
    each = [_moved(row, part) / row["asked"] for row in rows]
    nearest = [row for row in rows if row.get("reached") is False]
    return _interval(np.mean(each, axis=0)) + ("*" if nearest else "")


def _missed(rows: Sequence[Row]) -> str:
    """Return the root mean square of `achieved / asked - 1`, 1 for no change, by seeds."""
    away = np.stack([_moved(row, "A") / row["asked"] - 1 for row in rows])
    return _interval(np.sqrt((away**2).mean(axis=0)))


def _interval(values: Sequence[float] | np.ndarray) -> str:
    """Return the mean over seeds and half of its 95 % interval."""
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        return "diverged"
    half = t_quantile(len(x)) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():.2f} ± {half:.2f}"


def _said(run: Mapping[str, Any]) -> str:
    trust = ", ".join(
        f"{name} {'trusted' if figures['trusted'] else 'not trusted'}"
        for name, figures in run["runs"].items()
    )
    return f"{run['about']}. Runs: {trust}. {describe_run(run)}"
