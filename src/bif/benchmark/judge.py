"""Rows and tables of scores and banks: LDS with interval, ceiling, cost and rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bif.benchmark.methods.base import Scored
from bif.evaluate import LDSResult, PairedDifference, compare, lds
from bif.evaluate.retraining import Bank
from bif.runs.gates import RHAT

RIVAL = "ekfac"
"""The method that all others are compared with, in pairs."""
_BUDGETS_SECONDS = (10.0, 60.0, 600.0)
"""Budgets of the table by wall-clock, in seconds."""


def rows(
    found: Sequence[Scored], banks: Sequence[Bank], *, rival: str = RIVAL
) -> list[dict[str, Any]]:
    """Return one row a method, target and outcome, by the reported parts of the banks.

    Args:
        found: Scores; those of the rival among them make the paired differences.
        banks: One a target.
        rival: The method that the others are compared with, `minus_RIVAL`.
    """
    made = []
    for bank in banks:
        part = bank.reported.required("reported")
        judged = {}
        own = [scored for scored in found if scored.is_for(bank.target)]
        for outcome in dict.fromkeys(s.outcome for s in own):
            scores = {s.method: s.scores for s in own if s.outcome == outcome}
            against = rival if rival in scores else None
            judged[outcome] = compare(scores, part.masks, part.outcomes[outcome], against=against)
        made += [_row(scored, bank.target, *judged[scored.outcome], rival=rival) for scored in own]
    return made


def _row(
    scored: Scored,
    target: str,
    results: Mapping[str, LDSResult],
    differences: Mapping[str, PairedDifference],
    *,
    rival: str,
) -> dict[str, Any]:
    result, against = results[scored.method], differences.get(scored.method)
    row: dict[str, Any] = {
        "method": scored.method,
        "target": target,
        "observable": scored.outcome,
        "lds": result.mean,
        "ci_low": result.ci_low,
        "ci_high": result.ci_high,
        "ceiling": result.ceiling,
        "share_of_ceiling": result.share_of_ceiling,
        "seconds": scored.cost.seconds,
        "tuning_seconds": scored.tuning_seconds,
        "peak_memory_gib": scored.cost.peak_memory_gib,
        "num_models": 1,
        "num_subsets": result.num_subsets,
        "num_seeds": result.num_seeds,
        "num_queries": result.num_queries,
        "choice": dict(scored.choice),
        "at_edge": names_at_edge(scored.choice, scored.tuned),
        **scored.facts,
    }
    if against is not None:
        row |= {
            f"minus_{rival}": against.mean,
            f"minus_{rival}_low": against.ci_low,
            f"minus_{rival}_high": against.ci_high,
        }
    return row


def names_at_edge(choice: Mapping[str, Any], tuned: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which numbers of a choice are the smallest or largest that were tried.

    A better value may lie beyond: it was the grid that decided.  Not where one within the grid is
    as good, as dimensions of a projection are for a model with fewer weights.

    Args:
        choice: What the tuning part chose.
        tuned: All candidates, each with its `choice` and its `lds`, which is NaN (or None, from a
            file) where the task refused it.
    """
    found = []
    for name, value in choice.items():
        tried = [
            (t["choice"][name], np.nan if t["lds"] is None else t["lds"])
            for t in tuned
            if name in t["choice"]
        ]
        values = {x for x, _ in tried}
        if len(values) < 2 or not all(isinstance(x, int | float) for x in values):
            continue
        low, high = min(values), max(values)
        best = max((score for x, score in tried if x == value), default=np.nan)
        within = any(low < x < high and score >= best for x, score in tried)
        if value in (low, high) and not within:
            found.append(name)
    return found


def verdict(row: Mapping[str, Any]) -> str:
    """Return whether the run behind a row is trusted, in a word or two; a dash for no run.

    Rows of earlier versions do not say it: where their R-hat would be refused today, they are.
    """
    trusted, rhat = row.get("trusted"), row.get("rhat_max")
    if trusted is None:
        return f"no: R-hat above {RHAT}" if rhat is not None and rhat > RHAT else "–"
    gates = ", ".join(row.get("failed_gates", ()))
    return "yes" if trusted else f"no: {gates}" if gates else "no"


def curves(found: Sequence[Scored], banks: Sequence[Bank]) -> list[dict[str, Any]]:
    """Return the LDS after less work, one entry a point: seconds, draws, effective draws."""
    made = []
    for bank in banks:
        part = bank.reported.required("reported")
        for scored in found:
            for point in scored.curve if scored.is_for(bank.target) else ():
                result = lds(
                    point.scores, part.masks, part.outcomes[point.outcome], num_bootstrap=200
                )
                made.append(
                    {
                        "method": point.method,
                        "target": bank.target,
                        "observable": point.outcome,
                        "lds": result.mean,
                        "ci_low": result.ci_low,
                        "ci_high": result.ci_high,
                        "seconds": point.cost.seconds,
                        **point.facts,
                    }
                )
    return made


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table, best first within target and outcome."""
    groups = dict.fromkeys((str(r["target"]), str(r["observable"])) for r in rows)
    lines = []
    for target, outcome in groups:
        own = [r for r in rows if (r["target"], r["observable"]) == (target, outcome)]
        own.sort(key=lambda r: -r["lds"])
        lines += [
            "",
            f"### {outcome}, retrained from {target}",
            "",
            f"Ceiling {_figure(own[0]['ceiling'])}; {own[0]['num_subsets']} subsets × "
            f"{own[0]['num_seeds']} seeds, {own[0]['num_queries']} queries.",
            "",
            f"| method | LDS | 95 % interval | of the ceiling | minus {RIVAL} | 95 % interval | "
            "reliability | R-hat | trusted | seconds | of these tuning | peak GiB | chosen |",
            "|" + " --- |" * 13,
        ]
        for row in own:
            lines.append(
                f"| {row['method']} | {_figure(row['lds'])} | {_interval(row, 'ci')} | "
                f"{_figure(row['share_of_ceiling'])} | {_figure(row.get(f'minus_{RIVAL}'))} | "
                f"{_interval(row, f'minus_{RIVAL}')} | {_figure(row.get('reliability'))} | "
                f"{_rhat(row)} | {verdict(row)} | {_figure(row['seconds'])} | "
                f"{_figure(row['tuning_seconds'])} | {_figure(row['peak_memory_gib'])} | "
                f"{choice_text(row.get('choice', {}), row.get('at_edge', ()))} |"
            )
    return "\n".join(lines).lstrip("\n") + "\n"


def budget_table(
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
) -> str:
    """Return a table of what each method gives within wall-clock budgets.

    Set-up and tuning count. A method with a curve is cut short where the budget ends; any other is
    there or is not.

    A method with a curve is cut short where the budget ends; any other is there or is not.

    Args:
        rows: As from `rows`.
        curves: As from `curves`; those without seconds play no part.
    """
    groups = dict.fromkeys((str(r["target"]), str(r["observable"])) for r in rows)
    lines = []
    for target, outcome in groups:
        lines += [
            "",
            f"### {outcome}, retrained from {target}: LDS within a budget",
            "",
            "| method | " + " | ".join(_duration(b) for b in _BUDGETS_SECONDS) + " |",
            "|" + " --- |" * (1 + len(_BUDGETS_SECONDS)),
        ]
        own = [r for r in rows if (r["target"], r["observable"]) == (target, outcome)]
        for row in sorted(own, key=lambda r: -r["lds"]):
            mine = [
                c
                for c in (*curves, row)
                if c.get("seconds") is not None
                and (c["method"], c["target"], c["observable"]) == (row["method"], target, outcome)
            ]
            last = [
                max((c for c in mine if c["seconds"] <= b), key=lambda c: c["seconds"], default={})
                for b in _BUDGETS_SECONDS
            ]
            cells = " | ".join(_figure(found.get("lds")) for found in last)
            lines.append(f"| {row['method']} | {cells} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def choice_text(choice: Mapping[str, Any], edges: Sequence[str]) -> str:
    """Return a choice as text, numbers at the edge of their grid marked."""
    marked = {name: " (edge of the grid)" if name in edges else "" for name in choice}
    return ", ".join(f"{n} {_figure(value)}{marked[n]}" for n, value in choice.items()) or "–"


def _rhat(row: Mapping[str, Any]) -> str:
    """Return R-hat with three decimals, for it is 1 and a bit."""
    rhat = row.get("rhat_max")
    return "–" if rhat is None or not np.isfinite(rhat) else f"{rhat:.3f}"


def _figure(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
