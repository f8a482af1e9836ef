"""Pages of the documentation made from `scaling.py`'s and `language.py`'s JSON files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from common import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Mapping[str, Any]
Cell = Callable[[Any], str]
_MADE = (
    "Made by `python benchmarks/tables.py` from the dated JSON files of `benchmarks/results/`, "
    "which hold full settings, versions and hardware."
)
_NOT_YET = (
    "!!! note\n    Not measured on a GPU yet: there is no such file in `benchmarks/results/`, and "
    "no number is written here by hand. The command is\n    `{command}`."
)
_COLOURS = {"bif": "#c2410c", "devinterp": "#1d4ed8", "ekfac": "#15803d"}
_SCALING = {
    "shape": "shape", "method": "method", "how": "how", "layout": "memory",
    "seconds_a_draw": "s a draw", "target": "target", "met": "met",
    "share_of_bf16_peak": "share of bf16 peak", "peak_memory_gib": "peak GiB",
    "forecast_gib": "forecast GiB", "warm_up_seconds": "warm-up, s", "fit_seconds": "fit, s",
    "score_seconds": "scores, s", "reason": "why there is no figure, or no faster layout",
}  # fmt: skip
_TOKENS = {
    "pairs": "pairs", "columns": "columns", "correlation": "correlation",
    "minus_matched": "minus matched pairs", "ci_low": "95 % from", "ci_high": "to",
    "p_value": "p", "texts": "texts", "num_pairs": "pairs in all", "draws": "draws",
    "reliability": "reliability",
    "trusted": "trusted",
}  # fmt: skip
_PLANTED = {
    "method": "method", "query": "asked by", "first": "share at rank 1", "ci_low": "95 % from",
    "ci_high": "to", "median_rank": "median rank", "worst_rank": "worst", "planted": "planted",
    "passages": "of passages", "shared_runs": "runs of 5 words shared", "seconds": "seconds",
    "trusted": "trusted",
}  # fmt: skip


def scaling_page(
    run: Run | None, sweep: Run | None, *, where: Callable[[Any], str], cell: Cell, pictured: bool
) -> str:
    """`docs/scaling.md`.

    Args:
        run: Of all shapes, or None.
        sweep: Of items and queries, or None.
        where: Command and machine of a run in a sentence.
        cell: A value in a table.
        pictured: Whether there is a picture.
    """
    lines = [
        "# Cost against model size",
        "",
        _MADE,
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
        return "\n".join([*lines, _NOT_YET.format(command=command)]) + "\n"
    lines += [where(run), ""]
    if run.get("earlier_commands"):
        lines += ["Rows of earlier commands on the same kind of machine are in it:", ""]
        lines += [*(f"* `{command}`" for command in run["earlier_commands"]), ""]
    if pictured:
        lines += ["![Cost against model size](images/scaling-weights.png)", ""]
    lines += [*_table(run["rows"], _SCALING, cell), ""]
    for found, title in ((run, "Model size"), (sweep, "Items and queries")):
        if found is None:
            continue
        lines += [f"## {title}", "", *([] if found is run else [where(found), ""])]
        if found is not run:
            columns = {"method": "method", "num_items": "items", "num_queries": "queries",
                       "seconds": "seconds", **_SCALING}  # fmt: skip
            lines += [*_table(found["rows"], columns, cell), ""]
        lines += _laws(found, cell)
    return "\n".join(lines).rstrip() + "\n"


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
        for method, colour in _COLOURS.items():
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
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _colour(method: str) -> str:
    """Of a method; all forms of the BIF share theirs."""
    return _COLOURS["bif"] if method.startswith("bif") else _COLOURS.get(method, "#475569")


def language_picture(runs: Sequence[Run]) -> bytes:
    """Means and 95 % intervals of all parts that there are, a panel each; a PNG."""
    from matplotlib.figure import Figure

    parts = _language_parts(runs)
    figure = Figure(figsize=(4.6 * len(parts), 3.6), layout="constrained")
    for axes, (part, (_, rows)) in zip(
        figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True
    ):
        title, value, label, control = _PICTURED[part]
        for place, row in enumerate(reversed(rows)):
            grey = control is not None and row[control[0]] == control[1]
            axes.errorbar(
                row[value], place, fmt="o", ms=5, capsize=3,
                xerr=[[row[value] - row["ci_low"]], [row["ci_high"] - row[value]]],
                color="#9ca3af" if grey else _colour(row.get("method", "bif")),
            )  # fmt: skip
        names = [", ".join(str(row[key]) for key in label) for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.axvline(0, color="#d1d5db", lw=1, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


_PICTURED: Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, str] | None]] = {
    "tokens": ("correlation minus matched pairs", "minus_matched", ("pairs", "columns"),
               ("columns", "shuffled")),
    "planted": ("share at rank 1", "first", ("method", "query"), ("query", "another passage's")),
    "lds": ("LDS of fine-tuning", "lds", ("method",), None),
}  # fmt: skip
"""Title, value, label and which rows are controls."""


def _language_parts(runs: Sequence[Run]) -> dict[str, tuple[Run, list[Mapping[str, Any]]]]:
    """The rows of each part, and the run that they are of."""
    found = {}
    for part in _PICTURED:
        for run in runs:
            rows = [row for row in run["rows"] if row["part"] == part]
            if rows:
                found[part] = run, rows
    return found


def language_page(
    runs: Sequence[Run], *, where: Callable[[Any], str], cell: Cell,
    lds_table: Callable[[Sequence[Mapping[str, Any]]], str], pictured: bool,
) -> str:  # fmt: skip
    """`docs/language-results.md`.

    Args:
        runs: Of `language.py`: they may divide the parts among them.
        where: Command and machine of a run in a sentence.
        cell: A value in a table.
        lds_table: Rows of LDS as a table.
        pictured: Whether there is a picture.
    """
    lines = [
        "# Measured on real text",
        "",
        _MADE,
        "",
        "A byte-level BPE and a small GPT are trained on WikiText-2 and TinyStories and attributed "
        "in the same seeded call. The posterior's losses are those of the scored passages, a "
        "sample of what the model was trained on. Runs that failed a "
        "[gate](converged.md) say so.",
        "",
    ]
    runs = [run for run in runs if not run.get("tiny")]
    if not runs:
        command = "python benchmarks/language.py --data DIR --out benchmarks/results --device cuda"
        return "\n".join([*lines, _NOT_YET.format(command=command)]) + "\n"
    about, by_part = runs[0]["about"], _language_parts(runs)
    lines += [
        f"{cell(about['weights'])} weights, {cell(about['documents'])} documents, "
        f"{cell(about['training_steps'])} updates in {about['training_seconds']:.0f} s. Loss a "
        f"token {about['train_loss']:.3f} on train text and {about['held_out_loss']:.3f} on other "
        f"documents: a gap of {about['gap']:.3f} nats.",
        "",
    ]
    if pictured:
        lines += ["![Means and 95 % intervals](images/language.png)", ""]
    if "tokens" in by_part:
        run, rows = by_part["tokens"]
        lines += [
            "## Do tokens move their like?",
            "",
            "Pearson correlations of the losses of two tokens over draws, of held-out and train "
            "text. Each pair has a control: a token of the same train text that is as frequent, "
            "within a factor of 2, and belongs to no class of the query's token. Intervals "
            "resample query texts. In `shuffled` the scores' columns are permuted, many times over: "
            "its interval holds 95 % of the permutations, and p is the share of them that are as "
            "far from 0 as the scores.",
            "",
            where(run),
            "",
            *_table(rows, _TOKENS, cell),
            "",
        ]
    if "planted" in by_part:
        run, rows = by_part["planted"]
        lines += [
            "## Does a paraphrase find the passage?",
            "",
            "Held-out passages were copied into the train text. Each is looked for by a paraphrase "
            "by rule: other words, other names, sentences in another order. As a control it is "
            "looked for by the paraphrase of another one.",
            "",
            where(run),
            "",
            *_table(rows, _PLANTED, cell),
            "",
        ]
    if "lds" in by_part:
        run, rows = by_part["lds"]
        lines += [
            "## Does it predict fine-tuning?",
            "",
            "The GPT is fine-tuned on halves of a few passages; methods were tuned on other halves "
            "and queries. `bif` is BAOAB with full gradients, `bif_minibatch` SGLD with "
            "mini-batches, `ekfac` leaves embedding and norms out.",
            "",
            where(run),
            "",
            lds_table(rows),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], cell: Cell) -> list[str]:
    keys = [key for key in columns if any(row.get(key) not in (None, "") for row in rows)]
    return [
        "| " + " | ".join(columns[key] for key in keys) + " |",
        "|" + " --- |" * len(keys),
        *("| " + " | ".join(_escaped(cell(row.get(key))) for key in keys) + " |" for row in rows),
    ]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|") or "–"


def at_a_glance(runs: Mapping[str, dict[str, Any]], page: str) -> list[str]:
    """The BIF beside EK-FAC on every setting, by the loss: LDS, difference, ceiling, seconds.

    Args:
        runs: Setting -> its newest run.
        page: Address of the page with all methods, whose sections are the settings.
    """
    lines = [
        "| setting | retrained from | BIF | EK-FAC | difference, 95 % | ceiling | BIF, seconds "
        "| EK-FAC, seconds | on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, run in runs.items():
        rows = {(r["method"], r["target"]): r for r in run["rows"] if r["observable"] == "loss"}
        for (method, target), bif in rows.items():
            rival = rows.get(("ekfac", target))
            if method != "bif" or rival is None:
                continue
            low, high = bif["minus_ekfac_low"], bif["minus_ekfac_high"]
            ceiling = "–" if bif["ceiling"] is None else f"{bif['ceiling']:.2f}"
            lines.append(
                f"| [{setting}]({page}#{setting}) | {target} | {bif['lds']:.3f} "
                f"| {rival['lds']:.3f} | {low:+.3f} to {high:+.3f} | {ceiling} "
                f"| {bif['seconds']:.3g} | {rival['seconds']:.3g} | {machine(run)} |"
            )
    return lines


def beside_sweeps(runs: Iterable[dict[str, Any]]) -> list[str]:
    """The defaults and `bif.tune` beside the best of 48 settings, each with the same seconds.

    Args:
        runs: Of `sweep.py`, one a setting.
    """
    lines = [
        "| setting | seconds | on | defaults | `bif.tune` | best of 48 | its nbeta | its gamma |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        rows = [row for row in run["sweep"] if "lds" in row]
        best = max((r for r in rows if r["name"] == "sweep"), key=lambda r: r["lds"])
        found = {r["name"]: _of_best(r, best) for r in rows}
        lines.append(
            f"| {run['benchmark'].removeprefix('sweep-')} | {run['budget']:g} | {machine(run)} "
            f"| {found.get('defaults', '–')} | {found.get('tuned', '–')} | {best['lds']:.3f} "
            f"| {best['nbeta/n']:g} n | {best['damping']:g} × default |"
        )
    return lines


def _of_best(row: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """LDS, and its share of the best."""
    return f"{row['lds']:.3f} ({row['lds'] / best['lds']:.1%})"


def ways_to_be_calibrated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """LDS of the defaults and of `bif.tune`, and its share of the best of the sweep.

    Args:
        rows: Of `tuning.py`.
    """
    names = ("defaults", "tuned", "best of the sweep")
    lines = [
        "| setting | seconds | defaults | `bif.tune` | best of the sweep |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting, budget in dict.fromkeys((row["setting"], row["budget"]) for row in rows):
        here = (setting, budget)
        found = {r["name"]: r for r in rows if (r["setting"], r["budget"]) == here and "lds" in r}
        best = found[names[-1]]
        shares = [_of_best(found[n], best) if n in found else "–" for n in names[:-1]]
        lines.append(f"| {setting} | {budget:g} | {shares[0]} | {shares[1]} | {best['lds']:.3f} |")
    return lines
