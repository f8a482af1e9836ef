"""Pictures of a benchmark: LDS against wall-clock, draws, effective draws and subset fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

_COLOURS = {
    "bif": "#c2410c", "bif_response": "#b45309", "bif_auto": "#7c2d12", "ekfac": "#1d4ed8",
    "exact_hessian": "#111827", "exact_ggn": "#6b7280", "cg_ggn": "#9ca3af", "trak": "#15803d",
    "gradient_product": "#7e22ce", "gradient_cosine": "#a855f7", "representation": "#0e7490",
    "random": "#d1d5db",
}  # fmt: skip
_AXES = {
    "seconds": "seconds, set-up and tuning included",
    "draws": "draws",
    "ess_median": "effective draws (median over items)",
    "fraction": "share of the train items in a subset",
    "num_train": "train items",
}


def plots(
    rows: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], *, title: str
) -> dict[str, bytes]:
    """Return PNG files by name, one for every axis that has something to show."""
    made = {"lds-against-seconds": _draw_panels(rows, curves, "seconds", title=title)}
    for axis, name in (("draws", "draws"), ("ess_median", "effective-draws")):
        own = [c for c in curves if axis in c and _is_known(c, axis)]
        if own:
            made[f"lds-against-{name}"] = _draw_panels([], own, axis, title=title)
    for axis, name in (("fraction", "fraction"), ("num_train", "train-items")):
        own = [c for c in curves if axis in c]
        if own:
            made[f"lds-against-{name}"] = _draw_panels([], own, axis, title=title)
    return made


def _is_known(point: Mapping[str, Any], axis: str) -> bool:
    """Return whether a point's place on the axis is known.

    Of a few draws a chain the number of effective draws is not.
    """
    # Underdamped draws can be worth a little more than independent ones, not twice as much.
    return axis != "ess_median" or 0 < point[axis] <= 2 * point.get("draws", point[axis])


def _draw_panels(
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    axis: str,
    *,
    title: str,
) -> bytes:
    """Draw a panel for each target and outcome.

    Methods are points, curves are lines, and the ceiling is dashed.
    """
    from matplotlib.figure import Figure

    everything = [*rows, *(c for c in curves if axis in c)]
    panels = list(dict.fromkeys((e["target"], e["observable"]) for e in everything))
    figure = Figure(figsize=(5.4 * len(panels), 4.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (target, outcome) in zip(all_axes, panels, strict=True):
        for method in dict.fromkeys(e["method"] for e in everything):
            colour = _COLOURS.get(method, "#374151")
            line = sorted(
                (c for c in everything[len(rows) :] if _matches(c, method, target, outcome)),
                key=lambda c: c[axis],
            )
            point = [r for r in rows if _matches(r, method, target, outcome)]
            if line:
                x = [c[axis] for c in line]
                panel.plot(x, [c["lds"] for c in line], "-o", color=colour, ms=3.5, label=method)
                panel.fill_between(
                    x, [c["ci_low"] for c in line], [c["ci_high"] for c in line],
                    color=colour, alpha=0.12, lw=0,
                )  # fmt: skip
            for row in point:
                panel.errorbar(
                    row[axis], row["lds"],
                    [[max(0, row["lds"] - row["ci_low"])], [max(0, row["ci_high"] - row["lds"])]],
                    fmt="s", color=colour, ms=5, capsize=2, label=None if line else method,
                )  # fmt: skip
        ceiling = _ceiling(rows, target, outcome)
        if ceiling is not None:
            panel.axhline(ceiling, ls="--", lw=1, color="#9ca3af")
            panel.annotate(
                "noise ceiling", (0.01, ceiling), xycoords=("axes fraction", "data"),
                va="bottom", fontsize=8, color="#6b7280",
            )  # fmt: skip
        if axis != "fraction":
            panel.set_xscale("log")
        if axis == "seconds":
            _mark_budgets(panel)
        panel.set_title(f"{title}: {outcome}, retrained from {target}", fontsize=10, pad=14)
        panel.set_xlabel(_AXES[axis])
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("LDS")
    all_axes[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _mark_budgets(panel: Any) -> None:
    """Draw a line at 10 seconds, a minute and ten, where they lie on the axis."""
    low, high = panel.get_xlim()
    for budget, words in ((10, "10 s"), (60, "1 min"), (600, "10 min")):
        if low < budget < high:
            panel.axvline(budget, lw=0.8, ls=":", color="#9ca3af")
            panel.annotate(
                words, (budget, 1.0), xycoords=("data", "axes fraction"), ha="center",
                va="bottom", fontsize=7, color="#6b7280", annotation_clip=False,
            )  # fmt: skip


def _matches(entry: Mapping[str, Any], method: str, target: str, outcome: str) -> bool:
    return (entry["method"], entry["target"], entry["observable"]) == (method, target, outcome)


def _ceiling(rows: Sequence[Mapping[str, Any]], target: str, outcome: str) -> float | None:
    found = [r["ceiling"] for r in rows if (r["target"], r["observable"]) == (target, outcome)]
    return found[0] if found and found[0] == found[0] else None
