"""The page of a steering: what a re-weighting is to do, what it did, and which items it weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bif.report.answer import is_own_text, shortened
from bif.report.markup import (
    called,
    escape,
    facts,
    number,
    plural,
    score_and_error,
    untrusted_box,
)
from bif.report.page import assemble_page
from bif.report.shift_page import UNVERIFIED

if TYPE_CHECKING:
    import xarray as xr

MOST_ITEMS = 20
"""Items on the page that gain weight, and as many that lose it."""
MOST_QUERIES = 40
"""Groups of queries on the page: the target and those that move most."""


def render_steering(
    dataset: xr.Dataset,
    *,
    queries: str,
    is_reached: bool,
    share_moved: float,
    failed_gates: Sequence[str] = (),
    achieved: Mapping[str, Sequence[float]] | None = None,
    version: str = "",
) -> str:
    """Return one self-contained HTML page about a steering.

    Args:
        dataset: Of `bif.susceptibility.Steering`, of one observable.
        queries: The group that was steered.
        is_reached: Whether the change that was asked for can be reached.
        share_moved: Share of the weight that changes hands.
        failed_gates: Of the run; the page then warns.
        achieved: What retraining made of every group, by seeds; none by default.
        version: Of bif.
    """
    achieved = achieved or {}
    return assemble_page(
        script="script.js",
        styles=("style.css", "steering.css"),
        manifest={"versions": {"bif": version}} if version else {},
        warnings=untrusted_box(failed_gates),
        headline=_headline(dataset, queries, is_reached, achieved.get(queries, ())),
        trust=_facts(dataset, share_moved, achieved),
        sections=[_query_section(dataset, queries, achieved), _item_section(dataset)],
        title="Steering by influence",
        eyebrow="Steering by influence",
    )


def _headline(dataset: xr.Dataset, queries: str, is_reached: bool, seeds: Sequence[float]) -> str:
    attrs = dataset.attrs
    what, intended = f"the mean {attrs['target']}", _signed(attrs["intended"])
    if seeds:
        answer = f"Meant to move {what} by {intended}, these weights moved it by "
        answer += _signed(float(np.mean(seeds)))
        lead = f"The mean of {plural(len(seeds), 'retrained network')}, less as many without them. "
    else:
        half = float(attrs["error_quantile"]) * float(attrs["predicted_error"])
        value, error = score_and_error(float(attrs["predicted"]), half, exponent=0)
        verb = "lower" if value.startswith("−") else "raise"
        answer = f"This re-weighting is predicted to {verb} {what} by {value[1:]}"
        answer += "" if np.isnan(half) else f" ± {error} (95 % interval)"
        lead = f"Intended: {intended}.{_second_order(dataset, queries)} {UNVERIFIED} "
    if not is_reached:
        lead += (
            f"A change of {_signed(attrs['asked'])} was asked for; {intended} is the nearest that "
            "can be reached."
        )
    return f'<h1>{escape(answer)}</h1><p class="lead">{escape(lead)}</p>'


def _second_order(dataset: xr.Dataset, queries: str) -> str:
    """Return the target's change with the curvature of the response; empty where not known."""
    names = [str(name) for name in dataset["query"].values]
    value = float(dataset["second"][names.index(queries)]) if queries in names else float("nan")
    return "" if np.isnan(value) else f" With what is not linear, {_signed(value)}."


def _facts(dataset: xr.Dataset, share_moved: float, achieved: Mapping[str, Sequence[float]]) -> str:
    attrs = dataset.attrs
    seeds = len(next(iter(achieved.values()), ()))
    return facts({
        "Run": "trusted" if attrs["trusted"] else "not trusted",
        "Retrained networks": f"{2 * seeds}" if seeds else "none",
        "Weight moved": f"{100 * share_moved:.2g} %",
        "Least weight": number(float(dataset["weight"].min())),
        "Largest weight": number(float(dataset["weight"].max())),
        "Groups to stay as they are": f"{len(np.atleast_1d(attrs['hold'])):,}",
    })  # fmt: skip


def _query_section(
    dataset: xr.Dataset, queries: str, achieved: Mapping[str, Sequence[float]]
) -> str:
    names = [str(name) for name in dataset["query"].values]
    moved = np.abs(dataset["predicted"].values)
    order = sorted(range(len(names)), key=lambda q: (names[q] != queries, -moved[q]))[:MOST_QUERIES]
    rows = dataset.isel(query=order)
    quantile = float(dataset.attrs["error_quantile"])
    half = quantile * rows["predicted_error"].values
    seen = [v for q in order for v in achieved.get(names[q], ())]
    reach = np.abs(rows["predicted"].values) + np.nan_to_num(half)
    ends = [*reach, dataset.attrs["intended"], *seen]
    scale = max(np.abs(np.asarray(ends, dtype=float)).max(), 1e-300)
    held = {str(name) for name in np.atleast_1d(dataset.attrs["hold"])}
    body = []
    for at, q in enumerate(order):
        value, spread = float(rows["predicted"][at]), float(half[at])
        seeds = achieved.get(names[q], ())
        kind = "target" if names[q] == queries else "held" if names[q] in held else ""
        aim = float(dataset.attrs["intended"]) if kind == "target" else None
        cells = [
            f'<th scope="row">{escape(names[q])}{f"<small>{kind}</small>" if kind else ""}</th>',
            f"<td>{_strip(value, spread, seeds, scale, aim)}</td>",
            f'<td data-name="first order">{_rounded(value, spread)} '
            f"<small>± {number(spread, digits=2)}</small></td>",
            f'<td data-name="second order">{_signed(float(rows["second"][at]))}</td>',
        ]
        if achieved:
            low, high = (_signed(f(seeds)) if seeds else "–" for f in (min, max))
            cells.append(
                f'<td data-name="retrained">{_signed(float(np.mean(seeds)))} '
                f"<small>{low} to {high}</small></td>"
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["queries", "", "first order", "second order", *(["retrained"] if achieved else [])]
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    legend = "<li class='predicted'>First order, with its 95 % interval</li>"
    legend += "<li class='intended'>Intended</li>"
    legend += "<li class='retrained'>Retrained networks, one a seed</li>" if achieved else ""
    return (
        f'<section id="queries"><h2>What moves</h2><p>Change of the mean '
        f"{escape(str(dataset['observable'].values))} of every group of queries.</p>"
        f'<ul class="legend">{legend}</ul><p class="under">First order: as if the change were '
        "linear in the weights. Second order: with its curvature.</p>"
        f'<div class="scroll"><table class="moves"><thead>'
        f"<tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _strip(
    value: float, half: float, seeds: Sequence[float], scale: float, intended: float | None
) -> str:
    """Return a line with the predicted change, its interval and the seeds, 0 in its middle."""

    def x(v: float) -> str:
        return f"{100 + 92 * min(1.04, max(-1.04, v / scale)):.1f}"

    parts = ['<line class="zero" x1="100" x2="100" y1="2" y2="22"/>']
    if intended is not None:
        parts.append(
            f'<line class="intended" x1="{x(intended)}" x2="{x(intended)}" y1="1" y2="23"/>'
        )
    if np.isfinite(half):
        ends = f'x1="{x(value - half)}" x2="{x(value + half)}"'
        parts.append(f'<line class="predicted" {ends} y1="9" y2="9"/>')
    parts.append(f'<circle class="predicted" cx="{x(value)}" cy="9" r="3.2"/>')
    parts += [f'<circle class="retrained" cx="{x(v)}" cy="17" r="2.4"/>' for v in seeds]
    return f'<svg viewBox="0 0 200 24" aria-hidden="true">{"".join(parts)}</svg>'


def _item_section(dataset: xr.Dataset) -> str:
    change, weight = dataset["change"].values, dataset["weight"].values
    order = np.argsort(change, kind="stable")
    gain = [i for i in order[::-1][:MOST_ITEMS] if change[i] > 0]
    lose = [i for i in order[:MOST_ITEMS] if change[i] < 0]
    largest = max(float(np.abs(change).max()), 1e-300)
    lists = "".join(
        f"<div><h3>{title}</h3><ol>"
        + "".join(_item(dataset, i, largest, weight) for i in places)
        + "</ol></div>"
        for title, places in (("Gain most", gain), ("Lose most", lose))
        if places
    )
    return (
        f'<section id="items"><h2>Items by their weight</h2><p>{(change > 0).sum():,} items gain '
        f"weight and {(change < 0).sum():,} lose it; weights.csv has all.</p>"
        f'<div class="gains">{lists}</div></section>'
    )


def _item(dataset: xr.Dataset, at: int, largest: float, weight: np.ndarray) -> str:
    change = float(dataset["change"].values[at])
    known = {
        name: shortened(str(dataset[f"train_{name}"].values[at]))
        for name in ("text", "features", "label", "target") if f"train_{name}" in dataset.coords
    }  # fmt: skip
    label = "" if is_own_text(known.get("label", ""), known.get("text", "")) else known.get("label")
    told = [f"labelled {label}" if label else "", known.get("text") or known.get("features") or ""]
    told.insert(0, f"target {known['target']}" if known.get("target") else "")
    about = "".join(f"<small>{escape(words)}</small>" for words in told if words)
    tone = "up" if change > 0 else "down"
    who = f"{escape(called(dataset['train_id'].values[at], 'item'))}{about}"
    return (
        f'<li class="{tone}"><span class="who">{who}</span>'
        f'<span class="bar"><b style="width:{100 * abs(change) / largest:.0f}%"></b></span>'
        f"<data>{number(float(weight[at]))}</data></li>"
    )


def _rounded(value: float, half: float) -> str:
    """Return a signed number to the second digit of its interval."""
    if not np.isfinite(half) or half <= 0:
        return _signed(value)
    return f"{value:+.{max(0, 1 - math.floor(math.log10(half)))}f}".replace("-", "−")


def _signed(value: float) -> str:
    text = number(value)
    return f"+{text}" if np.isfinite(value) and value > 0 else text
