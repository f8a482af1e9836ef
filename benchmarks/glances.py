"""Short tables for the front page and for the page on calibration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from common import machine


def at_a_glance(runs: Mapping[str, dict[str, Any]], page: str) -> list[str]:
    """The BIF beside EK-FAC on every setting, by the loss: LDS, difference, ceiling, seconds.

    Args:
        runs: Setting -> its newest run.
        page: Address of the page with all methods, whose sections are the settings.
    """
    lines = [
        "| setting | retrained from | BIF | EK-FAC | difference, 95 % | ceiling | BIF, seconds "
        "| EK-FAC, seconds | on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, run in runs.items():
        rows = {(r["method"], r["target"]): r for r in run["rows"] if r["observable"] == "loss"}
        for (method, target), bif in rows.items():
            rival = rows.get(("ekfac", target))
            if method != "bif" or rival is None:
                continue
            low, high = bif["minus_ekfac_low"], bif["minus_ekfac_high"]
            ceiling = "–" if bif["ceiling"] is None else f"{bif['ceiling']:.2f}"
            lines.append(
                f"| [{setting}]({page}#{setting}) | {target} | {bif['lds']:.3f} "
                f"| {rival['lds']:.3f} | {low:+.3f} to {high:+.3f} | {ceiling} "
                f"| {bif['seconds']:.3g} | {rival['seconds']:.3g} | {machine(run)} |"
            )
    return lines


def beside_sweeps(runs: Iterable[dict[str, Any]]) -> list[str]:
    """The defaults and `bif.tune` beside the best of 48 settings, each with the same seconds.

    Args:
        runs: Of `sweep.py`, one a setting.
    """
    lines = [
        "| setting | seconds | on | defaults | `bif.tune` | best of 48 | its nbeta | its gamma "
        "| came to an end |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        rows = [row for row in run["sweep"] if "lds" in row]
        ended = sum(row["name"] == "sweep" for row in rows)
        best = max((r for r in rows if r["name"] == "sweep"), key=lambda r: r["lds"])
        found = {r["name"]: _of_best(r, best) for r in rows}
        lines.append(
            f"| {run['benchmark'].removeprefix('sweep-')}{_size(run)} | {run['budget']:g} "
            f"| {machine(run)} "
            f"| {found.get('defaults', '–')} | {found.get('tuned', '–')} | {best['lds']:.3f} "
            f"| {best['nbeta/n']:g} × default | {best['damping']:g} × default | {ended} |"
        )
    return lines


def _size(run: Mapping[str, Any]) -> str:
    """The train items, where a run has another number of them than its setting."""
    given = re.search(r"--size (\d+)", run["command"])
    return f", {given[1]} items" if given else ""


def _of_best(row: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """LDS, and its share of the best."""
    return f"{row['lds']:.3f} ({row['lds'] / best['lds']:.1%})"


def ways_to_be_calibrated(runs: Iterable[dict[str, Any]]) -> list[str]:
    """LDS of the defaults and of `bif.tune`, and its share of the best of the sweep.

    Args:
        runs: Of `tuning.py`, one a setting.
    """
    names = ("defaults", "tuned", "best of the sweep")
    lines = [
        "| setting | seconds | on | defaults | `bif.tune` | best of the sweep |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        setting = run["benchmark"].removeprefix("tuning-")
        for budget in dict.fromkeys(row["budget"] for row in run["rows"]):
            found = {r["name"]: r for r in run["rows"] if r["budget"] == budget and "lds" in r}
            best = found[names[-1]]
            shares = [_of_best(found[n], best) if n in found else "–" for n in names[:-1]]
            lines.append(
                f"| {setting} | {budget:g} | {machine(run)} | {shares[0]} | {shares[1]} "
                f"| {best['lds']:.3f} |"
            )
    return lines
