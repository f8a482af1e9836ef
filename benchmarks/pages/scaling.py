"""What `docs/scaling.md` shows of the runs of `benchmarks.scaling`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import all_runs
from benchmarks.pages.runs import Run, current_command, describe_run
from benchmarks.pages.sections import PLANNED, SOLVING, cell, rows_as_table

COLOURS = {"bif": "#c2410c", "devinterp": "#1d4ed8", "ekfac": "#15803d"}
_COLUMNS = (
    "shape | method | how | layout=memory | seconds_a_draw=s a draw | target=target | met | "
    "share_of_bf16_peak | peak_memory_gib | forecast_gib | warm_up_seconds=warm-up, s | "
    "fit_seconds=fit, s | score_seconds=scores, s | "
    "reason=why there is no figure, or no faster layout"
)
_OF_ITEMS = f"method | num_items | num_queries | seconds | {_COLUMNS}"


def costs(name: str) -> list[str]:
    """Return where a run was, what it went on from, and its rows."""
    run = all_runs(name)[-1]
    earlier = [f"* `{current_command(command)}`" for command in run.get("earlier_commands", ())]
    if earlier:
        said = "Rows of earlier commands on the same kind of machine are in it:"
        earlier = [said, "", *earlier, ""]
    columns = {"scaling-items": _OF_ITEMS, "scaling-response": SOLVING}.get(name, _COLUMNS)
    picture = ["![Cost against model size](images/scaling-weights.png)", ""]
    return ["", describe_run(run), "", *earlier, *(picture if name == "scaling" else []),
            *rows_as_table(run["rows"], columns), ""]  # fmt: skip


def planned() -> list[str]:
    """Return what runs took beside their plans, on a CPU and, of large models, on a GPU."""
    lines = []
    for run in (all_runs("plans")[-1], all_runs("scaling")[-1]):
        rows = run["rows"] if run["benchmark"] == "plans" else _planned_shapes(run)
        lines += ["", describe_run(run), "", *rows_as_table(rows, PLANNED)]
    return [*lines, ""]


def _planned_shapes(run: Run) -> list[dict[str, Any]]:
    """Return forecast and measurement of the fastest way of each named shape."""
    rows = []
    for shape in ("160M", "1.4B", "6.9B"):
        there = [row for row in run["rows"] if row["shape"] == shape and "forecast_gib" in row]
        best = min(there, key=lambda row: row["seconds_a_draw"])
        for quantity, planned, measured in (
            ("seconds a draw", "forecast_seconds_a_draw", "seconds_a_draw"),
            ("memory, GiB", "forecast_gib", "peak_memory_gib"),
        ):
            ratio = best[planned] / best[measured]
            rows.append({
                "problem": shape, "quantity": quantity, "planned": best[planned],
                "measured": best[measured], "ratio": ratio, "within_a_fifth": abs(ratio - 1) <= 0.2,
            })  # fmt: skip
    return rows


def laws(name: str) -> list[str]:
    """Return exponents and crossing points in sentences."""
    run = all_runs(name)[-1]
    lines = [
        "",
        f"Least squares in logarithms through the seconds of a whole attribution: "
        f"{run['draws_of_a_run']:,} draws, or fit and scores. The fastest row of each size counts.",
        "",
    ]
    for law in run["fits"]["exponents"]:
        error = f" ± {law['error']:.2f}" if cell(law["error"]) != "–" else ""
        along = law["along"].removeprefix("num_")
        lines.append(
            f"* {law['method']}: seconds grow as ({along})^{law['exponent']:.2f}"
            f"{error}, {law['points']} points."
        )
    for met in run["fits"]["crossings"]:
        if not _is_in_reach(met, run["fits"]["exponents"]):
            continue
        dearer = met["other"] if met["cheaper_below"] == met["method"] else met["method"]
        reach = "within what was measured" if met["measured"] else "extrapolated"
        place = cell(float(format(met["crossing"], ".2g")))
        lines.append(
            f"* {met['cheaper_below']} is cheaper than {dearer} below {place} "
            f"{met['along'].removeprefix('num_')} ({reach})."
        )
    return [*lines, ""]


def _is_in_reach(met: Mapping[str, Any], laws: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether two laws cross no further than a hundredfold from what was measured of both."""
    own = [law for law in laws if law["along"] == met["along"]
           and law["method"] in (met["method"], met["other"])]  # fmt: skip
    low, high = max(law["lowest"] for law in own), min(law["highest"] for law in own)
    return met["crossing"] is not None and low / 100 <= met["crossing"] <= high * 100


def figure(run: Run) -> Any:
    """Draw seconds of a draw and of a whole attribution, and peak memory, over the weights.

    The row shown is the fastest of each size and method.

    Of each size and method the fastest row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = {"seconds_a_draw": "seconds a draw", "seconds": "seconds of an attribution",
              "peak_memory_gib": "peak GiB"}  # fmt: skip
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for method, colour in COLOURS.items():
            rows = [r for r in run["rows"] if r["method"] == method and r.get("seconds")]
            # Written from the slowest on: the fastest of each size stays.
            best = {r["weights"]: r.get(key) for r in sorted(rows, key=lambda r: -r["seconds"])}
            x = sorted(weights for weights, value in best.items() if value)
            if x:
                axes.loglog(x, [best[w] for w in x], "o-", color=colour, label=method, ms=4)
        axes.set_xlabel("weights")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return figure
