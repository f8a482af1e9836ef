"""The sections of `docs/results.md`: every method on every setting, with plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import all_runs
from benchmarks.pages.runs import Run, add_own_size, describe_run, newest_of_settings
from benchmarks.pages.sections import cell, table
from benchmarks.pages.tables import by_columns
from bif.benchmark import judge
from bif.benchmark.plots import plots

_PLOTTED_AXES = ("seconds", "draws", "effective-draws", "fraction", "train-items")


def runs_of_page() -> dict[str, Run]:
    """Return the runs of the page by their titles."""
    runs = newest_of_settings()
    sizes = {f"{s}-sizes": (whole, all_runs(f"lds-{s}-sizes")) for s, whole in runs.items()}
    return {**runs, **{t: add_own_size(of[-1], whole) for t, (whole, of) in sizes.items() if of}}


def draw(images: Path) -> None:
    """Draw the plots of all runs anew."""
    for old in images.glob("lds-*.png"):
        old.unlink()
    for title, run in runs_of_page().items():
        sizes = title.endswith("-sizes")
        curves = run["rows"] if sizes else run["curves"]
        for kind, picture in plots(run["rows"], curves, title=title).items():
            if kind == "lds-against-train-items" or not sizes:
                (images / f"lds-{title}-{kind}.png").write_bytes(picture)


def results(images: Path) -> list[str]:
    """Return a section a setting; pictures are those that there are."""
    lines = []
    for title, run in runs_of_page().items():
        lines += ["", f"## {title}", "", *_preamble(run), ""]
        if title.endswith("-sizes"):
            lines += _by_sizes(run)
        else:
            lines += [judge.table(run["rows"]), judge.budget_table(run["rows"], run["curves"])]
        for axis in _PLOTTED_AXES:
            name = f"lds-{title}-lds-against-{axis}.png"
            if (images / name).exists():
                words = f"LDS against {axis.replace('-', ' ')}"
                lines += [f"![{title}: {words}](images/{name})", ""]
    return lines[:-1]


def _preamble(run: Run) -> list[str]:
    """Return what was run, where, and which methods are missing."""
    about = run["about"].get("about", "")
    further = [f"`{m}` is left out: {why}" for m, why in run.get("unsuited", {}).items()]
    if "default" in run:
        further.append(f"`bif_default`: {describe_run(run['default'])}")
    return [
        *([about, ""] if about else []),
        describe_run(run),
        *(x for m in further for x in ("", m)),
    ]


def _by_sizes(run: Run) -> list[str]:
    """Return LDS and seconds of each method by number of train items, and its runs' figures."""
    sizes = sorted({row["num_train"] for row in run["rows"]})
    labels = ["method", *(f"{n:,} items" for n in sizes)]
    lines = []
    for target, outcome in dict.fromkeys((r["target"], r["observable"]) for r in run["rows"]):
        rows = [r for r in run["rows"] if (r["target"], r["observable"]) == (target, outcome)]
        of = {m: own for (m,), own in by_columns(rows, ["method"], "num_train").items()}
        cells = [
            [method, *(f"{own[n]['lds']:.3f} ({own[n]['seconds']:.3g})" for n in sizes)]
            for method, own in of.items()
        ]
        for name, key in (("reliability of `bif`", "reliability"), ("its R-hat", "rhat_max")):
            cells.append([name, *(cell(of["bif"][n].get(key)) for n in sizes)])
        cells.append(["trusted", *(judge.verdict(of["bif"][n]) for n in sizes)])
        title = f"### {outcome}, retrained from {target}: LDS (seconds)"
        lines += ["", title, "", *table(labels, cells)]
    return [*lines, ""]
