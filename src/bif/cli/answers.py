"""What a run found, in plain words on the terminal: the answer first, figures where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bif import store
from bif.report import answer
from bif.report.answer import shortened
from bif.terminal import escape_controls

if TYPE_CHECKING:
    import xarray as xr

    from bif.results.influence import Influence
    from bif.results.ranking import Ranking, Score
    from bif.results.suspects import Suspects

_SIDES = ("train", "query")
_LONG = 30
"""Characters of a name from which each has a line of its own."""


def say(line: object = "") -> None:
    """Print a line, without what a terminal would obey."""
    print(escape_controls(line))


def print_opening(
    influence: Influence, summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Print what was asked, how far to trust it, and warnings."""
    say(heading(influence))
    say(answer.trust_in_words(summary, manifest))
    print_warnings(manifest)


def heading(influence: Influence) -> str:
    """Return what was asked, in one line."""
    sizes, dataset = influence.dataset.sizes, influence.dataset
    kinds = {side: "tokens of " if f"{side}_item" in dataset.coords else "" for side in _SIDES}
    counts = {side: f"{sizes[side]:,} {kinds[side]}" for side in _SIDES}
    return (
        f"Which of {counts['train']}train items influence {counts['query']}queries, and which way?"
    )


def query_in_words(influence: Influence, query: str) -> str:
    """Return a query's id with its label and what the model says, or its text."""
    dataset = influence.dataset
    place = [str(i) for i in dataset["query_id"].values].index(query)

    def known(name: str) -> str:
        coordinate = dataset.coords.get(f"query_{name}")
        return "" if coordinate is None else str(coordinate.values[place])

    if "query_item" in dataset.coords:
        return answer.query_token_in_words(
            query, text=known("text"), context=_text_of_token(dataset, place)
        )
    names = ("text", "features", "label", "target", "prediction")
    return answer.query_in_words(query, **{name: known(name) for name in names})


def _text_of_token(dataset: xr.Dataset, place: int) -> str:
    """Return the text that a query token stands in; empty where it is not known."""
    pieces = dataset.coords.get("query_parent_tokens")
    if pieces is None:
        return ""
    owner = str(dataset["query_item"].values[place])
    parents = [str(name) for name in dataset["query_parent_id"].values]
    return "".join(json.loads(str(pieces.values[parents.index(owner)])))


def print_answer(
    influence: Influence, queries: Sequence[str], k: int, *, observable: str | None
) -> None:
    """Print which items moved some queries, by name, strongest first.

    Args:
        influence: The scores.
        queries: Ids.
        k: Items on either side.
        observable: The first one by default.
    """
    for query in queries:
        ranking = influence.top(
            query, min(k, influence.kept or k), observable=observable,
            unresolved=not influence.trusted,
        )  # fmt: skip
        say()
        say(query_in_words(influence, ranking.query_id))
        for side, scores in _sides(ranking):
            say(f"  {side:<10}{_names(scores) or 'none for certain'}")
    say()
    say(_reading(influence, observable))


def print_moved_labels(suspects: Suspects, dataset: xr.Dataset) -> None:
    """Print how many of the labels that the demo moved on purpose are found.

    Args:
        suspects: Of the demo's run.
        dataset: With `relabelled` and `original_label` `[N]`.
    """
    original = [str(label) for label in dataset["original_label"].values]
    place = {str(name): i for i, name in enumerate(dataset["train_id"].values)}
    order = np.argsort(-suspects.scores["loss"].values, kind="stable")
    likely = suspects.scores.get("likely_label")
    done, found, beyond = answer.moved_in_words(
        dataset["relabelled"].values.astype(bool)[order],
        [original[i] for i in order],
        None if likely is None else likely.values[order],
    )
    say(f"{done} {found}")
    for item in suspects.mislabelled[:5]:
        true = original[place[item.train_id]]
        told = f"; {item.told}" if item.told else ""
        say(f"  {item.train_id}, labelled {item.label}{told} (it was {true})")
    say(beyond)


def print_figures(summary: Mapping[str, Any]) -> None:
    """Print a table of figures; of a solved run without those of chains."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    solved = summary.get("estimator") == "response"
    for name, value in summary.items():
        if solved and value in (None, 0, []):  # what chains would have
            continue
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        table.add_row(Text(escape_controls(name.replace("_", " "))), Text(escape_controls(shown)))
    Console(soft_wrap=True).print(table)


def print_warnings(manifest: Mapping[str, Any]) -> None:
    """Print a run's warnings, a line each."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    for warning in manifest.get("warnings") or []:
        console.print("warning:", escape_controls(warning), style="yellow", markup=False)


def pages_in_words(out: str) -> str:
    """Return where the page is, and how to see more."""
    place = out.rstrip("/")
    return (
        f"report: {place}/{store.REPORT}\n"
        f"more:   bif show {place} [--query ID] [--suspects] [--verbose]"
    )


def _sides(ranking: Ranking) -> list[tuple[str, tuple[Score, ...]]]:
    if ranking.better:
        return [("helped by", ranking.helpful), ("harmed by", ranking.harmful)]
    return [("raised by", ranking.positive), ("lowered by", ranking.negative)]


def _names(scores: Sequence[Score]) -> str:
    """Return ids with their labels; texts go on lines of their own."""
    names = [s.train_id + (f" ({shortened(s.label)})" if s.label else "") for s in scores]
    long = any(len(name) > _LONG for name in names)
    return ("\n" + " " * 12).join(names) if long else ", ".join(names)


def _reading(influence: Influence, observable: str | None) -> str:
    dataset = influence.dataset
    names = [str(n) for n in dataset["observable"].values]
    name = names[0] if observable is None else observable
    better = str(dataset["better"].sel(observable=name).values)
    what = "tokens" if "train_item" in dataset.coords else "items"
    certain = "only those that are certain, " if influence.trusted else ""
    if not better:
        return (
            f"Raised by: with more weight on these {what} in training, the {name} would rise; "
            f"{certain}strongest first."
        )
    move = "fall" if better == "lower" else "rise"
    return (
        f"Helped by: with more weight on these {what} in training, the query's {name} would {move};"
        f" harmed by: the opposite. Listed are {certain}strongest first."
    )
