"""The switch through all queries: buttons, a list, and the queries that are unpacked on demand."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from bif.report.answer import shortened
from bif.report.markup import called, escape
from bif.report.source import Source

MAX_QUERIES = 500
"""Queries on one page, each of which takes about two kilobytes of its text."""


def other_queries(source: Source, chosen: Sequence[int]) -> list[int]:
    """Return the queries beside the chosen ones that the page has room for, worst handled first."""
    badness = np.nan_to_num(source.badness(), nan=-np.inf)
    order = [int(q) for q in np.argsort(-badness, kind="stable")]
    return [q for q in order if q not in set(chosen)][: max(0, MAX_QUERIES - len(chosen))]


def switch(source: Source, queries: Sequence[int]) -> str:
    """Return buttons to the next query and back, and a list of all; hidden without the script."""
    options = "".join(
        f'<option value="query-{q}">{escape(_entry(source, q))}</option>' for q in queries
    )
    return (
        '<div class="step" role="group" aria-label="Query">'
        '<button type="button" class="previous" aria-label="Previous query">←</button>'
        f'<select aria-label="Query">{options}</select>'
        '<button type="button" class="next" aria-label="Next query">→</button>'
        f'<span class="under"><span class="place">1</span> of {len(queries):,}; also by the arrow '
        "keys</span></div>"
    )


def packed(articles: Mapping[int, str]) -> str:
    """Return articles of queries, compressed, each of their pictures once; empty without any."""
    if not articles:
        return ""
    pictures: dict[str, int] = {}

    def by_number(found: re.Match[str]) -> str:
        return f'data-picture="{pictures.setdefault(found[1], len(pictures))}"'

    bare = {
        f"query-{q}": re.sub(r'src="(data:[^"]*)"', by_number, text) for q, text in articles.items()
    }
    content = json.dumps({"articles": bare, "pictures": list(pictures)}, separators=(",", ":"))
    data = base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()
    return f'<script type="application/octet-stream" id="more-queries">{data}</script>'


def _entry(source: Source, q: int) -> str:
    items = source.query
    told = [called(items.ids[q], "query")]
    if items.images is None and items.text(q):
        told.append(shortened(items.text(q)))
    wrong = ""
    if items.labels[q]:
        told.append(f"labelled {items.labels[q]}")
        wrong = "✗ " if items.predictions[q] != items.labels[q] else ""
    elif items.targets[q]:
        told.append(f"target {items.targets[q]}")
    if items.predictions[q]:
        told.append(f"{wrong}model says {items.predictions[q]}")
    return " · ".join(told)
