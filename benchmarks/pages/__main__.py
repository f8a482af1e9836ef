"""Put the tables and pictures of committed runs into the documentation.

A page says what it wants between two marks, `<!-- made by benchmarks.pages: NAME -->` and
`<!-- end -->`; what stands there is made of the dated JSON files of `benchmarks/results` and typed
by nobody.  The plots are drawn anew.

    python -m benchmarks.pages
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import RESULTS, all_runs, newest_run
from benchmarks.pages import (
    crossover,
    generalisation,
    induction,
    kernels,
    language,
    lds,
    scaling,
    shifts,
    steering,
    tables,
)
from benchmarks.pages.runs import Run, describe_run
from benchmarks.pages.sections import SECTIONS, rows_as_table, sections

ROOT = RESULTS.parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", RESULTS / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AVERAGES = ("averages", "averages-concrete")
TABLES: dict[str, Callable[[], list[str]]] = {
    "at a glance": lambda: tables.at_a_glance("docs/results.md"),
    "at a glance, on the page itself": lambda: tables.at_a_glance(""),
    "lds": lambda: lds.results(IMAGES),
    "solving": tables.solving,
    "along the path": tables.along_path,
    "sweeps": tables.calibration_beside_sweeps,
    "growing budgets": tables.calibration_by_budget,
    "told elsewhere": tables.retrained_elsewhere,
    "small sets": lambda: [describe_newest("small"), "", *tables.small_sets()],
    "small sets by solving": lambda: [
        describe_newest("small-solver"), "", *tables.small_by_solving()
    ],
    "small sets by damping": lambda: [
        describe_newest("small-dampings"), "", *tables.small_dampings()
    ],
    "small sets by temperature": lambda: [
        describe_newest("small-temperatures"), "", *tables.small_temperatures()
    ],
    "remedies followed": lambda: [describe_newest("remedies"), "", *tables.remedies()],
    "mixing": lambda: sections("mixing", on_its_page=True),
    **{name: lambda n=name: [
        describe_newest(n), "", *rows_as_table(all_runs(n)[-1]["rows"], SECTIONS[n].columns),
    ] for name in ("anchored", "ablation")},
    "averages": lambda: [
        *(line for run in newest_of(AVERAGES) for line in (describe_run(run), "")),
        *rows_as_table(
            [row for run in newest_of(AVERAGES) for row in run["rows"]],
            SECTIONS["averages"].columns,
        ),
    ],
    "crossover": crossover.crossover,
    "steering": steering.achieved,
    "steering, told": steering.told,
    "steering, side effects": steering.beside,
    "generalisation": generalisation.summary,
    "kernels and hierarchies": kernels.hierarchies,
    "kernels of mislabelled items": kernels.mislabelled,
    "kernels of backdoored items": kernels.backdoored,
    "kernels over checkpoints": kernels.levels,
    "kernels of the toy": kernels.toy,
    "radii of shifts": shifts.radii,
    "second order of shifts": shifts.second_order,
    "shifts from outside": shifts.outside,
    "language": language.training_line,
    **{f"language, {part}": lambda p=part: language.part(p)
       for part in ("tokens", "planted", "lds")},
    **{f"costs of {name}": lambda n=name: scaling.costs(n)
       for name in ("scaling", "scaling-items", "scaling-1b", "scaling-response")},
    "plans and runs": scaling.planned,
    **{f"laws of {name}": lambda n=name: scaling.laws(n) for name in ("scaling", "scaling-items")},
    **{f"rows of {name}": lambda n=name: sections(n) for name in SECTIONS},
}  # fmt: skip
"""The functions that write between two marks, by the name in the mark."""
_BLOCK = re.compile(r"<!-- made by benchmarks\.pages: ([^\n]+?) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    lds.draw(IMAGES)
    language.figure().savefig(IMAGES / "language.png", dpi=130)
    scaling.figure(all_runs("scaling")[-1]).savefig(IMAGES / "scaling-weights.png", dpi=130)
    induction.figure(all_runs("induction")[-1]).savefig(IMAGES / "stages-induction.png", dpi=130)
    shifts.figure().savefig(IMAGES / "shifts.png", dpi=130)
    for page in PAGES:
        page.write_text(fill_page(page), encoding="utf-8")


def fill_page(page: Path) -> str:
    """Return a page with the generated lines between its marks."""

    def between(marks: re.Match[str]) -> str:
        lines = "\n".join(TABLES[marks[1]]())
        return f"<!-- made by benchmarks.pages: {marks[1]} -->\n{lines}\n<!-- end -->"

    return _BLOCK.sub(between, page.read_text(encoding="utf-8"))


def newest_of(names: Sequence[str]) -> list[Run]:
    """Return the newest run of each name that has one."""
    return [run for run in map(newest_run, names) if run is not None]


def describe_newest(name: str) -> str:
    """Return command and machine of a benchmark's newest run."""
    return describe_run(all_runs(name)[-1])


if __name__ == "__main__":
    main()
