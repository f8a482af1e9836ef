"""The section of queries: each with the training items that move it most, both ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bif.report.markup import (
    escape,
    finite,
    join_words,
    number,
    plural,
    score_and_error,
    shared_exponent,
    unit_text,
)
from bif.report.pictures import image_tag
from bif.report.source import Items, Source, top_k


def queries_section(source: Source, *, chosen: Sequence[int], top: int, how: str) -> str:
    """Return the queries with their foremost items; `how` says how they were chosen."""
    if not chosen:
        return ""
    articles = "".join(_query(source, q, top=top) for q in chosen)
    return (
        '<section aria-labelledby="queries"><h2 id="queries">What moves each query</h2>'
        f"<p>{escape(how)} {_legend(source)}</p>{_chooser(source, chosen)}"
        f"{_toolbar(source)}{articles}</section>"
    )


def item_name(items: Items, index: int) -> str:
    """Return the escaped words for one item, used as alternative text of its picture."""
    noun = "training item" if items.kind == "train" else "query"
    label = f", label {items.labels[index]}" if items.labels[index] else ""
    return escape(f"{noun} {items.ids[index]}{label}")


def picture(items: Items, index: int) -> str:
    """Return the picture of one item, or nothing where it has none."""
    pixels = items.image(index)
    return "" if pixels is None else image_tag(pixels, alt=item_name(items, index))


def _chooser(source: Source, chosen: Sequence[int]) -> str:
    entries = []
    for q in chosen:
        label = source.query.labels[q]
        words = f"<b>{escape(label)}</b> " if label else ""
        entries.append(
            f'<li><a href="#query-{q}">{_without_alt(picture(source.query, q))}'
            f"<span>{words}<small>{escape(source.query.ids[q])}</small></span></a></li>"
        )
    return f'<nav aria-label="Queries"><ul class="chooser">{"".join(entries)}</ul></nav>'


def _without_alt(tag: str) -> str:
    """Empty the alternative text of a picture that stands beside its own words."""
    return tag[: tag.index(' alt="')] + ' alt="">' if tag else ""


def _legend(source: Source) -> str:
    error = "error" if source.solved else "standard error"
    parts = [f"its score with {error}", "label", "id"]
    if not any(source.train.labels):
        parts.remove("label")
    return f"Each training item is shown with {join_words(parts)}."


def _toolbar(source: Source) -> str:
    """Return the buttons that narrow the view; hidden unless the script runs."""
    buttons = "".join(
        f'<button type="button" data-show="{o}" aria-pressed="false">{escape(name)}</button>'
        for o, name in enumerate(source.observables)
    )
    several = len(source.observables) > 1
    switch = (
        '<div class="switch" role="group" aria-label="Observable">'
        f"<span>Influence on</span>{buttons}</div>"
    )
    return (
        f'<div class="toolbar" hidden>{switch if several else ""}'
        '<button type="button" class="all" aria-pressed="false">All queries</button></div>'
    )


def _query(source: Source, q: int, *, top: int) -> str:
    query = source.query
    label = f"label {escape(query.labels[q])}" if query.labels[q] else ""
    several_groups = len(set(query.groups)) > 1
    group = f"group {escape(query.groups[q])}" if several_groups and query.groups[q] else ""
    title = f"Query {escape(query.ids[q])}"
    under = " · ".join(part for part in (label, group) if part)
    values = "".join(
        f'<tr><th scope="row">{escape(name)}{_proxy_note(source, o)}</th>'
        f"<td>{number(source.query_center[o, q])}</td>"
        + ("" if source.solved else f"<td>{number(source.query_mean[o, q])}</td>")
        + "</tr>"
        for o, name in enumerate(source.observables)
    )
    mean = "" if source.solved else '<th scope="col">mean of draws</th>'
    observables = "".join(_observable(source, q, o, top=top) for o in range(len(source.better)))
    return f"""<article class="query" id="query-{q}" aria-labelledby="query-{q}-title">
<header>{picture(query, q)}<div><h3 id="query-{q}-title">{title}</h3>
{f'<p class="under">{under}</p>' if under else ""}<table class="values"><thead><tr><td></td>
<th scope="col">trained weights</th>{mean}</tr></thead>
<tbody>{values}</tbody></table>{_difficulty(source, q)}</div></header>
<div class="observables">{observables}</div></article>"""


def _proxy_note(source: Source, o: int) -> str:
    """Return what an observable was recorded through: its mean is then linearised."""
    proxy = source.through[o]
    return f" <small>through the {escape(proxy)}</small>" if proxy else ""


def _difficulty(source: Source, q: int) -> str:
    badness = source.badness()
    known = badness[np.isfinite(badness)]
    if not np.isfinite(badness[q]) or len(known) < 3:
        return ""
    rank = 1 + int(np.count_nonzero(known > badness[q]))
    return f'<p class="under">Rank {rank:,} of {len(known):,}, worst handled first.</p>'


def _observable(source: Source, q: int, o: int, *, top: int) -> str:
    name, better = escape(source.observables[o]), source.better[o]
    score, error = source.score[o, q], source.error[o, q]
    if better == "":
        plans = [
            (1, "plain", "Most positive", f"more weight on these raises the {name}"),
            (-1, "plain", "Most negative", f"more weight on these lowers the {name}"),
        ]
    else:
        helps = -1 if better == "lower" else 1
        verb = {-1: "lowers", 1: "raises"}
        plans = [
            (helps, "blue", "Most helpful", f"more weight on these {verb[helps]} the {name}"),
            (-helps, "orange", "Most harmful", f"more weight on these {verb[-helps]} the {name}"),
        ]
    # Of a run that is not trusted the strongest are shown, and none is called certain.
    clear = source.clear(score, error) | (not source.trusted)
    certain = np.where(clear, score, 0.0)
    picked = [top_k(certain, sign=sign, top=top) for sign, *_ in plans]
    strongest = [top_k(score, sign=sign, top=top) for sign, *_ in plans]
    left_out = [sum(not clear[i] for i in items) for items in strongest]
    shown = [i for items in picked for i in items]
    exponent = shared_exponent([float(score[i]) for i in shown])
    reach = max((abs(score[i]) + (finite(error[i]) or 0.0) for i in shown), default=1.0)
    several = len(source.observables) > 1
    level = 5 if several else 4
    lists = []
    for (_, tone, title, meaning), items, hidden in zip(plans, picked, left_out, strict=True):
        unit = unit_text(exponent)
        hint = f"{meaning}{f'; scores {unit}' if unit else ''}"
        tiles = "".join(
            _item(source, (o, q, i), exponent=exponent, reach=float(reach)) for i in items
        )
        unsure = (
            f'<p class="under">{plural(hidden, "item")} among the strongest left out: the sign is '
            "not certain.</p>"
            if hidden
            else ""
            if source.trusted
            else '<p class="under">The run is not trusted: no sign is certain.</p>'
        )
        shape = "items" if source.train.images is not None else "items rows"
        body = (
            f'<ol class="{shape} {tone}">{tiles}</ol>'
            if tiles
            else '<p class="under">No item has a certain score of this sign.</p>'
        )
        lists.append(
            f'<h{level} class="list {tone}">{title} <small>{hint}</small></h{level}>{body}{unsure}'
        )
    heading = f'<h4 class="observable">Influence on the {name}</h4>' if several else ""
    return (
        f'<div data-observable="{o}">{heading}{_beyond_linear(source, o, q)}{"".join(lists)}</div>'
    )


def _beyond_linear(source: Source, o: int, q: int) -> str:
    """Return how far the scores of a query differ from their linear parts.

    Empty without any, and for a run that is not trusted.
    """
    if source.linear is None or not source.trusted:
        return ""
    correction, error = source.score[o, q] - source.linear[o, q], source.error[o, q]
    width = source.error_quantile * error
    known = np.isfinite(correction) & np.isfinite(width)
    if not known.any():
        return ""
    equal = np.abs(correction[known]) <= width[known]
    count = int(np.count_nonzero(equal))
    within = number(float(np.median(width[known])))
    words = (
        f"For {count:,} of {plural(int(known.sum()), 'item')} here the Bayesian influence equals"
    )
    rest = (
        "" if count == known.sum() else " For the others the difference, which is what is not "
        "linear, is clear of zero at 95&nbsp;%."
    )  # fmt: skip
    return (
        f'<p class="under">{words} the classical one within ± {within} (in the median).{rest}</p>'
    )


def _parts(source: Source, place: tuple[int, int, int], exponent: int) -> str:
    """Return the linear part of a score and the sampled correction; empty without any."""
    if source.linear is None:
        return ""
    o, q, i = place
    linear, error = float(source.linear[place]), float(source.error[place])
    of_linear, _ = score_and_error(linear, error, exponent=exponent)
    correction, _ = score_and_error(float(source.score[place]) - linear, error, exponent=exponent)
    return f"<span>linear {of_linear}</span><span>sampled {correction}</span>"


def _item(source: Source, place: tuple[int, int, int], *, exponent: int, reach: float) -> str:
    i, score, error = place[2], source.score[place], source.error[place]
    number_text, error_text = score_and_error(score, error, exponent=exponent)
    spread = finite(error)
    return (
        f"<li>{picture(source.train, i)}"
        f"{_bar(abs(score) / reach, (spread or 0.0) / reach)}"
        f'<p class="score"><data value="{score:.6g}">{number_text}</data> '
        f"<span>± {error_text}</span>{_parts(source, place, exponent)}</p>"
        f'<p class="who">{_label(source, i)}<small>{escape(source.train.ids[i])}</small></p>'
        "</li>"
    )


def _label(source: Source, i: int) -> str:
    label = source.train.labels[i]
    if not label:
        return ""
    words = f"<b>{escape(label)}</b> "
    suspects = source.suspects
    if suspects and suspects.relabelled is not None and suspects.relabelled[i]:
        original = suspects.original[i]
        words += f'<i class="moved">{f"was {escape(original)}" if original else "moved"}</i> '
    return words


def _bar(length: float, spread: float) -> str:
    """Return a bar of `length` with a whisker of one error each way, as shares of the track."""
    low, high = max(0.0, length - spread), min(1.0, length + spread)
    whisker = f'<i style="left:{low:.1%};width:{high - low:.1%}"></i>' if spread else ""
    return f'<div class="bar" aria-hidden="true"><b style="width:{length:.1%}"></b>{whisker}</div>'
