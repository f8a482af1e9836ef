"""The page as a whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from bif.report.controls import controls_section
from bif.report.evidence import diagnostics_section, provenance_section
from bif.report.finding import finding
from bif.report.markup import escape
from bif.report.overview import folded, made_line, reading_section, trust_line, warnings_box
from bif.report.queries import queries_section
from bif.report.query_switch import other_queries
from bif.report.source import choose_queries, find_queries, read_source
from bif.report.suspects import Suspects, moved_labels, suspects_section
from bif.report.words import words_section

if TYPE_CHECKING:
    import xarray as xr


def render_report(
    influence: xr.Dataset,
    *,
    diagnostics: xr.Dataset,
    summary: Mapping,
    manifest: Mapping,
    queries: Sequence[str] | None = None,
    top: int = 8,
    suspects: Suspects | None = None,
) -> str:
    """Return one self-contained HTML page about a finished or interrupted run.

    The page loads nothing from anywhere, runs without a server, and its content security policy
    admits no script but its own. Values that are missing or not finite appear as a dash.

    Args:
        influence: the dataset of `influence.zarr`: `influence` and `standard_error` on
            (`observable`, `query`, `train`), coordinates `query_id` and `train_id`; labels,
            pictures and `suspicion` are shown where present.
        diagnostics: the dataset of `diagnostics.zarr`; may lack any of its variables.
        summary: the contents of `summary.json`.
        manifest: the contents of `run.json`.
        queries: ids of the queries to show; by default all, 500 at most, eight of them up front:
            the clearest of each group, then the worst handled, the clearest and the best handled.
        top: how many training items to show in each direction.
        suspects: what `bif.Run.suspects` found; shown beside the queries.

    Returns:
        The text of the page, to be written as UTF-8.

    Raises:
        ValueError: a required variable is missing, a query is unknown, or `top` is less than 1.
        ImportError: matplotlib or Pillow is missing (extra `report`).
    """
    if top < 1:
        raise ValueError(f"top is {top}, expected at least 1: the number of items each way.")
    source = read_source(influence)
    if queries is None:
        chosen = choose_queries(source)
        how = _how_chosen(len(chosen), len(source.query))
    else:
        chosen = find_queries(source, queries)
        how = f"{len(chosen)} of {len(source.query):,} queries, as asked for."
    others = [] if queries is not None else other_queries(source, chosen)
    moved = moved_labels(source, suspects)
    asked = [queries_section(source, chosen=chosen, others=others, top=top, how=how)]
    listed = [suspects_section(source, suspects, summary=summary)]
    return assemble_page(
        script="script.js",
        styles=("style.css",),
        manifest=manifest,
        warnings=warnings_box(source, diagnostics=diagnostics, summary=summary, manifest=manifest),
        headline=finding(
            source,
            query=chosen[0] if chosen else None,
            moved=moved,
            summary=summary,
            manifest=manifest,
        ),
        trust="",
        sections=[
            *(listed + asked if moved else asked + listed),
            folded(
                made_line(source, summary=summary),
                trust_line(summary),
                reading_section(source),
                controls_section(source),
                diagnostics_section(diagnostics, summary=summary, manifest=manifest),
                provenance_section(manifest),
            ),
        ],
    )


def assemble_page(
    *,
    script: str | Sequence[str],
    styles: Sequence[str],
    manifest: Mapping,
    warnings: str,
    headline: str,
    trust: str,
    sections: Sequence[str],
    title: str = "Influence report",
    eyebrow: str = "Bayesian influence report",
) -> str:
    """Return a page of finished parts, with a content security policy for its one script.

    Below them all stand the words that need explaining.

    Args:
        script: The file of the script, or its parts in their order.
        styles: The files of the style sheets.
        manifest: Names the version.
        warnings: The box above the headline.
        headline: The sentence on what was computed.
        trust: The figures that say how far to trust the scores.
        sections: The rest, in order; empty ones leave no trace.
        title: Of the window.
        eyebrow: The kind of page, above the headline.
    """
    parts = (script,) if isinstance(script, str) else script
    code = "\n".join(_read_asset(part) for part in parts)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    words = words_section([warnings, headline, trust, *sections])
    version = manifest.get("versions")
    version = version.get("bif") if isinstance(version, Mapping) else None
    return Template(_read_asset("page.html")).substitute(
        title=escape(title),
        eyebrow=escape(eyebrow),
        script=code,
        script_hash=digest,
        style="\n".join(_read_asset(name) for name in styles),
        warnings=warnings,
        headline=headline,
        trust=trust,
        sections="\n".join(section for section in [*sections, words] if section),
        version=f"bif {escape(version)}" if version else "bif",
    )


def _how_chosen(shown: int, total: int) -> str:
    if shown == total:
        return "All queries, the worst handled first."
    return (
        f"{shown} of {total:,} queries to begin with: the clearest of each group, the worst and "
        "the best handled, and others with clear scores; the worst handled first."
    )


def _read_asset(name: str) -> str:
    text = (resources.files("bif.report") / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n").strip()
