"""Short tables for the front page and for the page on calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common import machine

_WAYS = ("defaults", "retrained_from", "tuned")


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
    """The ways to be calibrated beside the best of a grid, each with the same seconds.

    Args:
        runs: Of `sweep.py`, one a setting and size.
    """
    lines = [
        "| setting | seconds | on | defaults | `retrained_from` | `bif.tune` | best of the sweep "
        "| its nbeta | its gamma | settings tried | came to an end |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        tried = [row for row in run["sweep"] if row["name"] == "sweep"]
        ended = [row for row in tried if "lds" in row]
        best = max(ended, key=lambda r: r["lds"])
        ways = [_way(run["sweep"], name, best) for name in _WAYS]
        _, setting, *size = run["benchmark"].split("-")
        named = f"{setting}, {size[0]} items" if size else setting
        lines.append(
            f"| {named} | {run['budget']:g} | {machine(run)} "
            f"| {' | '.join(ways)} | {best['lds']:.3f} | {best['nbeta/n']:g} × default "
            f"| {best['damping']:g} × default | {len(tried)} | {len(ended)} |"
        )
    return lines


def _way(rows: Iterable[Mapping[str, Any]], name: str, best: Mapping[str, Any]) -> str:
    """LDS of a way to be calibrated, and its share of the best; why there is none."""
    found = [row for row in rows if row["name"] == name]
    if not found:
        return "–"
    return _of_best(found[0], best) if "lds" in found[0] else "not in time"


def _of_best(row: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """LDS, and its share of the best."""
    return f"{row['lds']:.3f} ({row['lds'] / best['lds']:.1%})"


def ways_to_be_calibrated(runs: Iterable[dict[str, Any]]) -> list[str]:
    """LDS of the ways to be calibrated, and its share of the best of the sweep.

    Args:
        runs: Of `tuning.py`, one a setting.
    """
    lines = [
        "| setting | seconds | on | defaults | `retrained_from` | `bif.tune` | best of the sweep |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        setting = run["benchmark"].removeprefix("tuning-")
        for budget in dict.fromkeys(row["budget"] for row in run["rows"]):
            rows = [row for row in run["rows"] if row["budget"] == budget]
            best = next(row for row in rows if row["name"] == "best of the sweep")
            ways = [_way(rows, name, best) for name in _WAYS]
            lines.append(
                f"| {setting} | {budget:g} | {machine(run)} | {' | '.join(ways)} "
                f"| {best['lds']:.3f} |"
            )
    return lines


def told_elsewhere(run: dict[str, Any]) -> list[str]:
    """LDS where a problem is retrained from the other place, by what calibration is told.

    Args:
        run: Of `elsewhere.py`.
    """
    lines = [
        '| setting | retrained from | seconds | on | defaults | told "scratch" '
        '| told "checkpoint" |',
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, target in dict.fromkeys((r["setting"], r["target"]) for r in run["rows"]):
        found = {r["told"]: r for r in run["rows"] if r["setting"] == setting}
        values = [
            f"{found[told]['lds']:.3f}" if "lds" in found[told] else "not in time"
            for told in ("nothing", "scratch", "checkpoint")
        ]
        lines.append(
            f"| {setting} | {target} | {run['budget']:g} | {machine(run)} | {' | '.join(values)} |"
        )
    return lines
