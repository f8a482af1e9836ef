"""The lower part of the page: diagnostics of the chains, and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bif.report import plots
from bif.report.markup import MISSING, count, escape, finite, number, rows_table
from bif.report.overview import ESS_GATES, RHAT_GATES, diverged_chains

if TYPE_CHECKING:
    import xarray as xr

_MAX_LISTED = 20
"""Entries of a list that are printed before it is cut."""


def diagnostics_section(diagnostics: xr.Dataset, *, summary: Mapping, manifest: Mapping) -> str:
    """Return the gates and the plots of the chains; what was not recorded is left out."""
    figures = [
        _traces(diagnostics, marked=diverged_chains(diagnostics, summary=summary)),
        _reliability(diagnostics),
        _histogram(
            diagnostics,
            variable="rhat",
            name="R-hat",
            mark=RHAT_GATES[0],
            meaning="the gate",
            advice="R-hat compares the chains: 1 when they agree.",
        ),
        _histogram(
            diagnostics,
            variable="ess",
            name="effective sample size",
            mark=ESS_GATES[0],
            meaning="enough for most purposes, which no gate checks,",
            advice="Effective sample size: how many independent draws the chains are worth for a "
            "loss.",
        ),
    ]
    solved = "residual" in diagnostics.variables
    if solved:
        figures = [
            _histogram(
                diagnostics,
                variable="residual",
                name="residual of a query's system",
                mark=_limit_of(manifest, "residual"),
                meaning="the gate",
                advice="What is left of a query's gradient: 0 where its system is solved.",
                of="systems,",
                counted="queries",
            )
        ]
    title = "How far the systems were solved" if solved else "How the chains behaved"
    body = "".join(figures) or f"<p>{MISSING} No diagnostics were recorded.</p>"
    return (
        f'<section aria-labelledby="chains"><h2 id="chains">{title}</h2>'
        f'{_gates(manifest)}<div class="plots">{body}</div></section>'
    )


def _gates(manifest: Mapping) -> str:
    """Return the conditions that the run was held against, those that failed first."""
    listed = [g for g in manifest.get("gates") or [] if isinstance(g, Mapping)]
    listed.sort(key=lambda gate: not gate.get("failed"))
    rows = "".join(
        f'<tr><th scope="row">{escape(gate.get("name"))}</th>'
        f"<td>{number(gate.get('value'))}</td><td>{number(gate.get('limit'))}</td>"
        f"<td>{_gate_verdict(gate)}</td></tr>"
        for gate in listed
    )
    if not rows:
        return ""
    return (
        '<table class="signs"><caption>The gates: a run is trusted if none of these figures '
        'exceeds its limit</caption><thead><tr><th scope="col">Gate</th><th scope="col">Figure'
        '</th><th scope="col">Limit</th><th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _limit_of(manifest: Mapping, name: str) -> float:
    """Return the limit of a gate; NaN where it is not known."""
    gates = [g for g in manifest.get("gates") or [] if isinstance(g, Mapping)]
    limits = [finite(g.get("limit")) for g in gates if g.get("name") == name]
    return next((limit for limit in limits if limit is not None), float("nan"))


def _gate_verdict(gate: Mapping) -> str:
    if gate.get("failed"):
        return '<span class="verdict poor">failed</span>'
    known = finite(gate.get("value")) is not None
    return '<span class="verdict good">passed</span>' if known else "not measured"


def provenance_section(manifest: Mapping) -> str:
    """Return the manifest as tables that open on demand, its explanations in the open."""
    listed = manifest.get("explanations") or []
    explanations = [listed] if isinstance(listed, str) else list(listed)
    chosen = "".join(f"<li>{escape(text)}</li>" for text in explanations)
    parts, single = [], []
    for key, value in manifest.items():
        if key in ("explanations", "gates", "warnings"):
            continue
        if isinstance(value, Mapping) and value:
            parts.append((str(key), list(_flatten(value))))
        else:
            single.append((str(key), _plain_text(value)))
    if single:
        parts.append(("run", single))
    details = "".join(
        f"<details><summary>{escape(name.replace('_', ' ').capitalize())}</summary>"
        f"{rows_table(rows, name=name.replace('_', ' '))}</details>"
        for name, rows in parts
    )
    return (
        '<section aria-labelledby="settings"><h2 id="settings">Settings and provenance</h2>'
        + (f'<ul class="choices">{chosen}</ul>' if chosen else "")
        + (details or f"<p>{MISSING} No manifest was recorded.</p>")
        + "</section>"
    )


def _figure(svg: str, *, title: str, caption: str) -> str:
    return (
        f'<figure><h3>{escape(title)}</h3><div role="img" aria-label="{escape(caption)}">{svg}'
        f"</div><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _traces(diagnostics: xr.Dataset, *, marked: list[int]) -> str:
    if "mean_loss" not in diagnostics.variables:
        return ""
    traces = diagnostics["mean_loss"].transpose("chain", "draw")
    values = np.asarray(traces.values, dtype=float)
    if not np.isfinite(values).any():
        return ""
    chains = [int(c) for c in traces["chain"].values]
    found = diagnostics.variables.get("center_mean_loss")
    center = float("nan") if found is None else float(found.values)
    reference = (
        f"Dashed: the loss at the trained weights, {number(center)}. "
        if np.isfinite(center)
        else ""
    )
    shown = [position for position, chain in enumerate(chains) if chain in marked]
    left_out = "Orange: left out. " if shown else ""
    lines = "One line for the only chain. " if len(values) == 1 else "One line a chain. "
    return _figure(
        plots.traces(values, np.asarray(traces["draw"].values), center=center, marked=shown),
        title="Traces",
        caption=f"{lines}{reference}{left_out}The lines should be level and overlap.",
    )


def _reliability(diagnostics: xr.Dataset) -> str:
    names = ("reliability", "reliability_draws")
    if any(name not in diagnostics.variables for name in names):
        return ""
    values, draws = (np.asarray(diagnostics[name].values, dtype=float) for name in names)
    known = np.isfinite(values) & (draws > 0)
    if not known.any():
        return ""
    last = number(values[known][-1])
    return _figure(
        plots.reliability(draws[known], values[known]),
        title="Reliability",
        caption=f"Agreement of scores from two halves of the chains as draws are added, {last} at "
        "the end. Dotted: 0.8, from where single items can be looked at.",
    )


def _histogram(
    diagnostics: xr.Dataset,
    *,
    variable: str,
    name: str,
    mark: float,
    meaning: str,
    advice: str,
    of: str = "losses and observables that were looked at,",
    counted: str = "losses",
) -> str:
    if variable not in diagnostics.variables:
        return ""
    values = np.asarray(diagnostics[variable].values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    digits = 4 if variable == "rhat" else 3
    low, middle, high = (number(v, digits=digits) for v in np.quantile(values, [0, 0.5, 1]))
    return _figure(
        plots.histogram(values, name=name, mark=mark, counted=counted),
        title=name[0].upper() + name[1:],
        caption=f"{advice} Of the {count(len(values))} {of} from {low} to {high}, median {middle}; "
        f"{meaning} is {number(mark)}.",
    )


def _flatten(tree: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{name}.")
        else:
            rows.append((name, _plain_text(value)))
    return rows


def _plain_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_plain_text(v) for v in value[:_MAX_LISTED])
        more = f" … ({len(value):,} in all)" if len(value) > _MAX_LISTED else ""
        return f"{shown}{more}" or MISSING
    if value is None or value == "" or value == {}:
        return MISSING
    return str(value)
