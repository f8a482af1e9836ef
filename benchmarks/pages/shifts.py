"""What `docs/susceptibilities.md` shows of the runs of `benchmarks.shifts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common import newest_run
from benchmarks.pages.runs import Run, describe_run
from benchmarks.pages.sections import table

_SETTINGS = ("digits", "fashion", "text")
_SHOWN = (-1.0, -0.5, -0.1, 0.1, 0.5, 1.0)
_SAME_DRAWS = "second of the same draws"
_COLOURS = {
    "first": "#1d4ed8", "second": "#c2410c", "reweighted": "#15803d", "Gauss-Newton": "#71717a",
}  # fmt: skip
_GOOD = 0.9
_TOP = 1.3
"""Of the axis of errors; 1 is no prediction."""


def radii() -> list[str]:
    """Return how far each prediction is good, of single queries and of the groups' means."""
    lines = []
    for run in _runs():
        lines += ["", describe_run(run), ""]
        by = {(r["part"], r["target"], r["level"], r["method"]): r for r in run["rows"]}
        rows = [
            [_name(run), target, method, _number(row.get("nbeta")),
             _number(row.get("damping")), _yes(row.get("trusted")), _radius(row, "down"),
             _radius(row, "up"), _radius(by[part, target, "means", method], "down"),
             _radius(by[part, target, "means", method], "up")]
            for (part, target, level, method), row in by.items()
            if (part, level) == ("groups", "queries") and method != _SAME_DRAWS
        ]  # fmt: skip
        lines += table(
            ["setting", "retrained from", "prediction", "nbeta/n", "gamma/nbeta", "trusted",
             "each query: less weight", "more weight", "means of groups: less weight",
             "more weight"],
            rows,
        )  # fmt: skip
    return lines


def second_order() -> list[str]:
    """Return R² to first order, and what the second order of the same draws adds."""
    rows = []
    for run in _runs():
        first = {_key(r): r for r in run["curves"] if r["method"] == "first"}
        added = {_key(r): r for r in run["differences"] if r["method"] == _SAME_DRAWS}
        told = {_key(r): r for r in run["curves"] if r["method"] == _SAME_DRAWS}
        other = {_key(r): f"{r['r2']:.3f}" for r in run.get("one_network", [])}
        for part, target, level, size in added:
            if (part, level) == ("groups", "queries") and size in _SHOWN:
                keys = [(part, target, level, size) for level in ("queries", "means")]
                figures = [
                    text for k in keys for text in (f"{first[k]['r2']:.3f}", _more(added[k]))
                ]
                noise = _number(told[keys[0]].get("draws_share"), ".2g")
                figures = [f"{100 * size:+.0f} %", other.get(keys[0], "–"), noise, *figures]
                rows.append([_name(run), target, *figures])
    heads = ["setting", "retrained from", "weight", "each query: another network",
             "noise of the draws", "first", "second adds", "means of groups: first",
             "second adds"]  # fmt: skip
    return ["", *table(heads, rows)] if rows else []


def outside() -> list[str]:
    """Return how the mean loss of the queries of an added group changes, and R² of all queries."""
    rows = []
    for run in _runs():
        curves = {(r["size"], r["method"]): r for r in run["curves"]
                  if (r["part"], r["level"]) == ("outside", "queries")}  # fmt: skip
        for row in run.get("change", []):
            if row["part"] != "outside":
                continue
            size = row["size"]
            rows.append([
                _name(run), f"{size:g}", f"{row['actual']:+.3f}",
                *(f"{row[method]:+.3f} ({curves[size, method]['r2']:.2f})" for method in _COLOURS),
            ])  # fmt: skip
    heads = ["setting", "weight", "change of the loss", *(f"{m} (R²)" for m in _COLOURS)]
    return ["", *table(heads, rows)] if rows else []


def figure() -> Any:
    """Draw the relative error of each prediction against the size of the shift."""
    from matplotlib.figure import Figure

    panels = [
        (run, target) for run in _runs()
        for target in dict.fromkeys(row["target"] for row in run["rows"])
    ]  # fmt: skip
    made = Figure(figsize=(2.6 * len(panels) + 0.6, 5.2), layout="constrained")
    axes = made.subplots(2, len(panels), sharey=True, squeeze=False)
    for column, (run, target) in enumerate(panels):
        for row, sign in enumerate((-1, 1)):
            _draw(axes[row, column], run, target, sign)
            axes[row, column].set_xlabel("weight lost" if sign < 0 else "weight gained")
        axes[0, column].set_title(f"{_name(run)}, from {target}", fontsize=9)
    for row in axes:
        row[0].set_ylabel("error over change")
    axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    return made


def _draw(axes: Any, run: Run, target: str, sign: int) -> None:
    for method, colour in _COLOURS.items():
        rows = sorted(
            (r for r in run["curves"]
             if (r["part"], r["target"], r["level"]) == ("groups", target, "queries")
             and r["method"] == method and r["size"] * sign > 0),
            key=lambda r: abs(r["size"]),
        )  # fmt: skip
        x = [abs(r["size"]) for r in rows]
        middle, low, high = (
            np.sqrt(np.clip([1 - r[name] for r in rows], 0, None))
            for name in ("r2", "r2_high", "r2_low")
        )
        axes.plot(x, middle, color=colour, lw=1.3, marker="o", ms=2.5, label=method)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axes.axhline(1, color="#a1a1aa", lw=0.9, ls=":")
    axes.axhline((1 - _GOOD) ** 0.5, color="#a1a1aa", lw=0.9, ls="--")
    axes.set_xscale("log")
    axes.set_xticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
    axes.set_ylim(0, _TOP)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _runs() -> list[Run]:
    found = (newest_run(f"shifts-{name}") for name in _SETTINGS)
    return [run for run in found if run is not None]


def _name(run: Run) -> str:
    return str(run["benchmark"]).removeprefix("shifts-")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["part"], row["target"], row["level"], row["size"]


def _radius(row: Mapping[str, Any], way: str) -> str:
    value, low, high = (row[f"radius_{way}{end}"] for end in ("", "_low", "_high"))
    if not high:
        return "none"
    return f"{_share(value)} ({_share(low)} to {_share(high)})"


def _share(value: float) -> str:
    return "none" if not value else f"{value:.3g}" if value < 0.01 else f"{100 * value:.0f} %"


def _more(row: Mapping[str, Any]) -> str:
    value, low, high = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _number(value: float | None, form: str = "g") -> str:
    return "–" if value is None else f"{value:{form}}"


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"
