"""The page of influence over the checkpoints of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.report.markup import (
    called,
    escape,
    facts,
    notes_section,
    number,
    plural,
    score_and_error,
    shared_exponent,
    unit_text,
)
from bif.report.page import assemble_page

if TYPE_CHECKING:
    import xarray as xr

MOST_QUERIES = 50
"""Queries on the page: those whose scores are largest."""
MOST_ITEMS = 24
"""Train items of a query on the page: those whose scores are largest at any checkpoint."""
_DIGITS = 4
"""Significant digits of a number in the page."""


def render_trajectory(
    dataset: xr.Dataset,
    *,
    events: Sequence[Mapping[str, Any]] = (),
    num_events: int | None = None,
    notes: Sequence[str] = (),
    version: str = "",
) -> str:
    """Return one self-contained HTML page about influence over a training.

    Curves with intervals, losses above them, a heat-map of a query's strongest items over the
    checkpoints, and the ranking at each.  The page loads nothing from anywhere.

    Args:
        dataset: Of a `bif.Trajectory`.
        events: With the attributes of `bif.stages.Event` each, the largest first.
        num_events: How many there are; as many as are given by default.
        notes: For the reader.
        version: Of bif.
    """
    events = [
        {**event, "train": called(event["train"], "item"), "query": called(event["query"], "query")}
        for event in events
    ]
    exponent = shared_exponent(dataset["influence"].values.ravel())
    shown = _shown(dataset, events, exponent)
    count = len(events) if num_events is None else num_events
    text = json.dumps(shown, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    data = f'<script type="application/json" id="trajectory">{text}</script>'
    return assemble_page(
        script="trajectory.js",
        styles=("style.css", "trajectory.css"),
        manifest={"versions": {"bif": version}} if version else {},
        warnings=_untrusted(dataset),
        headline=_headline(dataset, events),
        trust=_facts(dataset, count),
        sections=[
            data + _CURVES,
            _MAP,
            _events(events, count, dataset, exponent),
            notes_section([*notes, _settings_in_words(dataset)]),
        ],
        title="Influence over training",
        eyebrow="Influence over training",
    )


def _headline(dataset: xr.Dataset, events: Sequence[Mapping[str, Any]]) -> str:
    sizes, steps = dataset.sizes, dataset["step"].values
    answer = "No influence changes for certain in this training"
    if events:
        answer = _in_words(events[0])
    return (
        f'<h1>{escape(answer)}</h1><p class="lead">{plural(sizes["train"], "training item")} (or '
        f"groups) on {plural(sizes['query'], 'query')}, at {plural(len(steps), 'checkpoint')} from "
        f"step {int(steps[0]):,} to {int(steps[-1]):,}. Negative influence helps: more weight on "
        "the item lowers the query's loss there. Positive influence harms.</p>"
    )


def _in_words(event: Mapping[str, Any]) -> str:
    """Return an event as a sentence."""
    who, whom, step = event["train"], event["query"], f"step {event['steps'][0]:,}"
    ways = ("helps", "harms") if event["values"][0] < 0 else ("harms", "helps")
    if event["kind"] == "flip":
        return f"{who} {ways[0]} {whom} at {step} and {ways[1]} it at {event['steps'][1]:,}"
    when = f"most at {step}" if event["kind"] == "peak" else f"for certain from {step} on"
    return f"{who} {ways[0]} {whom} {when}"


def _facts(dataset: xr.Dataset, num_events: int) -> str:
    trusted = dataset["trusted"].values
    return facts({
        "Trusted checkpoints": f"{int(trusted.sum())} of {len(trusted)}",
        "Certain peaks, onsets and flips": f"{num_events:,}",
    })  # fmt: skip


def _settings_in_words(dataset: xr.Dataset) -> str:
    attrs = dataset.attrs
    solved = attrs.get("estimator") == "response"
    how = "Solved" if solved else f"Covariance of {int(attrs.get('num_draws', 0)):,} draws"
    values = (f"{name} = {number(attrs.get(name))}" for name in ("nbeta", "gamma"))
    return f"{how} at each checkpoint; {', '.join(values)}."


def _untrusted(dataset: xr.Dataset) -> str:
    bad = [str(name) for name, ok in zip(dataset["name"].values, dataset["trusted"].values,
                                         strict=True) if not ok]  # fmt: skip
    if not bad:
        return ""
    more = f" and {len(bad) - 5} others" if len(bad) > 5 else ""
    return (
        '<div class="warnings"><strong>Not trusted:</strong> '
        f"{escape(', '.join(bad[:5]))}{more}. Their points are hollow and no event counts them."
        "</div>"
    )


_CURVES = """<section id="curves"><h2>A pair over training</h2>
<p>Influence with its 95 % interval at every checkpoint; above it the loss of the query, and the
mean loss of the training items.</p>
<div class="choose"><label>Query <select id="query"></select></label>
<label>Item <select id="item"></select></label>
<span class="save"><button type="button" id="save-svg">Save SVG</button>
<button type="button" id="save-png">Save PNG</button></span></div>
<div class="scroll" id="chart" role="img"></div></section>"""
_MAP = """<section id="map"><h2>The query's strongest items over training</h2>
<p>Blue helps, orange harms; the deeper, the stronger, in units of the largest. Press a row to see
its curve.</p>
<div class="scroll"><table id="heat"></table></div>
<p class="under" id="heat-note"></p>
<label class="slider">Checkpoint <input type="range" id="at" min="0" value="0">
<output id="at-step"></output></label>
<div class="ranking" id="ranking"></div></section>"""


def _events(
    events: Sequence[Mapping[str, Any]], count: int, dataset: xr.Dataset, exponent: int
) -> str:
    if not events:
        return (
            '<section id="events"><h2>Events</h2><p>None is certain at 95 %, corrected for all '
            "pairs and checkpoints.</p></section>"
        )
    quantile = dataset["error_quantile"].values
    rows = "".join(
        f"<tr><td>{escape(event['kind'])}</td>"
        f'<td><button type="button" data-query="{escape(event["query"])}" '
        f'data-item="{escape(event["train"])}" data-observable="{escape(event["observable"])}">'
        f"{escape(event['train'])} on {escape(event['query'])}</button></td>"
        f"<td>{escape(_values_in_words(event, quantile, exponent))}</td></tr>"
        for event in events
    )
    which = "All" if count == len(events) else f"The first {len(events):,} of {count:,}"
    return (
        f'<section id="events"><h2>Events</h2><p>{which}, by size of influence. Each is certain at '
        "95 %, corrected for all pairs and checkpoints (Bonferroni). "
        f"Influence has 95 % intervals{_in_unit(exponent)}.</p>"
        '<div class="scroll"><table class="events"><thead><tr><th>event</th><th>pair</th>'
        f"<th>influence</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _in_unit(exponent: int) -> str:
    return f", {unit_text(exponent)}" if exponent else ""


def _values_in_words(event: Mapping[str, Any], quantile: np.ndarray, exponent: int) -> str:
    """Return scores, 95 % intervals and steps; `quantile` `[K]` is of the standard error."""
    parts = []
    for k, value, error, step in zip(
        event["checkpoints"], event["values"], event["standard_errors"], event["steps"], strict=True
    ):
        score, half = score_and_error(value, quantile[k] * error, exponent=exponent)
        parts.append(f"{score} ± {half} at step {step:,}")
    return ", then ".join(parts)


def _shown(
    dataset: xr.Dataset, events: Sequence[Mapping[str, Any]], exponent: int
) -> dict[str, Any]:
    """Return what the page draws: of the first observable, the queries and items that move most."""
    scores = dataset["influence"].values.astype(float) / 10.0**exponent
    errors = dataset["standard_error"].values.astype(float) / 10.0**exponent
    errors = errors * dataset["error_quantile"].values[:, None, None, None]
    size = np.nan_to_num(np.abs(scores)).max(axis=0)  # [A, Q, N]
    train, query = (
        [called(x, noun) for x in dataset[f"{axis}_id"].values]
        for axis, noun in (("train", "item"), ("query", "query"))
    )
    observables = [str(name) for name in dataset["observable"].values]
    named = {(e["observable"], e["query"], e["train"]) for e in events}
    rows = []
    for a, observable in enumerate(observables):
        strongest = size[a].max(axis=1).argsort()[::-1][:MOST_QUERIES]
        asked = {query.index(q) for o, q, _ in named if o == observable and q in query}
        for q in sorted({*strongest.tolist(), *asked}):
            top = size[a, q].argsort()[::-1][:MOST_ITEMS].tolist()
            also = [train.index(i) for o, r, i in named if (o, r) == (observable, query[q])]
            items = [*top, *(i for i in dict.fromkeys(also) if i not in top)]
            rows.append({
                "observable": observable, "query": query[q],
                "loss": _plain(dataset["query_center"].values[:, a, q]),
                "items": [
                    {"name": train[i], "score": _plain(scores[:, a, q, i]),
                     "error": _plain(errors[:, a, q, i])} for i in items
                ],
            })  # fmt: skip
    return {
        "steps": [int(step) for step in dataset["step"].values],
        "trusted": [bool(ok) for ok in dataset["trusted"].values],
        "train_loss": _plain(dataset["train_center_loss"].values.mean(axis=1)),
        "observables": len(observables),
        "unit": unit_text(exponent),
        "rows": rows,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Return numbers of a few digits, None where they are not finite."""
    return [float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None for x in values.astype(float)]
