"""What `docs/language-results.md` shows of the runs of `benchmarks.language`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.runs import Run, current_command, describe_run, language_runs
from benchmarks.pages.scaling import COLOURS
from benchmarks.pages.sections import cell, rows_as_table
from bif.benchmark import judge

_COLUMNS = {
    "tokens": "pairs | columns | correlation | minus_matched=minus matched pairs | ci_low | "
    "ci_high | p_value=p | texts | num_pairs=pairs in all | draws | reliability | rhat_max | "
    "verdict",
    "planted": "method | query=asked by | first=share at rank 1 | ci_low | ci_high | "
    "median_rank | worst_rank=worst | planted | passages=of passages | "
    "shared_runs=runs of 5 words shared | seconds | rhat_max | verdict",
}
_PANELS: Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, str] | None]] = {
    "tokens": ("correlation minus matched pairs", "minus_matched", ("pairs", "columns"),
               ("columns", "shuffled")),
    "planted": ("share at rank 1", "first", ("method", "query"), ("query", "another passage's")),
    "lds": ("LDS of fine-tuning, {weights} weights", "lds", ("method",), None),
}  # fmt: skip
"""Title, value, label and which rows are controls."""


def training_line() -> list[str]:
    """Return how the model was trained on which most was measured."""
    return ["", _how_trained(language_runs()[0]["about"]), ""]


def part(name: str) -> list[str]:
    """Return the runs of a part, each with its rows."""
    lines = [""]
    for _, run, rows in _parts(name):
        about = run["about"]
        if about["weights"] != language_runs()[0]["about"]["weights"]:
            lines += [_how_trained(about), ""]
        lines += [describe_run(run), ""]
        earlier = ", ".join(
            f"`{current_command(command)}`" for command in run.get("earlier_commands", ())
        )
        if earlier:
            lines += [f"Rows of an earlier command on the same networks are in it: {earlier}.", ""]
        if name in _COLUMNS:
            lines += [*rows_as_table(rows, _COLUMNS[name]), ""]
        else:
            # A bank calls a start that is not the checkpoint "scratch".
            rows = [{**row, "target": "the pretrained GPT"} for row in rows]
            lines += [judge.table(rows), *_noise(rows), ""]
    return lines


def _parts(*names: str) -> list[tuple[str, Run, Sequence[Mapping[str, Any]]]]:
    """Return part, run and its rows of the part, in the order of the page."""
    found = [(name, run, [row for row in run["rows"] if row["part"] == name])
             for name in names for run in language_runs()]  # fmt: skip
    return [(name, run, rows) for name, run, rows in found if rows]


def _how_trained(about: Mapping[str, Any]) -> str:
    return (
        f"{cell(about['weights'])} weights, {cell(about['documents'])} documents, "
        f"{cell(about['training_steps'])} updates in {about['training_seconds']:.0f} s. Loss a "
        f"token {about['train_loss']:.3f} on train text and {about['held_out_loss']:.3f} on other "
        f"documents: a gap of {about['gap']:.3f} nats."
    )


def _noise(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how far from its limit a run of the BIF is, by the reliability of its scores."""
    lines = []
    for row in rows:
        reliability, effective = row.get("reliability"), row.get("ess_median")
        if row["method"] == "bif" and reliability and effective and 0 < reliability < 1:
            half = effective * (1 - reliability) / reliability
            lines.append(
                f"`bif` had {cell(round(effective))} effective draws, and its scores a reliability "
                f"of {reliability:.2f}: for one half it takes about {cell(round(half))}."
            )
    return lines


def figure() -> Any:
    """Draw means and 95 % intervals of all parts that there are, a panel each."""
    from matplotlib.figure import Figure

    parts = _parts(*_PANELS)
    across = min(2, len(parts))
    down = -(-len(parts) // across)
    figure = Figure(figsize=(5.4 * across, 3.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(parts) :]:
        axes.remove()
    for axes, (name, run, rows) in zip(panels, parts, strict=False):
        title, value, label, control = _PANELS[name]
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
        axes.set_title(title.format(weights=f"{run['about']['weights']:,}"), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colour(method: str) -> str:
    """Return the colour of a method; all forms of the BIF share theirs."""
    return (
        COLOURS["bif"] if method.startswith(("bif", "solver")) else COLOURS.get(method, "#475569")
    )
