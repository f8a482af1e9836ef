"""`docs/scaling.md`, made from `scaling.py`'s JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from page_parts import COLOURS, MADE, NOT_YET, Cell, Run, markdown, png

_SCALING = {
    "shape": "shape", "method": "method", "how": "how", "layout": "memory",
    "seconds_a_draw": "s a draw", "target": "target", "met": "met",
    "share_of_bf16_peak": "share of bf16 peak", "peak_memory_gib": "peak GiB",
    "forecast_gib": "forecast GiB", "warm_up_seconds": "warm-up, s", "fit_seconds": "fit, s",
    "score_seconds": "scores, s", "reason": "why there is no figure, or no faster layout",
}  # fmt: skip


def scaling_page(
    run: Run | None, sweep: Run | None, beyond: Run | None, *, where: Callable[[Any], str],
    cell: Cell, pictured: bool,
) -> str:  # fmt: skip
    """`docs/scaling.md`.

    Args:
        run: Of all shapes, or None.
        sweep: Of items and queries, or None.
        beyond: Of shapes that were measured on another card than `run`, or None.
        where: Command and machine of a run in a sentence.
        cell: A value in a table.
        pictured: Whether there is a picture.
    """
    lines = [
        "# Cost against model size",
        "",
        MADE,
        "",
        "GPT-NeoX with random weights in the shapes of Pythia. One draw is one SGLD step on 16 "
        "sequences and a forward pass over 144, 512 tokens each. Weights are float32 unless the "
        "layout is `lean`, compute is bfloat16, losses are float32. `how` is `eager`, or "
        "`compiled`: every layer by itself, and below 500 million weights the passes are replayed "
        "as CUDA graphs, whose memory counts in the peak. The layout is the fastest that fits: see "
        "[large models](large-models.md).",
        "",
        "FLOPs are counted as 2 a weight without the input embedding, plus causal attention, for "
        "every token scored, and three times that for every token stepped on; the peak is that of "
        "an H100's data sheet. devinterp scores the same sequences with weights in bfloat16; "
        "kronfluence's EK-FAC is fitted to 128 sequences and scores them for 16, linear layers "
        "without the head.",
        "",
    ]
    if run is None:
        command = "python benchmarks/scaling.py --out benchmarks/results --device cuda --forecast"
        return "\n".join([*lines, NOT_YET.format(command=command)]) + "\n"
    lines += [where(run), ""]
    lines += _earlier(run)
    if pictured:
        lines += ["![Cost against model size](images/scaling-weights.png)", ""]
    lines += [*markdown(run["rows"], _SCALING, cell), ""]
    if beyond is not None:
        lines += ["On another card, whose seconds do not compare with those above:", ""]
        lines += [where(beyond), "", *_earlier(beyond)]
        lines += [*markdown(beyond["rows"], _SCALING, cell), ""]
    for found, title in ((run, "Model size"), (sweep, "Items and queries")):
        if found is None:
            continue
        lines += [f"## {title}", "", *([] if found is run else [where(found), ""])]
        if found is not run:
            columns = {"method": "method", "num_items": "items", "num_queries": "queries",
                       "seconds": "seconds", **_SCALING}  # fmt: skip
            lines += [*markdown(found["rows"], columns, cell), ""]
        lines += _laws(found, cell)
    return "\n".join(lines).rstrip() + "\n"


def _earlier(run: Run) -> list[str]:
    """The commands whose rows a run went on from."""
    commands = run.get("earlier_commands")
    if not commands:
        return []
    return ["Rows of earlier commands on the same kind of machine are in it:", "",
            *(f"* `{command}`" for command in commands), ""]  # fmt: skip


def _laws(run: Run, cell: Cell) -> list[str]:
    """Exponents and crossing points in sentences."""
    draws = run.get("draws_of_a_run", 1000)
    lines = [
        f"Least squares in logarithms through the seconds of a whole attribution: {draws:,} draws, "
        "or fit and scores. The fastest row of each size counts.",
        "",
    ]
    for law in run["fits"]["exponents"]:
        error = "" if law["error"] is None or law["error"] != law["error"] else (
            f" ± {law['error']:.2f}"
        )  # fmt: skip
        lines.append(
            f"* {law['method']}: seconds grow as ({_words(law['along'])})^{law['exponent']:.2f}"
            f"{error}, {law['points']} points."
        )
    for met in run["fits"]["crossings"]:
        if not _in_reach(met, run["fits"]["exponents"]):
            continue
        dearer = met["other"] if met["cheaper_below"] == met["method"] else met["method"]
        reach = "within what was measured" if met["measured"] else "extrapolated"
        place = cell(float(format(met["crossing"], ".2g")))
        lines.append(
            f"* {met['cheaper_below']} is cheaper than {dearer} below {place} "
            f"{_words(met['along'])} ({reach})."
        )
    return [*lines, ""]


def _in_reach(met: Mapping[str, Any], laws: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two laws cross no further than a hundredfold from what was measured of both."""
    own = [law for law in laws if law["along"] == met["along"]
           and law["method"] in (met["method"], met["other"])]  # fmt: skip
    low, high = max(law["lowest"] for law in own), min(law["highest"] for law in own)
    return met["crossing"] is not None and low / 100 <= met["crossing"] <= high * 100


def _words(along: str) -> str:
    return along.removeprefix("num_")


def scaling_picture(run: Run) -> bytes:
    """Seconds of a draw and of a whole attribution, and peak memory, over the weights; a PNG.

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
    return png(figure)
