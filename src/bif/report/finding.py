"""The top of the page: what was found, in a sentence, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bif.report.answer import query_in_words, shortened, trust_in_words
from bif.report.markup import called, escape, plural
from bif.report.overview import excerpt_line
from bif.report.source import Items, Source, top_k

_LONG = 90
"""Characters of a sentence from which it stands in smaller type."""


def named(items: Items, index: int) -> str:
    """Return a train item's id, with its label, its target, or the beginning of what it is."""
    target = f"target {items.targets[index]}" if items.targets[index] else ""
    told = items.labels[index] or target or shortened(items.text(index))
    name = called(items.ids[index], "item")
    return f"{name} ({told})" if told else name


def query_named(source: Source, query: int) -> str:
    """Return a query's id with its text, its label or target and what the model says."""
    items = source.query
    return query_in_words(
        items.ids[query],
        text=items.texts[query],
        features="" if items.targets[query] or items.labels[query] else items.features[query],
        label=items.labels[query],
        target=items.targets[query],
        prediction=items.predictions[query],
    )


def finding(
    source: Source,
    *,
    query: int | None,
    moved: Sequence[str],
    summary: Mapping,
    manifest: Mapping,
    asked: str = "",
    observable: int = 0,
    noun: str = "item",
) -> str:
    """Return the headline: moved labels that were found, or what moves a query, and the trust.

    Args:
        source: What the page is about.
        query: The first query that is shown.
        moved: From `moved_labels`; empty where no label is known to be moved.
        summary: The contents of `summary.json`.
        manifest: The contents of `run.json`.
        asked: The question; that of items and queries by default.
        observable: Whose scores are told.
        noun: What moves a query.
    """
    asked = asked or (
        f"Which of {plural(len(source.train), 'train item')} influence the "
        f"{source.observables[observable]} of {plural(len(source.query), 'query')}, and which way?"
    )
    said = moved[1] if moved else _of_query(source, query, observable, noun)
    beyond = f'<p class="lead">{escape(f"{moved[0]} {moved[2]}")}</p>' if moved else ""
    long = ' class="long"' if len(said) > _LONG else ""
    return (
        f'<p class="asked-for">{escape(asked)}</p><h1{long}>{escape(said)}</h1>{beyond}'
        f'<p class="lead trusted">{escape(trust_in_words(summary, manifest))}</p>'
        f"{excerpt_line(source)}"
    )


def _of_query(source: Source, query: int | None, observable: int, noun: str) -> str:
    if query is None:
        return "There is no query to show."
    subject = query_named(source, query)
    score, error = source.score[observable, query], source.error[observable, query]
    if not source.trusted:
        return f"{subject}: no {noun} moves it for certain."
    certain = np.where(source.clear(score, error), score, 0.0)
    better = source.better[observable]
    helps = 1 if better == "higher" else -1
    verbs = ("helped most by", "harmed most by") if better else ("lowered by", "raised by")
    parts = []
    for sign, verb in ((helps, verbs[0]), (-helps, verbs[1])):
        parts += [f"{verb} {named(source.train, i)}" for i in top_k(certain, sign=sign, top=1)]
    if not parts:
        return f"{subject}: no {noun} moves it for certain."
    return f"{subject}: it is {' and '.join(parts)}."
