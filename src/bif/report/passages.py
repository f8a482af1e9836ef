"""The sections of tokens: each query beside the passages that move it most, and sources."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

import numpy as np

from bif.report.answer import shortened, titled
from bif.report.markup import (
    called,
    escape,
    finite,
    number,
    plural,
    score_and_error,
    shared_exponent,
    unit_text,
)
from bif.report.query_switch import switch
from bif.report.shading import data_block, largest_score, pack_scores, score_list, shaded_text
from bif.report.token_source import MAX_CELLS, TokenSource

_WITHOUT_SIGN = "Of these the sign is not certain:"
_UNTRUSTED = "The run is not trusted: no sign is certain."
MOST_BYTES = 5_000_000
"""Of the queries on a page, beyond which none is added to those with a tab."""
_FEW_WORDS = 3
"""Words at least that several queries begin with, and that their tabs leave out."""
_MAX_SOURCES = 12
"""Columns of the table of sources."""


def reader_section(
    source: TokenSource, *, chosen: Sequence[int], others: Sequence[int], top: int
) -> str:
    """Return the queries, each with its foremost passages; as many as the page has room for.

    Args:
        source: What the page is about.
        chosen: Queries with a tab.
        others: Queries in the list alone, as many as fit.
        top: Passages either way.
    """
    shown, cells, size = [], 0, 0
    articles = []
    for query in [*chosen, *others]:
        kept = _choose_passages(source, query, top=top, room=MAX_CELLS - cells, first=not shown)
        if kept is None or (size > MOST_BYTES and query not in chosen):
            break
        cells += source.num_cells(query, kept[0] + kept[1])
        shown.append(query)
        articles.append(_query(source, query, kept))
        size += len(articles[-1])
    total = plural(len(source.items.query), "query")
    how = "All queries" if len(shown) == len(source.items.query) else f"{len(shown)} of {total}"
    left_out = ""
    if len(shown) < len(chosen) + len(others):
        left_out = (
            f" The page has no room for the others, which would take it beyond "
            f"{MOST_BYTES / 1e6:.0f} MB: bif show DIR --query ID tells of any."
        )
    tabs = [q for q in shown if q in set(chosen)]
    told = _told_apart([source.items.query.texts[q] for q in tabs])
    links = "".join(_tab(source, q, text) for q, text in zip(tabs, told, strict=True))
    nav = f'<nav aria-label="Queries"><ul class="chooser">{links}</ul></nav>'
    more = switch(source.items, shown) if len(shown) > len(tabs) else ""
    return (
        '<section aria-labelledby="queries" class="reader" '
        f'data-helpful="{source.helpful_sign}"><h2 id="queries">Which tokens move which</h2>'
        f"{_toolbar(more)}{nav if len(shown) > 1 else ''}{''.join(articles)}{_legend(source)}"
        f"<p>{how}, each with at most {top} passages either way.{left_out} "
        f"{_how_to_read(source)}</p>"
        "</section>"
    )


def _tab(source: TokenSource, query: int, text: str) -> str:
    """Return the link to a query: what tells its text, its id, and its token if it has only one."""
    words = f"<b>{escape(text)}</b>" if text else ""
    name = called(source.items.query.ids[query], "query")
    tokens, pieces = source.queries.tokens[query], source.queries.pieces[query]
    if len(tokens) == 1 and tokens[0] < len(pieces):
        name += f" · {pieces[tokens[0]].strip()!r}"
    return (
        f'<li><a href="#query-{query}"><span>{words}<small>{escape(name)}</small></span></a></li>'
    )


def _told_apart(texts: Sequence[str]) -> list[str]:
    """Return the beginnings of texts, each from where no other begins the same."""
    words = [text.split() for text in texts]
    found = []
    for i, (text, own) in enumerate(zip(texts, words, strict=True)):
        others = (w for j, w in enumerate(words) if j != i and w != own)
        alike = max((len(commonprefix([own, other])) for other in others), default=0)
        skipped = _FEW_WORDS <= alike < len(own)
        found.append(f"… {shortened(' '.join(own[alike:]))}" if skipped else shortened(text))
    return found


def sources_section(source: TokenSource, *, chosen: Sequence[int]) -> str:
    """Return the influence of every source on the queries; empty without several sources."""
    if source.sources is None or source.sources.sizes["train"] < 2:
        return ""
    names = [str(n) for n in source.sources["train_id"].values]
    score, error = (
        np.asarray(source.sources[n].transpose("observable", "query", "train"))[source.observable]
        for n in ("influence", "standard_error")
    )
    rows = list(chosen)
    strength = np.abs(np.nan_to_num(score[rows])).max(axis=0, initial=0.0)
    order = np.argsort(-strength, kind="stable")[:_MAX_SOURCES]
    exponent = shared_exponent([float(score[q, s]) for q in rows for s in order])
    heads = "".join(f'<th scope="col">{escape(names[s])}</th>' for s in order)
    body = "".join(
        f'<tr><th scope="row">{escape(source.items.query.ids[q])}</th>'
        + "".join(_source_cell(source, score[q, s], error[q, s], exponent) for s in order)
        + "</tr>"
        for q in rows
    )
    more = f" The {len(order)} strongest of {len(names)}." if len(names) > len(order) else ""
    unit = f", {unit_text(exponent)}" if exponent else ""
    return (
        '<section aria-labelledby="sources"><h2 id="sources">Sources</h2><p>Sums over all passages '
        f"of a source, on each query as a whole{unit}, with the standard error of the sum.{more}"
        '</p><div class="scroll" tabindex="0" role="region" aria-label="Sources">'
        f'<table class="signs sources"><thead><tr><th scope="col">Query</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _source_cell(source: TokenSource, score: float, error: float, exponent: int) -> str:
    text, spread = score_and_error(score, error, exponent=exponent)
    sure = np.isfinite(error) and source.items.clear(np.asarray(score), np.asarray(error))
    tone = "blue" if score * source.helpful_sign > 0 else "orange"
    return f'<td class="{tone if sure else ""}">{text}<small> ± {spread}</small></td>'


def _choose_passages(
    source: TokenSource, query: int, *, top: int, room: int, first: bool
) -> tuple[list[int], list[int]] | None:
    """Return passages of both signs, fewer where room is short; None if none fits.

    Those of a certain sign go first.
    """
    for count in range(top, 0, -1):
        sides = [
            sorted(
                source.top_passages(query, sign=s * source.helpful_sign, top=count),
                key=lambda p: not _is_certain(source, query, p),
            )
            for s in (1, -1)
        ]
        if source.num_cells(query, sides[0] + sides[1]) <= room or (first and count == 1):
            return sides[0], sides[1]
    return None


def _query(source: TokenSource, query: int, kept: tuple[list[int], list[int]]) -> str:
    items, o = source.items, source.observable
    passages = kept[0] + kept[1]
    of_first = source.of_passages.select(source.queries.columns[query], passages[:1])
    values = of_first.influence.ravel()
    if not passages:
        values = np.full(len(source.queries.columns[query]), np.nan)
    certain = of_first.certain.ravel() if passages else np.zeros(len(values), bool)
    text = shaded_text(
        source.queries, query, values, certain,
        largest=largest_score([values]), helpful_sign=source.helpful_sign,
    )  # fmt: skip
    block = data_block([_data(source, query, p) for p in passages])
    label = f" · label {escape(items.query.labels[query])}" if items.query.labels[query] else ""
    name = escape(items.query.ids[query])
    text = text or '<span class="none">No text was given with this query.</span>'
    status = "<span>strongest passage</span>" if passages else ""
    value = f"{escape(items.observables[o])} {number(items.query_center[o, query])}"
    return f"""<article class="query reading" id="query-{query}" aria-labelledby="title-{query}">
<header><h3 id="title-{query}">{titled(name)}</h3>
<p class="under">{value} at the trained weights{label}</p></header>
<div class="side asked"><p class="status" data-side="query">Shaded by the influence of: {status}</p>
<div class="text" data-side="query" tabindex="0" role="group" aria-label="Text of query {name}">\
{text}</div></div>
<div class="side"><p class="status" data-side="train">Shaded by the influence on:
<span>the whole query</span></p><div class="both">{_passage_lists(source, query, kept)}</div></div>\
{block}</article>"""


def _passage_lists(source: TokenSource, query: int, kept: tuple[list[int], list[int]]) -> str:
    items, o = source.items, source.observable
    row = items.score[o, query]
    passages = kept[0] + kept[1]
    exponent = shared_exponent([float(row[p]) for p in passages])
    shades = [source.on_queries.select([query], source.passages.columns[p]) for p in passages]
    largest = largest_score([s.influence for s in shades])
    unit = f"; scores {unit_text(exponent)}" if exponent else ""
    titles = {
        "": ("Passages that lower it", "Passages that raise it"),
    }.get(source.better, ("Most helpful passages", "Most harmful passages"))
    parts, place = [], 0
    for tone, title, side in zip(("blue", "orange"), titles, kept, strict=True):
        tiles = {True: "", False: ""}
        for p in side:
            text = shaded_text(
                source.passages, p, shades[place].influence.ravel(), shades[place].certain.ravel(),
                largest=largest, helpful_sign=source.helpful_sign,
            )  # fmt: skip
            certain = _is_certain(source, query, p)
            tiles[certain] += _passage(source, query, p, place, exponent=exponent, text=text)
            place += 1
        body = f'<ol class="passages {tone}">{tiles[True]}</ol>' if tiles[True] else ""
        if tiles[False]:
            body += (
                f'<p class="under">{_WITHOUT_SIGN if items.trusted else _UNTRUSTED}</p>'
                f'<ol class="passages unsure">{tiles[False]}</ol>'
            )
        parts.append(
            f'<div><h4 class="list {tone}">{title} <small>{unit[2:]}</small></h4>'
            f"{body or '<p>None.</p>'}</div>"
        )
    return "".join(parts)


def _passage(
    source: TokenSource, query: int, passage: int, place: int, *, exponent: int, text: str
) -> str:
    items, o = source.items, source.observable
    score, error = float(items.score[o, query, passage]), float(items.error[o, query, passage])
    shown, spread = score_and_error(score, error, exponent=exponent)
    unsure = not _is_certain(source, query, passage)
    about = [
        items.train.labels[passage],
        items.train.groups[passage],
        source.origins[passage],
    ]
    under = " · ".join(escape(x) for x in dict.fromkeys(about) if x)
    name = escape(items.train.ids[passage])
    text = text or '<span class="none">No text was given with this passage.</span>'
    return (
        f'<li class="passage" data-p="{place}"><div class="head"><button type="button" '
        f'class="whole" aria-pressed="{str(place == 0).lower()}">{name}</button>'
        f'<span class="under">{under}</span><p class="score"><data value="{score:.6g}">{shown}'
        f"</data> <span>± {spread}{', sign not certain' if unsure else ''}</span></p></div>"
        f'<div class="text" data-side="train" tabindex="0" role="group" '
        f'aria-label="Text of passage {name}">{text}</div></li>'
    )


def _is_certain(source: TokenSource, query: int, passage: int) -> bool:
    place = (source.observable, query, passage)
    error = source.items.error[place]
    known = finite(error) is not None
    return bool(known and source.items.clear(source.items.score[place], error))


def _data(source: TokenSource, query: int, passage: int) -> dict[str, object]:
    rows, columns = source.queries.columns[query], source.passages.columns[passage]
    return {
        **pack_scores(source.on_tokens.select(rows, columns)),
        "query": score_list(source.of_passages.select(rows, [passage])),
        "train": score_list(source.on_queries.select([query], columns)),
    }


def _how_to_read(source: TokenSource) -> str:
    clicks = []
    if source.queries.by_token:
        clicks.append("a token of the query to see which passages move it")
    if source.passages.by_token:
        clicks.append("a token of a passage to see what it moves in the query")
    clicks.append("a passage's name for all of its tokens together")
    return f"Choose {', '.join(clicks)}; choose it again to let go."


def _legend(source: TokenSource) -> str:
    name = escape(source.items.observables[source.observable])
    low, high = ("lowers", "raises") if source.helpful_sign < 0 else ("raises", "lowers")
    words = ("", "") if source.better == "" else ("helpful: ", "harmful: ")
    return (
        '<p class="legend"><span class="t blue sure" style="--s:45%">'
        f"{words[0]}more weight {low} the {name}</span> "
        '<span class="t orange sure" style="--s:45%">'
        f"{words[1]}more weight {high} the {name}</span> "
        "<span>The stronger the colour, the larger the score. Underlined: the sign is certain "
        "(95&nbsp;%), solid where blue and dashed where orange.</span></p>"
    )


def _toolbar(more: str) -> str:
    """Return the list of queries, if any, and the views."""
    return f'<div class="toolbar" hidden>{more}{_VIEWS}</div>'


_VIEWS = (
    '<div class="switch views" role="group" aria-label="View">'
    '<span>Show</span><button type="button" data-view="influence" aria-pressed="true">influence'
    '</button><button type="button" data-view="correlation" aria-pressed="false">correlation'
    "</button></div>"
)
