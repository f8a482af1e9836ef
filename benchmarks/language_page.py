"""`docs/language-results.md`, made from `language.py`'s JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from page_parts import MADE, NOT_YET, Cell, Run, colour, markdown, png

from bif.benchmark.judge import verdict

_TOKENS = {
    "pairs": "pairs", "columns": "columns", "correlation": "correlation",
    "minus_matched": "minus matched pairs", "ci_low": "95 % from", "ci_high": "to",
    "p_value": "p", "texts": "texts", "num_pairs": "pairs in all", "draws": "draws",
    "reliability": "reliability", "rhat_max": "R-hat", "verdict": "trusted",
}  # fmt: skip
_PLANTED = {
    "method": "method", "query": "asked by", "first": "share at rank 1", "ci_low": "95 % from",
    "ci_high": "to", "median_rank": "median rank", "worst_rank": "worst", "planted": "planted",
    "passages": "of passages", "shared_runs": "runs of 5 words shared", "seconds": "seconds",
    "rhat_max": "R-hat", "verdict": "trusted",
}  # fmt: skip


def language_picture(runs: Sequence[Run]) -> bytes:
    """Means and 95 % intervals of all parts that there are, a panel each; a PNG."""
    from matplotlib.figure import Figure

    parts = _language_parts(runs)
    across = min(2, len(parts))
    down = -(-len(parts) // across)
    figure = Figure(figsize=(5.4 * across, 3.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(parts) :]:
        axes.remove()
    for axes, (part, run, rows) in zip(panels, parts, strict=False):
        title, value, label, control = _PICTURED[part]
        for place, row in enumerate(reversed(rows)):
            grey = control is not None and row[control[0]] == control[1]
            axes.errorbar(
                row[value], place, fmt="o", ms=5, capsize=3,
                xerr=[[row[value] - row["ci_low"]], [row["ci_high"] - row[value]]],
                color="#9ca3af" if grey else colour(row.get("method", "bif")),
            )  # fmt: skip
        names = [", ".join(str(row[key]) for key in label) for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.axvline(0, color="#d1d5db", lw=1, zorder=0)
        axes.set_title(title.format(weights=f"{run['about']['weights']:,}"), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


_PICTURED: Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, str] | None]] = {
    "tokens": ("correlation minus matched pairs", "minus_matched", ("pairs", "columns"),
               ("columns", "shuffled")),
    "planted": ("share at rank 1", "first", ("method", "query"), ("query", "another passage's")),
    "lds": ("LDS of fine-tuning, {weights} weights", "lds", ("method",), None),
}  # fmt: skip
"""Title, value, label and which rows are controls."""


def _language_parts(runs: Sequence[Run]) -> list[tuple[str, Run, list[Mapping[str, Any]]]]:
    """Part, run and its rows of the part, in the order of the page."""
    found = [
        (part, run, [row for row in run["rows"] if row["part"] == part])
        for part in _PICTURED
        for run in runs
    ]
    return [(part, run, rows) for part, run, rows in found if rows]


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
        MADE,
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
        return "\n".join([*lines, NOT_YET.format(command=command)]) + "\n"
    lines += [_trained(runs[0]["about"], cell), ""]
    if pictured:
        lines += ["![Means and 95 % intervals](images/language.png)", ""]
    before = ""
    for part, run, rows in _language_parts(runs):
        if part != before:
            lines += [*_INTRODUCED[part], ""]
        before = part
        if run["about"]["weights"] != runs[0]["about"]["weights"]:
            lines += [_trained(run["about"], cell), ""]
        lines += [where(run), ""]
        if run.get("earlier_commands"):
            earlier = ", ".join(f"`{command}`" for command in run["earlier_commands"])
            lines += [f"Rows of an earlier command on the same networks are in it: {earlier}.", ""]
        if part == "lds":
            # A bank calls a start that is not the checkpoint "scratch".
            rows = [{**row, "target": "the pretrained GPT"} for row in rows]
            lines += [lds_table(rows), *_noise(rows, cell)]
        else:
            rows = [{**row, "verdict": verdict(row)} for row in rows]
            lines += [*markdown(rows, _TOKENS if part == "tokens" else _PLANTED, cell), ""]
    return "\n".join(lines).rstrip() + "\n"


def _trained(about: Mapping[str, Any], cell: Cell) -> str:
    return (
        f"{cell(about['weights'])} weights, {cell(about['documents'])} documents, "
        f"{cell(about['training_steps'])} updates in {about['training_seconds']:.0f} s. Loss a "
        f"token {about['train_loss']:.3f} on train text and {about['held_out_loss']:.3f} on other "
        f"documents: a gap of {about['gap']:.3f} nats."
    )


def _noise(rows: Sequence[Mapping[str, Any]], cell: Cell) -> list[str]:
    """How far from its limit a run of the BIF is, by the reliability of its scores."""
    lines = []
    for row in rows:
        reliability, effective = row.get("reliability"), row.get("ess_median")
        if row["method"] == "bif" and reliability and effective and 0 < reliability < 1:
            half = effective * (1 - reliability) / reliability
            lines.append(
                f"`bif` had {cell(round(effective))} effective draws, and its scores a reliability "
                f"of {reliability:.2f}: for one half it takes about {cell(round(half))}."
            )
    return [*lines, ""]


_INTRODUCED: Mapping[str, tuple[str, ...]] = {
    "tokens": (
        "## Do tokens move their like?",
        "",
        "Pearson correlations of the losses of two tokens over draws, of held-out and train text. "
        "Each pair has a control: a token of the same train text that is as frequent, within a "
        "factor of 2, and belongs to no class of the query's token. Intervals resample query "
        "texts. In `shuffled` the scores' columns are permuted, many times over: its interval "
        "holds 95 % of the permutations, and p is the share of them that are as far from 0 as the "
        "scores.",
    ),
    "planted": (
        "## Does a paraphrase find the passage?",
        "",
        "Held-out passages were copied into the train text. Each is looked for by a paraphrase by "
        "rule: other words, other names, sentences in another order. As a control it is looked "
        "for by the paraphrase of another one.",
    ),
    "lds": (
        "## Does it predict fine-tuning?",
        "",
        "The GPT is fine-tuned on halves of a few passages; methods were tuned on other halves "
        "and queries. `bif` is BAOAB with full gradients, `bif_response` the response estimator, "
        "`bif_minibatch` SGLD with mini-batches, `ekfac` leaves embedding and norms out.",
        "",
        "What limits `bif` here is noise: with far more weights than passages gradients are all "
        "but orthogonal, and a draw tells little of a pair. More damping, which changes what the "
        "scores say by little there, lets it tell more: that is what the default now looks for "
        "([calibration](calibration.md#items-that-hardly-share-a-direction)). A run whose choice "
        "names no gamma/nbeta was made before.",
        "",
        "The response estimator has no such noise: it asks where the minimum of U moves when "
        "passages weigh more, by descent from w* instead of draws where the tuning part prefers "
        "temperature 0. It predicts fine-tuning of the smaller of the two GPTs better than EK-FAC "
        "does, which leaves weights out and takes layers for independent; it takes far longer.",
        "",
        "On the larger it does not, but it was not at its best there: temperature 0, which the "
        "smaller one chose, was tried in the tf32 that a GPU computes in by default, and on the "
        "tuning part came out far below what the gradient product reaches, to which it tends with "
        "damping. Probably tf32 is why: it keeps three digits, and the losses at the two ends of a "
        "pair differ by little. It is float32 by default since, and has not been measured again: "
        "a run with the Gauss-Newton matrix did not come to an end in the time that was left.",
    ),
}
