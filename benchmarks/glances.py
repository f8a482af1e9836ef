"""Short tables for the front page and for the page on calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common import machine

from bif.benchmark.judge import verdict

_WAYS = ("defaults", "retrained_from", "tuned")


def at_a_glance(runs: Mapping[str, dict[str, Any]], page: str) -> list[str]:
    """The BIF, set by hand and by default, beside EK-FAC on every setting, by the LDS of the loss.

    Args:
        runs: Setting -> its newest run.
        page: Address of the page with all methods, whose sections are the settings.
    """
    lines = [
        "| setting | retrained from | BIF, set by hand | its nbeta | EK-FAC | difference, 95 % "
        "| ceiling | reliability | R-hat | trusted | BIF by default | trusted | BIF, seconds "
        "| EK-FAC, seconds | on |",
        "|" + " --- |" * 15,
    ]
    for setting, run in runs.items():
        rows = {(r["method"], r["target"]): r for r in run["rows"] if r["observable"] == "loss"}
        for (method, target), bif in rows.items():
            rival = rows.get(("ekfac", target))
            if method != "bif" or rival is None:
                continue
            low, high = bif["minus_ekfac_low"], bif["minus_ekfac_high"]
            ceiling = "–" if bif["ceiling"] is None else f"{bif['ceiling']:.2f}"
            default = rows.get(("bif_default", target), {})
            by_default = f"{default['lds']:.3f}" if default else "–"
            lines.append(
                f"| [{setting}]({page}#{setting}) | {target} | {bif['lds']:.3f} "
                f"| {bif['choice']['nbeta/n']:g} n | {rival['lds']:.3f} "
                f"| {low:+.3f} to {high:+.3f} | {ceiling} | {bif['reliability']:.2f} "
                f"| {bif['rhat_max']:.3f} | {verdict(bif)} | {by_default} | {verdict(default)} "
                f"| {bif['seconds']:.3g} | {rival['seconds']:.3g} | {machine(run)} |"
            )
    return [*lines, "", _hand_set(runs, page.replace("results", "converged") or "converged.md")]


def _hand_set(runs: Mapping[str, dict[str, Any]], gates: str) -> str:
    """What the table does not count: how hand-set temperatures were found.

    Args:
        runs: As for `at_a_glance`.
        gates: Address of the page that explains them.
    """
    given = [setting for setting, run in runs.items() if len(run["about"].get("settings", ())) == 1]
    chosen = [setting for setting in runs if setting not in given]
    said = [
        'nbeta and gamma were set by hand for each setting, and "BIF by default" is given nothing '
        "but the weight decay (– where that was not run)."
    ]
    if chosen:
        said.append(
            f"On {', '.join(chosen)} pilots on the tuning part chose between a few such values, "
            "and count in the seconds."
        )
    if given:
        said.append(
            f"On {', '.join(given)} the values had been fixed before the run, and what it took to "
            "find them counts nowhere."
        )
    said.append(
        f"A run that the [gates]({gates}) refuse is no result, whatever its LDS; – where an older "
        "file does not say, unless its R-hat does."
    )
    return " ".join(said)


def small_sets(run: dict[str, Any]) -> list[str]:
    """The BIF given only the weight decay beside what is simpler, with paired differences.

    Args:
        run: Of `small.py`.
    """
    names = {
        "gradient_product": "gradient product", "ekfac": "EK-FAC, tuned",
        "exact_ggn": "Gauss-Newton, tuned", "exact_ggn@bif": "Gauss-Newton, same damping",
    }  # fmt: skip
    rivals = [n for n in names if any(row["method"] == n for row in run["rows"])]
    lines = [
        "| set | items | train loss | retrained from | "
        + " | ".join(f"{names[n]} | BIF minus it, 95 %" for n in rivals)
        + " | BIF | its nbeta | R-hat | trusted | seconds |",
        "|" + " --- |" * (9 + 2 * len(rivals)),
    ]
    for line in dict.fromkeys(map(_line, run["rows"])):
        own = {r["method"]: r for r in run["rows"] if _line(r) == line}
        name, target, told = line
        ours, cells = own["bif"], []
        for rival in rivals:
            row = own.get(rival)
            cells += ["–", "–"] if row is None else [
                f"{row['lds']:.3f}",
                f"{-row['minus_bif_high']:+.3f} to {-row['minus_bif_low']:+.3f}",
            ]  # fmt: skip
        lines.append(
            f"| {name} | {ours['num_train']} | {ours['train_loss']:.2g} "
            f"| {target}{', told so' if told else ''} | "
            f"{' | '.join(cells)} | {ours['lds']:.3f} | {ours['choice']['nbeta/n']:.3g} n "
            f"| {ours['rhat_max']:.3f} | {verdict(ours)} | {ours['seconds']:.3g} |"
        )
    return lines


def _line(row: dict[str, Any]) -> tuple[str, str, bool]:
    return row["set"], row["target"], "told" in row


def small_temperatures(run: dict[str, Any]) -> list[str]:
    """LDS of the BIF on small sets by temperature, the best of a line bold; untrusted ones marked.

    Args:
        run: Of `small.py --nbeta`.
    """
    factors = sorted({row["times_n"] for row in run["rows"]})
    return _in_columns(run["rows"], "times_n", {f: f"{f:g} n" for f in factors})


def small_dampings(run: dict[str, Any], default: dict[str, Any]) -> list[str]:
    """The same by damping: each yardstick alone, and the default.

    Args:
        run: Of `small.py --dampings`.
        default: Of `small.py`.
    """
    ours = [
        {**row, "yardstick": "default"}
        for row in default["rows"]
        if row["method"] == "bif" and "told" not in row
    ]
    names = {"largest": "a alone", "leftover": "min(a, r) alone", "default": "default"}
    return _in_columns(run["rows"] + ours, "yardstick", names)


def _in_columns(rows: list[dict[str, Any]], by: str, names: dict[Any, str]) -> list[str]:
    """LDS with a column for each value of `by`."""
    lines = [
        "| set | retrained from | " + " | ".join(names.values()) + " |",
        "|" + " --- |" * (2 + len(names)),
    ]
    for name, target in dict.fromkeys((r["set"], r["target"]) for r in rows):
        own = {r[by]: r for r in rows if (r["set"], r["target"]) == (name, target)}
        best = max(row["lds"] for row in own.values())
        cells = []
        for value in names:
            row = own.get(value)
            text = "–" if row is None else f"{row['lds']:.3f}"
            text = f"**{text}**" if row and row["lds"] == best else text
            cells.append(marked(text, row or {}))
        lines.append(f"| {name} | {target} | {' | '.join(cells)} |")
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
            f"| {' | '.join(ways)} | {_lds(best)} "
            f"| {best['nbeta/n']:g} × default "
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
    return marked(f"{row['lds']:.3f} ({row['lds'] / best['lds']:.1%})", row)


def _lds(row: Mapping[str, Any]) -> str:
    return marked(f"{row['lds']:.3f}", row)


def remedies_followed(run: dict[str, Any]) -> list[str]:
    """Every alternative that a refused run named, and whether its gate passes with it.

    Args:
        run: Of `remedies.py`.
    """
    lines = [
        "| gate | what was planted | what the message says to set | the gate passes | what fails "
        "then |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in run["rows"]:
        passes = "no"
        if row.get("works"):
            passes = "at once" if row["times"] == 1 else f"the {row['times']}th time"
        passes = passes.replace("2th", "2nd").replace("3th", "3rd")
        remedy = f"`{row['remedy']}`" if "remedy" in row else "–"
        lines.append(
            f"| {row['gate']} | {row['planted']} | {remedy} | {passes} "
            f"| {row.get('then fails') or '–'} |"
        )
    return lines


def marked(text: str, row: Mapping[str, Any]) -> str:
    """A figure, with a word if its run is not trusted."""
    refused = verdict(row).startswith("no")
    return f"{text}, not trusted" if refused else text


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
                f"| {setting} | {budget:g} | {machine(run)} | {' | '.join(ways)} | {_lds(best)} |"
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
            _lds(found[told]) if "lds" in found[told] else "not in time"
            for told in ("nothing", "scratch", "checkpoint")
        ]
        lines.append(
            f"| {setting} | {target} | {run['budget']:g} | {machine(run)} | {' | '.join(values)} |"
        )
    return lines
