"""Make `results/README.md`, `docs/results.md`, `docs/scaling.md` and `docs/language-results.md`
from the dated JSON files of `results/`, and the table in the project's `README.md`.

Nothing in them is typed by hand, and the plots are drawn anew.

    python benchmarks/tables.py
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from common import RESULTS, every, machine, newest, newest_of_sizes
from glances import (
    at_a_glance,
    beside_sweeps,
    remedies_followed,
    small_dampings,
    small_sets,
    small_temperatures,
    told_elsewhere,
    ways_to_be_calibrated,
)
from language_page import language_page, language_picture
from scaling_page import scaling_page, scaling_picture

from bif.benchmark import SETTINGS
from bif.benchmark.judge import at_edge, budget_table, chosen, table, verdict
from bif.benchmark.plots import plots

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by benchmarks/tables.py -->", "<!-- end -->"
BEGIN_SMALL = "<!-- small sets, made by benchmarks/tables.py -->"
COLUMNS = {
    "digits": {
        "method": "method", "target": "retrained from", "lds": "LDS", "ci_low": "95 % from",
        "ci_high": "to", "ceiling": "ceiling", "share_of_exact": "share of exact",
        "minus_exact": "minus exact", "minus_exact_low": "95 % from", "minus_exact_high": "to",
        "seconds": "seconds", "draws": "draws", "ess_median": "effective draws",
        "reliability": "reliability", "rhat_max": "R-hat", "verdict": "trusted",
    },
    "small": {
        "set": "set", "num_train": "items", "train_loss": "train loss", "target": "retrained from",
        "told": "told", "method": "method", "lds": "LDS", "ci_low": "95 % from", "ci_high": "to",
        "minus_bif": "minus bif", "minus_bif_low": "95 % from", "minus_bif_high": "to",
        "chosen": "chosen", "reliability": "reliability", "rhat_max": "R-hat",
        "verdict": "trusted", "seconds": "seconds",
    },
    "small-dampings": {
        "set": "set", "target": "retrained from", "yardstick": "gamma/nbeta", "lds": "LDS",
        "ci_low": "95 % from", "ci_high": "to", "chosen": "chosen", "reliability": "reliability",
        "rhat_max": "R-hat", "verdict": "trusted", "seconds": "seconds",
    },
    "small-temperatures": {
        "set": "set", "target": "retrained from", "times_n": "nbeta/n", "lds": "LDS",
        "ci_low": "95 % from", "ci_high": "to", "chosen": "chosen", "reliability": "reliability",
        "rhat_max": "R-hat", "verdict": "trusted", "seconds": "seconds",
    },
    "draws": {
        "sampler": "sampler", "how": "how", "chains": "chains", "draws_per_second": "draws/s",
        "tflops": "TFLOP/s", "share_of_bf16_peak": "share of bf16 peak",
        "peak_memory_gib": "peak GiB", "loss_error_rms": "loss error, rms",
        "loss_error_relative": "relative", "loss_error_max": "largest",
        "mean_loss": "mean loss", "mean_loss_error": "±", "mean_loss_float32": "in float32",
        "mean_loss_float32_error": "±",
    },
    "alignment": {
        "setting": "setting", "draws_for_half": "from gradients",
        "draws_for_half_in_the_run": "from the run", "effective_draws": "effective draws it had",
        "reliability": "its reliability", "rhat_max": "R-hat", "verdict": "trusted", "run": "run",
        "seconds": "seconds",
    },
    "temperatures": {
        "setting": "setting", "target": "retrained from", "nbeta/n": "nbeta/n", "lds": "LDS",
        "share_of_best": "of the best alone", "draws_of_each": "draws of each chain",
        "rhat_max": "R-hat", "verdict": "trusted",
    },
    "elsewhere": {
        "setting": "setting", "target": "retrained from", "told": "told", "lds": "LDS",
        "draws": "draws", "ess_median": "effective draws", "reliability": "reliability",
        "rhat_max": "R-hat", "verdict": "trusted", "seconds": "seconds",
    },
    "converged": {
        "run": "run", "trusted": "trusted", "failed": "gates that failed", "rhat_max": "R-hat",
        "ess_median": "effective draws", "reliability": "reliability",
        "drift_removed": "detrending", "drift_common": "drift",
        "chains_shared_variance": "independence", "virial": "virial", "kinetic": "temperature",
        "step_share": "step", "heat": "gradient noise", "significant_share": "certain signs",
        "significant_share_null": "with nothing to find",
    },
    "coverage": {
        "problem": "problem", "nbeta asked": "nbeta asked", "sampler": "sampler", "mass": "mass",
        "nbeta": "nbeta", "gamma": "gamma", "step_size": "step", "chains": "chains",
        "draws": "draws", "coverage": "coverage", "coverage_error": "±",
        "self_coverage": "of self-influence", "self_coverage_error": "±",
        "slope": "slope on the truth", "self_ratio": "self-influence over the truth",
        "rhat": "R-hat", "lost_chains": "chains lost", "trusted": "trusted",
        "failed": "gates that failed", "refused": "refused",
        "no_reference": "no reference, R-hat",
    },
    "healthy": {
        "problem": "problem", "items": "items", "weights": "weights", "trusted": "trusted",
        "failed": "gates that failed", "rhat_max": "R-hat", "reliability": "reliability",
        "ess_median": "effective draws", "virial": "virial", "mass": "mass", "step_size": "step",
        "seconds": "seconds",
    },
    "remedies": {
        "gate": "gate", "planted": "planted", "remedy": "remedy", "works": "works",
        "times": "after", "last": "the last of them", "then fails": "what fails then",
        "mass before": "mass", "mass then": "then",
    },
    **dict.fromkeys(
        (f"mixing-{setting}" for setting in SETTINGS),
        {
            "how": "chains", "effective_per_second": "effective draws a second",
            "ess_median": "effective draws", "draws": "draws", "reliability": "reliability",
            "rhat_max": "R-hat", "lds_loss": "LDS, loss", "lds_margin": "LDS, margin",
            "verdict": "trusted", "seconds": "seconds", "failed": "why not",
        },
    ),
    **dict.fromkeys(
        (f"tuning-{setting}" for setting in SETTINGS),
        {
            "budget": "seconds", "name": "calibrated by", "nbeta/n": "nbeta/n",
            "lds_loss": "LDS, loss", "lds_margin": "LDS, margin", "lds": "LDS, mean",
            "draws": "draws", "ess_median": "effective draws", "reliability": "reliability",
            "rhat_max": "R-hat", "verdict": "trusted",
        },
    ),
    **dict.fromkeys(
        (f"sweep-{setting}" for setting in SETTINGS),
        {
            "name": "how", "lds": "LDS", "share_of_best": "share of the best",
            "sampler": "sampler", "step": "step", "nbeta/n": "nbeta/n", "damping": "gamma/own",
            "ess_median": "effective draws", "reliability": "reliability", "rhat_max": "R-hat",
            "verdict": "trusted", "seconds": "seconds",
        },
    ),
    **dict.fromkeys(
        ("scaling", "scaling-items", "scaling-1b"),
        {
            "shape": "shape", "method": "method", "num_items": "items", "num_queries": "queries",
            "how": "how", "layout": "memory", "seconds_a_draw": "seconds a draw",
            "target": "target", "tflops": "TFLOP/s", "share_of_bf16_peak": "share of bf16 peak",
            "peak_memory_gib": "peak GiB", "forecast_gib": "forecast GiB",
            "warm_up_seconds": "warm-up", "fit_seconds": "fit", "score_seconds": "scores",
            "seconds": "seconds of an attribution", "reason": "reason",
        },
    ),
    **dict.fromkeys(
        ("durability-demo", "durability-fashion"),
        {
            "pair": "pair", "draws": "draws", "seconds_memory": "seconds, sums in memory",
            "seconds_disk": "seconds, traces on disk", "overhead": "overhead",
            "overhead_error": "±", "overhead_to_scores": "to the scores",
            "overhead_without_setup": "without set-up", "traces_mib": "traces, MiB",
        },
    ),
}  # fmt: skip
ABOUT = {
    "digits": "LDS on scikit-learn's digits against retraining. Damping of exact influence and "
    "settings of the BIF were chosen on other subsets and queries. The ceiling from the checkpoint "
    "is not known: full-batch retraining from one start has no noise.",
    "small": "LDS of the loss on twelve small sets by retraining on halves, the BIF given only the "
    "weight decay. In short: [docs/calibration.md](../../docs/calibration.md).",
    "small-dampings": "The same for the BIF alone, by the two yardsticks whose geometric mean the "
    "default damping is.",
    "small-temperatures": "The same for the BIF alone, at several temperatures and the default "
    "damping.",
    "alignment": "Effective draws for a reliability of one half: from the gradients at w* alone, "
    "by EK-FAC at the posterior's damping, and as the newest run of `lds.py` had it.",
    "temperatures": "Scores averaged over posteriors of several temperatures, each run's divided "
    "by their spread, beside each alone, for as many draws in all.",
    "elsewhere": "Problems retrained from the other place than where `retrained_from` got its "
    "widths: the defaults, and what either answer would give.",
    "converged": "Healthy and sick runs on the digits network of `bif demo`, for the docs page "
    '"Is my run converged?".',
    "coverage": "95 % intervals by automatic settings where U is not quadratic, against exact "
    "answers: shares that hold the truth, with errors that cluster by run. Trusted is the share of "
    "a few runs of their own. Rows of 60 draws are of samplers without momentum.",
    "healthy": "Problems with nothing wrong, with default settings: none may be refused.",
    "remedies": "Runs that fail a gate, and every alternative of its message followed to the "
    "letter, up to four times.",
    "durability-demo": "What it costs that nothing is lost, `bif demo`: the run on disk with all "
    "traces, beside the same with sums in memory; overheads as shares of the latter.",
    **{
        f"mixing-{setting}": "The same posterior by different chains, each for as many seconds "
        "with its calibration; LDS by networks retrained on halves of the items."
        for setting in SETTINGS
    },
    **{
        f"tuning-{setting}": "nbeta and gamma by the defaults, by what networks are retrained "
        "from, by `bif.tune` with its retraining and pilots in the seconds, and as they were best "
        "in the sweep."
        for setting in SETTINGS
    },
    **{
        f"sweep-{setting}": "Calibration beside the best of a sweep at the same wall-clock; the "
        "best is chosen by what is reported, so it is flattered."
        for setting in SETTINGS
    },
    "durability-fashion": "The same for BAOAB on the Fashion-MNIST network, 6,000 items and 200 "
    "queries.",
    "scaling": "Cost of a draw of SGLD against model size, GPT-NeoX with random weights, 144 "
    "sequences of 512 tokens scored at every draw and a step on 16 between draws. In words and "
    "pictures: [docs/scaling.md](../../docs/scaling.md).",
    "scaling-items": "The same against items and queries.",
    "scaling-1b": "EK-FAC at 1B beside the BIF, on another card.",
    "draws": "Draws a second on the Fashion-MNIST network, 6,000 items and 200 queries. FLOPs are "
    "counted as 6 a weight and item in steps and 2 in recording. Steps are timed: nothing is "
    "scored, so there is nothing to trust.",
}


def main() -> None:
    write_results()
    write_docs()
    write_readme()
    write_scaling()
    write_language()
    write_mixing()
    write_calibration()
    write_remedies()


def write_remedies() -> None:
    """What refused runs say to do, followed."""
    run = newest("remedies")
    if run is not None:
        lines = [where(run), "", *remedies_followed(run)]
        put_between_marks(DOCS / "converged.md", lines)


def write_mixing() -> None:
    """What an independent draw costs, by every way to make one, as a page of the documentation."""
    lines = [
        "# What an independent draw costs",
        "",
        "Made by `python benchmarks/tables.py` from the JSON files of `benchmarks/mixing.py`. "
        "Independent draws decide how well scores predict retraining, so their cost is what to "
        "lower. Kronecker mass and the other ways are explained in [samplers](samplers.md).",
        "",
        "*Perturb and optimise* needs no chain: each draw is the minimum, by so many momentum "
        "steps from w*, of U with its anchor and its labels redrawn, which has the posterior's law "
        "where the loss is quadratic. Every draw is independent of the others (its effective "
        "draws are its draws), but few steps do not reach the minimum, many leave few draws, and "
        "off the quadratic the law is another: it stays in the benchmark.",
        "",
        "*Refreshed control variates* take the gradient of all items at every draw, where their "
        "losses are needed anyway, and mini-batches against that draw in between; friction is ten "
        "times that of full gradients, since low friction multiplies the noise of gradients. "
        "There is nothing to gain: their effective draws a second are below those of full "
        "gradients on digits and on concrete. They stay in the benchmark too.",
        "",
        "On Fashion-MNIST the chains with a Kronecker mass diverged. A walk on which the mass was "
        "measured that runs off now begins again with smaller steps; that was not measured again.",
    ]
    for setting in SETTINGS:
        run = newest(f"mixing-{setting}")
        if run is not None:
            _, title, *rest = section(f"mixing-{setting}", run, COLUMNS[f"mixing-{setting}"])
            lines += ["", title.replace("mixing-", ""), "", run["about"], *rest]
    (DOCS / "mixing.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_results() -> None:
    """Every benchmark but those of `lds.py` as a table, in the folder itself."""
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/tables.py` from the JSON files in this folder, which hold the "
        "full settings. The newest run of each benchmark is shown; losses are included. Those of "
        "`benchmarks/lds.py` are in [docs/results.md](../../docs/results.md), with plots.",
    ]
    for name, columns in COLUMNS.items():
        for run in newest_of_sizes(name):
            lines += section(name, with_trust(run) if name == "alignment" else run, columns)
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_docs() -> None:
    """The LDS of every method on every setting, with plots, as a page of the documentation."""
    lines = [
        "# Measured: does it predict retraining?",
        "",
        "Made by `python benchmarks/tables.py` from the dated JSON files of `benchmarks/results/`, "
        "which hold full settings, versions and hardware. What the columns mean is in "
        "[evaluation](evaluation.md). Best first; losses are included.",
    ]
    lines += ["", *at_a_glance(newest_of_settings(), "")]
    images = DOCS / "images"  # those of other scripts stay
    for old in images.glob("lds-*.png"):
        old.unlink()
    for name in (*(f"lds-{s}" for s in SETTINGS), *(f"lds-{s}-sizes" for s in SETTINGS)):
        run = newest(name)
        if run is None:
            continue
        if name.endswith("-sizes"):
            run = with_whole(run, newest(name.removesuffix("-sizes")))
        else:
            run = with_default(with_edges(run), newest(f"{name}-default"))
        title = name.removeprefix("lds-")
        lines += ["", f"## {title}", "", *preamble(run), ""]
        if not name.endswith("-sizes"):
            budgets = budget_table(run["rows"], run["curves"])
            lines += [table(run["rows"]), budgets]
        else:
            lines += sizes_table(run["rows"])
        for kind, picture in plots(run["rows"], run["curves"], title=title).items():
            if name.endswith("-sizes") and kind != "lds-against-train-items":
                continue
            images.mkdir(exist_ok=True)
            (images / f"{name}-{kind}.png").write_bytes(picture)
            words = kind.replace("lds-against-", "LDS against ").replace("-", " ")
            lines += [f"![{title}: {words}](images/{name}-{kind}.png)", ""]
    run = newest("alignment")
    if run is not None:
        run = with_trust(run)
        _, _, *rest = section("alignment", run, COLUMNS["alignment"])
        lines += ["## draws needed", *rest]
    (DOCS / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def write_readme() -> None:
    """The glance at every setting, on the front page."""
    put_between_marks(
        DOCS.parent / "README.md", at_a_glance(newest_of_settings(), "docs/results.md")
    )


def write_calibration() -> None:
    """The sweeps, and ways to be calibrated beside their best at growing budgets."""
    sweeps, tunings = (
        [run for setting in SETTINGS for run in newest_of_sizes(f"{name}-{setting}")]
        for name in ("sweep", "tuning")
    )
    lines = [*beside_sweeps(sweeps), "", *ways_to_be_calibrated(tunings)]
    elsewhere = newest("elsewhere")
    if elsewhere is not None:
        lines += ["", *told_elsewhere(elsewhere)]
    put_between_marks(DOCS / "calibration.md", lines)
    of_small: list[str] = []
    small = newest("small")
    assert small is not None
    for name, short in (
        ("small", small_sets),
        ("small-dampings", functools.partial(small_dampings, default=small)),
        ("small-temperatures", small_temperatures),
    ):
        run = newest(name)
        if run is not None:
            of_small += ["", where(run), "", *short(run)]
    put_between_marks(DOCS / "calibration.md", of_small[1:], begin=BEGIN_SMALL)


def put_between_marks(page: Path, lines: list[str], *, begin: str = BEGIN) -> None:
    """Lines in the place of those that a page has between two marks."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(END, 1)
    middle = "\n".join(lines)
    page.write_text(f"{before}{begin}\n{middle}\n{END}{after}", encoding="utf-8")


def newest_of_settings() -> dict[str, dict[str, Any]]:
    """The newest run of every setting that has one."""
    found = {setting: newest(f"lds-{setting}") for setting in SETTINGS}
    return {
        setting: with_default(run, newest(f"lds-{setting}-default"))
        for setting, run in found.items()
        if run is not None
    }


def with_edges(run: dict[str, Any]) -> dict[str, Any]:
    """Rows of earlier versions, which do not say where tuning ended at the edge of its grid."""
    tuned = {(t["method"], t["observable"]): t["tuned"] for t in run.get("tuned", ())}
    return {
        **run,
        "rows": [
            {"at_edge": at_edge(r["choice"], tuned.get((r["method"], r["observable"]), ())), **r}
            for r in run["rows"]
        ],
    }


def with_default(run: dict[str, Any], default: dict[str, Any] | None) -> dict[str, Any]:
    """A run with the rows of the BIF's defaults, where these were run on their own."""
    known = {row["method"] for row in run["rows"]}
    own = [row for row in default["rows"] if row["method"] == "bif_default"] if default else []
    if default is None or "bif_default" in known:
        return run
    return {**run, "rows": [*run["rows"], *own], "default": default}


def with_whole(run: dict[str, Any], whole: dict[str, Any] | None) -> dict[str, Any]:
    """A run over sizes with the rows of the setting's own size among them, on the same hardware."""
    if whole is None or whole["hardware"].get("gpu") != run["hardware"].get("gpu"):
        return run
    size, known = whole["about"]["num_train"], {row["method"] for row in run["rows"]}
    sizes = {row["num_train"] for row in run["rows"]}
    own = [{**row, "num_train": size} for row in whole["rows"] if row["method"] in known]
    rows = run["rows"] if size in sizes else [*run["rows"], *own]
    return {**run, "rows": rows, "curves": rows}


def sizes_table(rows: list[dict[str, Any]]) -> list[str]:
    """LDS and seconds of each method by number of train items."""
    sizes = sorted({row["num_train"] for row in rows})
    lines = []
    for target, outcome in dict.fromkeys((r["target"], r["observable"]) for r in rows):
        lines += ["", f"### {outcome}, retrained from {target}: LDS (seconds)", ""]
        lines += ["| method | " + " | ".join(f"{n:,} items" for n in sizes) + " |"]
        lines += ["|" + " --- |" * (1 + len(sizes))]
        for method in dict.fromkeys(r["method"] for r in rows):
            own = {
                r["num_train"]: f"{r['lds']:.3f} ({r['seconds']:.3g})"
                for r in rows
                if (r["method"], r["target"], r["observable"]) == (method, target, outcome)
            }
            lines += [f"| {method} | " + " | ".join(own.get(n, "–") for n in sizes) + " |"]
        lines += of_its_runs(rows, target, outcome, sizes)
    return [*lines, ""]


def of_its_runs(
    rows: list[dict[str, Any]], target: str, outcome: str, sizes: list[int]
) -> list[str]:
    """Further lines of a table over sizes: what the runs of the BIF say of themselves."""
    own = {
        r["num_train"]: r
        for r in rows
        if (r["method"], r["target"], r["observable"]) == ("bif", target, outcome)
    }
    lines = [
        f"| {name} | " + " | ".join(cell(own.get(n, {}).get(key)) for n in sizes) + " |"
        for name, key in (("reliability of `bif`", "reliability"), ("its R-hat", "rhat_max"))
    ]
    verdicts = " | ".join(verdict(own.get(n, {})) for n in sizes)
    return [*lines, f"| trusted | {verdicts} |"]


def write_scaling() -> None:
    """Cost against model size, with a plot."""
    run, picture = newest("scaling"), DOCS / "images" / "scaling-weights.png"
    picture.unlink(missing_ok=True)
    if run is not None:
        picture.write_bytes(scaling_picture(run))
    page = scaling_page(
        run, newest("scaling-items"), newest("scaling-1b"), where=where, cell=cell,
        pictured=run is not None,
    )  # fmt: skip
    (DOCS / "scaling.md").write_text(page, encoding="utf-8")


def write_language() -> None:
    """What scores are worth on real text, with a picture."""
    small, response = newest("language-lds-small"), newest("language-lds-response")
    if small and response:
        small = with_rows(small, response)
    larger = every("language-lds")
    large = functools.reduce(with_rows, larger) if larger else None
    found = [run for run in (newest("language"), newest("language-planted"), large, small) if run]
    runs = [run for run in found if not run.get("tiny")]
    picture = DOCS / "images" / "language.png"
    picture.unlink(missing_ok=True)
    if runs:
        picture.write_bytes(language_picture(runs))
    page = language_page(runs, where=where, cell=cell, lds_table=table, pictured=bool(runs))
    (DOCS / "language-results.md").write_text(page, encoding="utf-8")


def with_rows(run: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """The rows of a run, and of a later one on the same networks those of other methods.

    Raises:
        ValueError: The networks are others.
    """
    for name in ("seed", "sizes"):
        if run[name] != later[name]:
            raise ValueError(f"the runs differ in {name!r}: their networks are not the same.")
    known = {row["method"] for row in run["rows"]}
    rows = [*run["rows"], *(row for row in later["rows"] if row["method"] not in known)]
    earlier = [*run.get("earlier_commands", []), run["command"]]
    return {**later, "about": run["about"], "rows": rows, "earlier_commands": earlier}


def preamble(run: dict[str, Any]) -> list[str]:
    """What was run, where, and which methods are missing."""
    about = run["about"].get("about", "")
    missing = [f"`{m}` is left out: {why}" for m, why in run.get("unsuited", {}).items()]
    if "default" in run:
        missing.append(f"`bif_default`: {where(run['default'])}")
    return [*([about, ""] if about else []), where(run), *(x for m in missing for x in ("", m))]


def where(run: dict[str, Any]) -> str:
    """Command, machine and versions of a run in a sentence."""
    versions = run["versions"]
    return (
        f"`{run['command']}` on {machine(run)}, {run['date']}, PyTorch {versions['torch']}, Python "
        f"{versions['python']}, seed {run['seed']}."
    )


def section(name: str, run: dict[str, Any], columns: dict[str, str]) -> list[str]:
    rows = [with_words(row) for row in run["rows"]]
    keys = [key for key in columns if any(row.get(key) not in (None, "–") for row in rows)]
    lacking = lacking_settings(run)
    return [
        "",
        f"## {run['benchmark']}, {run['date']}",
        "",
        ABOUT[name],
        "",
        where(run),
        *(["", f"Cut short: without {', '.join(lacking)}."] if lacking else []),
        "",
        "| " + " | ".join(columns[key] for key in keys) + " |",
        "|" + " --- |" * len(keys),
        *("| " + " | ".join(cell(row.get(key)) for key in keys) + " |" for row in rows),
    ]


def with_words(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what its table says of its run and its choice."""
    found = {**row, "verdict": verdict(row)}
    if "choice" in row:
        found["chosen"] = chosen(row["choice"], row.get("at_edge", ()))
    return found


def lacking_settings(run: dict[str, Any]) -> list[str]:
    """Settings that a run's command names and its rows lack."""
    known = {row["setting"] for row in run["rows"] if "setting" in row}
    named = run["command"].split(" --")[0].split()[2:]
    return [word for word in named if known and word in SETTINGS and word not in known]


def with_trust(run: dict[str, Any]) -> dict[str, Any]:
    """Rows that take figures from another file's run of the BIF, with its R-hat and its gates."""
    rows = []
    for row in run["rows"]:
        file = RESULTS / str(row.get("run"))
        source = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
        own = next((r for r in source if r["method"] == "bif"), {})
        names = ("rhat_max", "trusted", "failed_gates")
        rows.append({**row, **{name: own[name] for name in names if name in own}})
    return {**run, "rows": rows}


def cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
