"""The short tables of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import all_runs, newest_run
from benchmarks.pages.runs import describe_run, machine, newest_of_settings, newest_of_sizes
from benchmarks.pages.sections import table
from bif.benchmark import SETTINGS
from bif.benchmark.judge import choice_text, verdict

Row = Mapping[str, Any]
_RIVALS = {
    "gradient_product": "gradient product", "ekfac": "EK-FAC, tuned",
    "exact_ggn": "Gauss-Newton, tuned", "exact_ggn@bif": "Gauss-Newton, same damping",
}  # fmt: skip
_WAYS = {"defaults": "defaults", "retrained_from": "`retrained_from`", "tuned": "`bif.tune`"}


def at_a_glance(page: str) -> list[str]:
    """Show the BIF, set by hand and by default, beside EK-FAC, by the LDS of the loss.

    Args:
        page: Address of the page with all methods, whose sections are the settings.
    """
    labels = (
        "setting | retrained from | BIF, set by hand | its nbeta | EK-FAC | difference, 95 % | "
        "ceiling | reliability | R-hat | trusted | BIF by default | trusted | BIF, seconds | "
        "EK-FAC, seconds | on"
    ).split(" | ")
    lines = []
    for setting, run in newest_of_settings().items():
        rows = {(r["method"], r["target"]): r for r in run["rows"] if r["observable"] == "loss"}
        for target in dict.fromkeys(target for _, target in rows):
            bif, rival = rows["bif", target], rows["ekfac", target]
            default = rows.get(("bif_default", target), {})
            low, high = bif["minus_ekfac_low"], bif["minus_ekfac_high"]
            lines.append([
                f"[{setting}]({page}#{setting})", target, figure(bif["lds"]),
                f"{bif['choice']['nbeta/n']:g} n", figure(rival["lds"]),
                f"{low:+.3f} to {high:+.3f}", figure(bif["ceiling"], 2),
                figure(bif["reliability"], 2), figure(bif["rhat_max"]), verdict(bif),
                figure(default.get("lds")), verdict(default), f"{bif['seconds']:.3g}",
                f"{rival['seconds']:.3g}", machine(run),
            ])  # fmt: skip
    return table(labels, lines)


def solving() -> list[str]:
    """Show the response by solving beside rivals of the same run, setting by setting.

    Rows of `-cg` files are of earlier runs of rivals that take long, on networks retrained alike;
    those of `-items` files are of later runs, with the curvature of some of the items beside.
    """
    return _beside_ekfac(
        ["items", "solver", "cg"],
        ["steps", "damping", "trusted"],
        lambda row: [figure(row.get("solver_steps"), 0), figure(row.get("damping"), 3),
                     verdict(row)],
    )  # fmt: skip


def along_path() -> list[str]:
    """Show rivals that follow the training beside EK-FAC of the same run, setting by setting."""
    return _beside_ekfac(
        ["path"], ["chosen"], lambda row: [choice_text(row["choice"], row["at_edge"])]
    )


def _beside_ekfac(
    kinds: list[str], labels: list[str], cells: Callable[[Mapping[str, Any]], list[str]]
) -> list[str]:
    """Return the rows of the newest runs of some kinds, with more columns, and their commands."""
    first = (
        "setting | outcome | method | LDS | 95 % | minus EK-FAC, 95 % | seconds | of these tuning"
    ).split(" | ")
    lines, commands = [], []
    for setting in SETTINGS:
        found = [newest_run(f"lds-{setting}-{kind}") for kind in kinds]
        runs = [run for run in found if run is not None]
        commands += [describe_run(run) for run in runs]
        known: set[str] = set()
        for row in (row for run in runs for row in _others(run, known)):
            low, high = row.get("minus_ekfac_low"), row.get("minus_ekfac_high")
            paired = "–" if low is None else f"{low:+.3f} to {high:+.3f}"
            lines.append([
                f"{setting}, {row['target']}", row["observable"], f"`{row['method']}`",
                figure(row["lds"]), f"{row['ci_low']:.3f} to {row['ci_high']:.3f}", paired,
                f"{row['seconds']:.3g}", f"{row['tuning_seconds']:.3g}", *cells(row),
            ])  # fmt: skip
    between = [line for command in commands for line in (command, "")]
    return [*table([*first, *labels], lines), "", *between[:-1]]


def _others(run: Mapping[str, Any], known: set[str]) -> list[Mapping[str, Any]]:
    """Return the rows of methods that are not known yet, and add these to what is known."""
    rows = [row for row in run["rows"] if row["method"] not in known]
    known.update(row["method"] for row in rows)
    return rows


def small_sets() -> list[str]:
    """Show the BIF given only the weight decay beside what is simpler, with paired differences."""
    rows = all_runs("small")[-1]["rows"]
    labels = "set | items | train loss | retrained from".split(" | ")
    labels += [label for name in _RIVALS.values() for label in (name, "BIF minus it, 95 %")]
    labels += "BIF | its nbeta | R-hat | trusted | seconds".split(" | ")
    lines = []
    for (name, target, told), own in by_columns(rows, ["set", "target", "told"], "method").items():
        bif = own["bif"]
        cells = [name, str(bif["num_train"]), f"{bif['train_loss']:.2g}",
                 f"{target}, told so" if told else target]  # fmt: skip
        for rival in (own[name] for name in _RIVALS):
            low, high = -rival["minus_bif_high"], -rival["minus_bif_low"]
            cells += [figure(rival["lds"]), f"{low:+.3f} to {high:+.3f}"]
        cells += [figure(bif["lds"]), f"{bif['choice']['nbeta/n']:.3g} n",
                  figure(bif["rhat_max"]), verdict(bif), f"{bif['seconds']:.3g}"]  # fmt: skip
        lines.append(cells)
    return table(labels, lines)


def small_by_solving() -> list[str]:
    """Show the response given only the weight decay beside the BIF and Gauss-Newton influence."""
    rows = [row for row in all_runs("small-solver")[-1]["rows"] if "told" not in row]
    labels = "set | retrained from | EK-FAC, tuned | Gauss-Newton, tuned | response | seconds | "
    labels += "BIF | seconds | BIF minus response, 95 %"
    lines = []
    for (name, target), own in by_columns(rows, ["set", "target"], "method").items():
        solved, bif = own["solver_default"], own["bif"]
        low, high = -solved["minus_bif_high"], -solved["minus_bif_low"]
        lines.append(
            [name, target, figure(own["ekfac"]["lds"]), figure(own["exact_ggn"]["lds"]),
             figure(solved["lds"]), f"{solved['seconds']:.2g}", figure(bif["lds"]),
             f"{bif['seconds']:.3g}", f"{low:+.3f} to {high:+.3f}"]
        )  # fmt: skip
    return table(labels.split(" | "), lines)


def small_temperatures() -> list[str]:
    """Show the LDS of the BIF on small sets by temperature."""
    rows = all_runs("small-temperatures")[-1]["rows"]
    factors = sorted({row["times_n"] for row in rows})
    return _best_in_bold(rows, "times_n", {f: f"{f:g} n" for f in factors})


def small_dampings() -> list[str]:
    """Show the same by damping: each yardstick alone, and the default."""
    default = [
        {**row, "yardstick": "default"}
        for row in all_runs("small")[-1]["rows"]
        if row["method"] == "bif" and "told" not in row
    ]
    names = {"largest": "a alone", "leftover": "min(a, r) alone", "default": "default"}
    return _best_in_bold(all_runs("small-dampings")[-1]["rows"] + default, "yardstick", names)


def _best_in_bold(rows: Sequence[Row], by: str, names: Mapping[Any, str]) -> list[str]:
    lines = []
    for (name, target), own in by_columns(rows, ["set", "target"], by).items():
        best = max(row["lds"] for row in own.values())
        bold = {at: "**{}**" if row["lds"] == best else "{}" for at, row in own.items()}
        cells = [mark_untrusted(bold[at].format(figure(own[at]["lds"])), own[at]) for at in names]
        lines.append([name, target, *cells])
    return table(["set", "retrained from", *names.values()], lines)


def calibration_beside_sweeps() -> list[str]:
    """Show the ways to be calibrated beside the best of a grid, each with the same seconds."""
    labels = ["setting", "seconds", "on", *_WAYS.values(), "best of the sweep", "its nbeta",
              "its gamma", "settings tried", "came to an end"]  # fmt: skip
    lines = []
    for run in (run for setting in SETTINGS for run in newest_of_sizes(f"sweep-{setting}")):
        tried = [row for row in run["sweep"] if row["name"] == "sweep"]
        ended = [row for row in tried if "lds" in row]
        best = max(ended, key=lambda r: r["lds"])
        _, setting, *size = run["benchmark"].split("-")
        lines.append([
            f"{setting}, {size[0]} items" if size else setting, f"{run['budget']:g}", machine(run),
            *_ways(run["sweep"], best), f"{best['nbeta/n']:g} × default",
            f"{best['damping']:g} × default", str(len(tried)), str(len(ended)),
        ])  # fmt: skip
    return table(labels, lines)


def calibration_by_budget() -> list[str]:
    """Show the ways to be calibrated, and their share of the best of the sweep."""
    labels = ["setting", "seconds", "on", *_WAYS.values(), "best of the sweep"]
    lines = []
    for setting in SETTINGS:
        for run in all_runs(f"tuning-{setting}")[-1:]:
            for (budget,), own in by_columns(run["rows"], ["budget"], "name").items():
                ways = _ways(own.values(), own["best of the sweep"])
                lines.append([setting, f"{budget:g}", machine(run), *ways])
    return table(labels, lines)


def _ways(rows: Any, best: Row) -> list[str]:
    """Return the LDS of every way and its share of the best, or why there is none; the best."""
    own = {row["name"]: row for row in rows}
    return [
        figure_or_reason(own.get(way), lambda r: f" ({r['lds'] / best['lds']:.1%})")
        for way in _WAYS
    ] + [figure_or_reason(best)]  # fmt: skip


def retrained_elsewhere() -> list[str]:
    """Show the LDS where a problem is retrained from the other place, by what it is told."""
    run = all_runs("elsewhere")[-1]
    labels = ["setting", "retrained from", "seconds", "on", "defaults", 'told "scratch"',
              'told "checkpoint"']  # fmt: skip
    return table(labels, [
        [setting, target, f"{run['budget']:g}", machine(run),
         *(figure_or_reason(own.get(told)) for told in ("nothing", "scratch", "checkpoint"))]
        for (setting, target), own in by_columns(run["rows"], ["setting", "target"], "told").items()
    ])  # fmt: skip


def remedies() -> list[str]:
    """Show every alternative that a refused run named, and whether its gate passes with it."""
    labels = ["gate", "what was planted", "what the message says to set", "the gate passes",
              "what fails then"]  # fmt: skip
    times = {1: "at once", 2: "the 2nd time", 3: "the 3rd time", 4: "the 4th time"}
    return table(labels, [
        [row["gate"], row["planted"], f"`{row['remedy']}`" if "remedy" in row else "–",
         times[row["times"]] if row.get("works") else "no", row.get("then fails") or "–"]
        for row in all_runs("remedies")[-1]["rows"]
    ])  # fmt: skip


# --- Cells ----------------------------------------------------------------------------------------


def by_columns(
    rows: Sequence[Row], lines: Sequence[str], column: str
) -> dict[tuple[Any, ...], dict[Any, Row]]:
    """Return for every line of a table its rows by the value of a column."""
    found: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in lines), {})[row[column]] = row
    return found


def figure_or_reason(row: Row | None, more: Callable[[Row], str] = lambda _: "") -> str:
    """Return the LDS of a run, or why there is none."""
    if row is None:
        return "–"
    return mark_untrusted(figure(row["lds"]) + more(row), row) if "lds" in row else "not in time"


def mark_untrusted(text: str, row: Row) -> str:
    """Return a figure, with a word if its run is not trusted."""
    return f"{text}, not trusted" if verdict(row).startswith("no") else text


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits after the point, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"
