"""LDS of every method on the settings of `bif lds`.

One dated JSON file a setting: rows, curves, what was tuned, plan, versions and hardware.
`tables.py` makes tables and plots of them; `bif lds SETTING` does all of it in any folder.

    python benchmarks/lds.py logistic digits --out benchmarks/results
    python benchmarks/lds.py fashion --data DIR --out benchmarks/results --device cuda
    python benchmarks/lds.py fashion --data DIR --out benchmarks/results --device cuda \
        --sizes 500 1000 2000 6000 20000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import parser, write

from bif.benchmark import SETTINGS, Results, benchmark, benchmark_sizes, named_task
from bif.benchmark.judge import table


def measured(setting: str, arguments: argparse.Namespace, folder: Path) -> Results:
    """A setting, banks and all, in a folder that nobody needs afterwards."""

    def task(size: int | None = None):
        return named_task(
            setting, arguments.data, device=arguments.device, seed=arguments.seed, size=size
        )

    if arguments.sizes:
        return benchmark_sizes(
            task, arguments.sizes, out=folder, methods=arguments.methods, show_progress=True
        )
    return benchmark(
        task(),
        out=folder,
        methods=arguments.methods,
        fractions=arguments.fractions,
        show_progress=True,
    )


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--methods", nargs="+")
    options.add_argument("--fractions", nargs="*", type=float, default=[])
    options.add_argument("--sizes", nargs="*", type=int, default=[])
    arguments = options.parse_args()
    for setting in arguments.settings:
        with tempfile.TemporaryDirectory() as folder:
            results = measured(setting, arguments, Path(folder))
        print(table(results.rows), flush=True)
        tuned = [
            {"method": s.method, "observable": s.outcome, "tuned": [dict(t) for t in s.tuned]}
            for s in results.scored
            if len(s.tuned) > 1
        ]
        name = f"lds-{setting}" + ("-sizes" if arguments.sizes else "")
        path = write(
            name, arguments, results.rows, curves=results.curves, about=results.about,
            unsuited=results.unsuited, tuned=tuned,
        )  # fmt: skip
        print(path, flush=True)


if __name__ == "__main__":
    main()
