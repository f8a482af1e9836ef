"""The page of tokens as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bif.report.evidence import diagnostics_section, provenance_section
from bif.report.finding import finding
from bif.report.markup import plural
from bif.report.overview import folded, made_line, reading_section, trust_line, warnings_box
from bif.report.page import assemble_page
from bif.report.passages import reader_section, sources_section
from bif.report.query_switch import other_queries
from bif.report.source import choose_queries, find_queries
from bif.report.token_source import TokenSource, read_token_source

if TYPE_CHECKING:
    import xarray as xr


def render_token_report(
    influence: xr.Dataset,
    *,
    summed: Mapping[str, xr.Dataset],
    diagnostics: xr.Dataset,
    summary: Mapping,
    manifest: Mapping,
    queries: Sequence[str] | None = None,
    top: int = 4,
    observable: str | None = None,
) -> str:
    """Return one self-contained HTML page about a run whose rows or columns are tokens.

    Each query stands beside the passages that move it most, their tokens shaded by influence on the
    query or on one of its tokens; and the query's tokens by the influence of a passage or of one of
    its tokens.  The page holds the scores of these passages only, loads nothing from anywhere, and
    its content security policy admits no script but its own.

    Args:
        influence: the dataset of a run of `Problem(tokens=…)`.
        summed: its sums: `Influence.by_item("train")` as "train", `by_item("query")` as "query",
            `by_item()` as "both"; and, where there are sources, sums over them on whole queries as
            "sources".
        diagnostics: the dataset of `diagnostics.zarr`; may lack any of its variables.
        summary: the contents of `summary.json`.
        manifest: the contents of `run.json`.
        queries: ids of the queries to show; by default all that fit 5 MB, eight with a tab.
        top: how many passages to show in each direction; fewer of long ones.
        observable: the first one by default.

    Returns:
        The text of the page, to be written as UTF-8.

    Raises:
        ValueError: scores without tokens, sums that are missing, an unknown query or observable, or
            `top` less than 1.
        ImportError: matplotlib is missing (extra `report`).
    """
    if top < 1:
        raise ValueError(f"top is {top}, expected at least 1: the number of passages each way.")
    source = read_token_source(influence, summed, observable=observable)
    items = source.items
    chosen = choose_queries(items) if queries is None else find_queries(items, queries)
    others = [] if queries is not None else other_queries(items, chosen)
    by_token = source.passages.by_token and not items.trusted
    return assemble_page(
        script="tokens.js",
        styles=("style.css", "tokens.css"),
        manifest=manifest,
        warnings=warnings_box(items, diagnostics=diagnostics, summary=summary, manifest=manifest),
        headline=finding(
            items,
            query=chosen[0] if chosen else None,
            moved=[],
            summary=summary,
            manifest=manifest,
            asked=_asked(source),
            observable=source.observable,
            noun="token" if by_token else "passage",
        ),
        trust="",
        sections=[
            reader_section(source, chosen=chosen, others=others, top=top),
            sources_section(source, chosen=chosen),
            folded(
                made_line(items, summary=summary),
                trust_line(summary),
                reading_section(items),
                diagnostics_section(diagnostics, summary=summary, manifest=manifest),
                provenance_section(manifest),
            ),
        ],
    )


def _asked(source: TokenSource) -> str:
    """Return the question, with the number of tokens of how many items."""
    items = source.items
    sides = []
    for texts, noun in ((source.passages, "training passage"), (source.queries, "query")):
        whole, tokens = plural(len(texts.columns), noun), sum(map(len, texts.columns))
        sides.append(f"{plural(tokens, 'token')} of {whole}" if texts.by_token else whole)
    name = items.observables[source.observable]
    return f"Which of {sides[0]} influence the {name} of {sides[1]}, and which way?"
