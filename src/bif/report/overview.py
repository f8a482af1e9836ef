"""The top of the page: warnings, what was computed, how far to trust it, how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bif.report.markup import (
    MISSING,
    count,
    escape,
    finite,
    join_words,
    number,
    percent,
    plural,
    setting,
)
from bif.report.source import Source

if TYPE_CHECKING:
    import xarray as xr

RELIABILITY_GATES = (0.8, 0.5)
"""Reliability: good from the first, poor below the second."""
RHAT_GATES = (1.05, 1.1)
"""Largest R-hat over items: good up to the first, poor above the second."""
ESS_GATES = (400.0, 100.0)
"""Median effective sample size over items: good from the first, poor below the second."""
_OPEN_WARNINGS = 2
"""Warnings that stand open above the answer; more are folded."""


def warnings_box(
    source: Source, *, diagnostics: xr.Dataset, summary: Mapping, manifest: Mapping
) -> str:
    """Return the warnings of a run as one box, empty if there are none."""
    found: list[str] = []
    diverged = diverged_chains(diagnostics, summary=summary)
    if diverged:
        names = join_words([str(c) for c in diverged])
        found.append(
            f"{plural(len(diverged), 'chain')} diverged and "
            f"{'is' if len(diverged) == 1 else 'are'} left out of every number: {names}."
        )
    ended = _complete(summary.get("complete"), source.attrs.get("complete"))
    if not ended:
        found.append(
            "The run was stopped before its end: the scores are what its draws so far give, "
            "with the larger errors shown."
        )
    value = finite(summary.get("reliability"))
    if value is not None and value < RELIABILITY_GATES[1]:
        found.append(
            f"Reliability is {number(value)}: two halves of the chains disagree about most "
            "scores. More draws are needed before single items mean anything."
        )
    value = finite(summary.get("rhat_max"))
    failed = [g for g in manifest.get("gates") or [] if isinstance(g, Mapping) and g.get("failed")]
    told = any(gate.get("name") == "mixing" for gate in failed)
    if value is not None and value > RHAT_GATES[1] and not told:
        found.append(
            f"R-hat reaches {number(value)}: chains have not settled on the same losses. Errors "
            "and reliability cannot be relied on; a longer burn-in or more steps a draw help."
        )
    value = finite(summary.get("ess_median"))
    if value is not None and value < ESS_GATES[1]:
        found.append(
            f"The median effective sample size is {number(value)}: most draws repeat each other. "
            "Errors are rough; more draws or more steps a draw help."
        )
    listed = manifest.get("warnings") or []
    found += [str(w) for w in ([listed] if isinstance(listed, str) else listed)]
    if not found:
        return ""
    if not ended:  # its gates judge what there is so far
        found = [text.replace("not trusted, ", "not yet, ", 1) for text in found]
    items = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(found))
    untrusted = summary.get("trusted") is not None and not summary["trusted"]
    first = "This run is not trusted" if untrusted else "Read this first"
    if not ended:
        first = "This run was stopped early, and can go on"
    body = f"<ul>{items}</ul>"
    if len(found) > _OPEN_WARNINGS:
        reasons, notes = plural(len(failed), "failed check"), plural(len(found), "note")
        if untrusted and 0 < len(failed) < len(found):
            notes = f"{reasons} and {plural(len(found) - len(failed), 'further note')}"
        body = f"<details><summary>{notes}, with what to change</summary>{body}</details>"
    return f'<aside class="warnings" aria-label="Warnings"><strong>{first}</strong>{body}</aside>'


def made_line(source: Source, *, summary: Mapping) -> str:
    """Return one sentence on how the scores were computed, and what was recorded through what."""
    return (
        f'<p class="lead">{how_made(source, summary=summary)}, at nbeta '
        f"{setting(source.attrs.get('nbeta'))} and gamma "
        f"{setting(source.attrs.get('gamma'))}.</p>{proxy_line(source)}"
    )


def folded(*sections: str) -> str:
    """Return sections that are there on demand, below the answer."""
    body = "".join(sections)
    return f"""<details class="fold"><summary>How it was computed: figures, signs, choices</summary>
{body}</details>"""


def how_made(source: Source, *, summary: Mapping) -> str:
    """Return the beginning of a sentence: how the scores came about."""
    if source.linear is not None:
        return (
            f"The linear part solved at the minimum of U, the rest estimated from "
            f"{count(summary.get('draws', source.attrs.get('num_draws')))} draws"
        )
    if source.solved:
        return f"Solved at the trained weights in {count(summary.get('solver_steps'))} steps"
    chains = summary.get("chains", source.attrs.get("num_chains"))
    draws = summary.get("draws", source.attrs.get("num_draws"))
    return (
        f"Estimated from {count(draws)} draws of {count(chains)} chains around the trained weights"
    )


def proxy_line(source: Source) -> str:
    """Return what observables were recorded through; empty where none has a proxy."""
    said = [
        f"The {escape(name)} was recorded through the {escape(proxy)}: its value at the trained "
        f"weights, and the change of the {escape(proxy)} times the slope there."
        for name, proxy in zip(source.observables, source.through, strict=True)
        if proxy
    ]
    return f'<p class="lead">{" ".join(said)}</p>' if said else ""


def excerpt_line(source: Source) -> str:
    """Return what the page is an excerpt of; empty where it shows the whole run."""
    text = source.attrs.get("excerpt")
    return f'<p class="lead">{escape(str(text))}</p>' if text else ""


def trust_line(summary: Mapping) -> str:
    """Return the figures that say how far the scores can be trusted, judged in words."""
    reliability, rhat, ess = (summary.get(k) for k in ("reliability", "rhat_max", "ess_median"))
    seconds = finite(summary.get("seconds"))
    trusted = summary.get("trusted")
    tiles = (
        []
        if trusted is None
        else [("Trusted", "yes" if trusted else "no", _trust_verdict(trusted))]
    )
    if summary.get("estimator") == "response":
        return _figures(
            [
                *tiles,
                ("Steps", count(summary.get("solver_steps")), ""),
                ("Largest residual", number(summary.get("largest_residual")), ""),
                ("Damping", number(summary.get("damping")), ""),
                ("Left by damping", number(summary.get("damping_keeps")), ""),
                ("Seconds", MISSING if seconds is None else number(seconds), ""),
            ]
        )
    tiles += [
        ("Reliability", number(reliability), _gate_verdict(reliability, RELIABILITY_GATES, sign=1)),
        ("R-hat, largest", number(rhat, digits=4), _gate_verdict(rhat, RHAT_GATES, sign=-1)),
        ("ESS, median", count(ess), _gate_verdict(ess, ESS_GATES, sign=1)),
        ("Draws", count(summary.get("draws")), ""),
        ("Chains", count(summary.get("chains")), ""),
        *_anchor_tiles(summary),
        ("Seconds", MISSING if seconds is None else number(seconds), ""),
    ]
    return _figures(tiles)


def _anchor_tiles(summary: Mapping) -> list[tuple[str, str, str]]:
    """Return what anchors did for a run that has some."""
    if summary.get("estimator") != "anchored":
        return []
    return [
        ("Left to sample", percent(finite(summary.get("variance_left"))), ""),
        ("Draws' worth", count(summary.get("effective_draws")), ""),
    ]


def _figures(tiles: list[tuple[str, str, str]]) -> str:
    """Return figures with their verdicts."""
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}"
        + (f' <span class="verdict {verdict}">{verdict}</span>' if verdict else "")
        + "</dd></div>"
        for name, value, verdict in tiles
    )
    return f'<dl class="trust">{cells}</dl>'


def _scale_and_error(source: Source) -> tuple[str, str]:
    """Return what a score and its error are."""
    if source.linear is not None:
        return (
            "A score is −Cov(training loss, observable). Its linear part −g·v, the classical "
            "influence, is solved for; what is sampled beside it is what is not linear.",
            "± is one standard error of the whole score, and so of the sampled part, from the "
            "spread between groups of chains",
        )
    if source.solved:
        return (
            "A score is −(1/nbeta) g·(C + damping)⁻¹·g′, with gradients g of the training loss and "
            "g′ of the observable and the curvature C of the mean loss at the trained weights.",
            "± is the error of stopping early, from how far scores still moved, and of train items "
            "whose curvature was left out, if any",
        )
    return (
        "A score is −Cov(training loss, observable) over the draws.",
        "± is one standard error, from the spread between groups of chains",
    )


def reading_section(source: Source) -> str:
    """Return the section on signs, scale and errors."""
    rows = []
    for name, better, share in zip(
        source.observables, source.better, source.clear_shares(), strict=True
    ):
        direction, below, above = {
            "lower": ("lower", "helpful", "harmful"),
            "higher": ("higher", "harmful", "helpful"),
            "": ("neither", "lowers it", "raises it"),
        }[better]
        classes = {"lower": ("blue", "orange"), "higher": ("orange", "blue")}
        cold, warm = classes.get(better, ("plain", "plain"))
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{direction}</td>'
            f'<td class="{cold}">{below}</td><td class="{warm}">{above}</td>'
            f"<td>{percent(share)}</td></tr>"
        )
    nbeta, size = finite(source.attrs.get("nbeta")), finite(source.attrs.get("num_train"))
    untrusted = (
        "" if source.trusted else "; this run is not trusted, so that no sign is certain, and the "
        "strongest are listed all the same"
    )  # fmt: skip
    scale, error = _scale_and_error(source)
    test = "95&nbsp;%" if source.solved else "95&nbsp;%, Student's t"
    chance = "" if source.solved else (
        " About 5&nbsp;% of scores that are truly zero would still pass as clear of zero, and the "
        "extremes of a long list look somewhat larger than they are."
    )  # fmt: skip
    factor = f"nbeta/n = {setting(nbeta / size)}" if nbeta is not None and size else "nbeta/n"
    return f"""<section aria-labelledby="reading"><h2 id="reading">How to read the numbers</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Signs"><table class="signs"><thead><tr>
<th scope="col">Observable</th>
<th scope="col">Better</th><th scope="col">Negative score</th><th scope="col">Positive score</th>
<th scope="col">Clear of zero</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<dl class="notes">
<div><dt>Sign</dt><dd>A score says which way the observable moves when the training item gains
weight: a negative one lowers it, a positive one raises it. Numbers are never flipped; only the
words follow from which direction is better.</dd></div>
<div><dt>Scale</dt><dd>{scale} The expected
observable changes by {factor} times the score for each unit of weight the item gains; taking the
item out is minus one unit, to first order.</dd></div>
<div><dt>Error</dt><dd>{error}. A score less than {source.error_quantile:.3g} errors from zero
({test}) has no certain sign and is not listed{untrusted}.{chance}</dd></div>
</dl></section>"""


def diverged_chains(diagnostics: xr.Dataset, *, summary: Mapping) -> list[int]:
    """Return the chains that were left out, as the summary or the diagnostics name them."""
    named: Any = summary.get("diverged_chains")
    if named is None:
        named = diagnostics.attrs.get("diverged_chains")
    if named is None:
        return []
    many = named if isinstance(named, Sequence) or hasattr(named, "__iter__") else [named]
    return [int(c) for c in many]


def _complete(*flags: object) -> bool:
    return all(flag is None or bool(flag) for flag in flags)


def _trust_verdict(trusted: object) -> str:
    return "good" if trusted else "poor"


def _gate_verdict(value: object, gates: tuple[float, float], *, sign: int) -> str:
    x = finite(value)
    if x is None:
        return ""
    if sign * x >= sign * gates[0]:
        return "good"
    return "fair" if sign * x >= sign * gates[1] else "poor"
