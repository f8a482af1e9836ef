"""The section of queries: each with the training items that move it most, both ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bif.report.answer import shortened, titled
from bif.report.markup import (
    called,
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
from bif.report.query_switch import packed, switch
from bif.report.source import Items, Source, top_k

_PARTS = (
    "Each bar has two parts. Solid: the linear part, the classical influence, which is solved for. "
    "Hatched: the sampled correction, which is what is not linear."
)
_UNTRUSTED = '<p class="under">The run is not trusted: no sign is certain.</p>'


def queries_section(
    source: Source, *, chosen: Sequence[int], others: Sequence[int], top: int, how: str
) -> str:
    """Return the queries with their foremost items; `how` says how the chosen ones were.

    Args:
        source: What the page is about.
        chosen: Queries that are there without the script, too.
        others: Queries that the script unpacks.
        top: Items either way.
        how: A sentence.
    """
    if not chosen:
        return ""
    articles = "".join(_query(source, q, top=top) for q in chosen)
    left_out = len(source.query) - len(chosen) - len(others)
    more = (
        f" The page has no room for {left_out:,} more: bif show DIR --query ID."
        if others and left_out
        else ""
    )
    return (
        '<section aria-labelledby="queries"><h2 id="queries">What moves each query</h2>'
        f"{_toolbar(source, [*chosen, *others])}{_chooser(source, chosen)}"
        f'<div class="articles">{articles}</div>'
        f'<p class="under">{escape(how + more)} {_legend(source)}</p>'
        f"{packed({q: _query(source, q, top=top) for q in others})}</section>"
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
        items = source.query
        label = items.labels[q] or items.targets[q] or shortened(items.text(q))
        words = f"<b>{escape(label)}</b> " if label else ""
        entries.append(
            f'<li><a href="#query-{q}">{_without_alt(picture(source.query, q))}'
            f"<span>{words}<small>{escape(called(items.ids[q], 'query'))}</small></span></a></li>"
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


def _toolbar(source: Source, queries: Sequence[int]) -> str:
    """Return the buttons that narrow the view; hidden unless the script runs."""
    buttons = "".join(
        f'<button type="button" data-show="{o}" aria-pressed="false">{escape(name)}</button>'
        for o, name in enumerate(source.observables)
    )
    several = len(source.observables) > 1
    observable = (
        '<div class="switch" role="group" aria-label="Observable">'
        f"<span>Influence on</span>{buttons}</div>"
    )
    return (
        f'<div class="toolbar" hidden>{switch(source, queries) if len(queries) > 1 else ""}'
        f"{observable if several else ''}</div>"
    )


def _query(source: Source, q: int, *, top: int) -> str:
    query = source.query
    text = f'<p class="what">{escape(query.text(q))}</p>' if query.text(q) else ""
    label = _label_and_prediction(query, q)
    several_groups = len(set(query.groups)) > 1
    group = f"group {escape(query.groups[q])}" if several_groups and query.groups[q] else ""
    title = escape(titled(query.ids[q]))
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
{f'<p class="under">{under}</p>' if under else ""}{text}<table class="values"><thead><tr><td></td>
<th scope="col">trained weights</th>{mean}</tr></thead>
<tbody>{values}</tbody></table>{_difficulty(source, q)}</div></header>
<div class="observables">{observables}</div></article>"""


def _label_and_prediction(query: Items, q: int) -> str:
    """Return a query's label or target, and beside it what the model says."""
    label, target, said = (escape(x[q]) for x in (query.labels, query.targets, query.predictions))
    words = f"label {label}" if label else f"target {target}" if target else ""
    if not words or not said:
        return words
    tone = ' class="wrong"' if label and said != label else ""
    return f"{words}, <span{tone}>model says {said}</span>"


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
    unsure = [[i for i in items if not clear[i]] for items in strongest]
    shown = [i for items in picked + unsure for i in items]
    exponent = shared_exponent([float(score[i]) for i in shown])
    reach = max((abs(score[i]) + (finite(error[i]) or 0.0) for i in shown), default=1.0)
    if source.linear is not None:
        reach = max([reach, *(abs(float(source.linear[o, q, i])) for i in shown)])
    several = len(source.observables) > 1
    level = 5 if several else 4
    lists = []
    shape = "items" if source.train.images is not None else "items rows"

    def tiles(items: list[int]) -> str:
        return "".join(
            _item(source, (o, q, i), exponent=exponent, reach=float(reach)) for i in items
        )

    unit = unit_text(exponent)
    for (_, tone, title, meaning), items, hidden in zip(plans, picked, unsure, strict=True):
        hint = f"{meaning}{f'; scores {unit}' if unit else ''}"
        more = "" if source.trusted else _UNTRUSTED
        if hidden:
            more = (
                f"<details><summary>{plural(len(hidden), 'item')} among the strongest left out: "
                f'the sign is not certain</summary><ol class="{shape} unsure">{tiles(hidden)}</ol>'
                "</details>"
            )
        body = (
            f'<ol class="{shape} {tone}">{tiles(items)}</ol>'
            if items
            else '<p class="under">No item has a certain score of this sign.</p>'
        )
        lists.append(
            f'<h{level} class="list {tone}">{title} <small>{hint}</small></h{level}>{body}{more}'
        )
    heading = f'<h4 class="observable">Influence on the {name}</h4>' if several else ""
    return (
        f'<div data-observable="{o}">{heading}{_beyond_linear(source, o, q)}{"".join(lists)}</div>'
    )


def _beyond_linear(source: Source, o: int, q: int) -> str:
    """Return what the two parts of a bar are, and how far the scores differ from the linear one.

    Empty without a linear part; of a run that is not trusted, what the parts are.
    """
    if source.linear is None:
        return ""
    if not source.trusted:
        return f'<p class="under">{_PARTS}</p>'
    correction, error = source.score[o, q] - source.linear[o, q], source.error[o, q]
    width = source.error_quantile * error
    known = np.isfinite(correction) & np.isfinite(width)
    if not known.any():
        return f'<p class="under">{_PARTS}</p>'
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
        f'<p class="under">{_PARTS} {words} the classical one within ± {within} (in the median).'
        f"{rest}</p>"
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
        f"{_bar(abs(score) / reach, (spread or 0.0) / reach, linear=_linear(source, place, reach))}"
        f'<p class="score"><data value="{score:.6g}">{number_text}</data> '
        f"<span>± {error_text}</span>{_parts(source, place, exponent)}</p>"
        f'<p class="who">{_label(source, i)}{_text(source, i)}'
        f"<small>{escape(called(source.train.ids[i], 'item'))}</small></p>"
        "</li>"
    )


def _label(source: Source, i: int) -> str:
    label, target = source.train.labels[i], source.train.targets[i]
    if not label:
        return f"<b>target {escape(target)}</b> " if target else ""
    words = f"<b>{escape(label)}</b> "
    suspects = source.suspects
    if suspects and suspects.relabelled is not None and suspects.relabelled[i]:
        original = suspects.original[i]
        words += f'<i class="moved">{f"was {escape(original)}" if original else "moved"}</i> '
    return words


def _text(source: Source, i: int) -> str:
    """Return the beginning of a train item's text, or its features; empty without any."""
    text = shortened(source.train.text(i))
    return f'<span class="what">{escape(text)}</span> ' if text else ""


def _linear(source: Source, place: tuple[int, int, int], reach: float) -> float | None:
    """Return the linear part in the direction of the score, as a share of the track, if any."""
    if source.linear is None:
        return None
    share = float(source.linear[place]) * float(np.sign(source.score[place])) / reach
    return share if np.isfinite(share) else None


def _bar(length: float, spread: float, *, linear: float | None = None) -> str:
    """Return a bar of `length` with a whisker of one error each way, as shares of the track.

    Where the linear part is known, what was sampled, from there to the score, is hatched.
    """
    low, high = max(0.0, length - spread), min(1.0, length + spread)
    whisker = f'<i style="left:{low:.1%};width:{high - low:.1%}"></i>' if spread else ""
    solid, sampled = length, ""
    if linear is not None:
        start, end = sorted((max(0.0, linear), length))
        solid = start
        sampled = f'<u style="left:{start:.1%};width:{end - start:.1%}"></u>'
    return (
        f'<div class="bar" aria-hidden="true"><b style="width:{solid:.1%}"></b>{sampled}{whisker}'
        "</div>"
    )
