"""LDS of every method on the settings of `bif lds`.

One dated JSON file a setting: rows, curves, what was tuned, plan, versions and hardware.
`benchmarks.pages` makes tables and plots of them; `bif lds SETTING` does all of it in any folder.

    python -m benchmarks.lds logistic digits --out benchmarks/results
    python -m benchmarks.lds fashion --data DIR --out benchmarks/results --device cuda
    python -m benchmarks.lds cifar --data DIR --out benchmarks/results --device cuda --banks BANKS
    python -m benchmarks.lds fashion --data DIR --out benchmarks/results --device cuda \
        --sizes 500 1000 2000 6000 20000

`--by-default` runs the BIF given nothing but the weight decay, and EK-FAC, into a file of its own,
whose row stands beside those of the setting's own file. `--by-solving` does so for the response by
solving, with rivals that solve or approximate the same system, and `--along-path` for the rivals
that follow the training of the networks that judge.

The file is written anew after every method that takes long: a run cut short leaves what it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import add_banks, bank_folder, parser, read, write
from bif.benchmark import SETTINGS, Results, benchmark, named_task
from bif.benchmark.judge import table

BY_DEFAULT = ("ekfac", "bif_default")
BY_SOLVING = ("ekfac", "solver_default", "solver", "empirical_fisher", "gradient_product",
              "solver_exact")  # fmt: skip
ALONG_PATH = ("ekfac", "exact_ggn", "tracin", "source", "source_ggn", "gradient_product")


def measure(setting: str, arguments: argparse.Namespace) -> None:
    """Measure a setting from end to end."""
    task = named_task(setting, arguments.data, device=arguments.device, seed=arguments.seed)
    name, methods = f"lds-{setting}", arguments.methods
    if arguments.by_default:
        name, methods = f"{name}-default", BY_DEFAULT
    elif arguments.by_solving:
        name, methods = f"{name}-solver", methods or BY_SOLVING
    elif arguments.along_path:
        name, methods = f"{name}-path", methods or ALONG_PATH

    def save(results: Results) -> Path:
        return write(
            name, arguments, results.rows, curves=results.curves, about=results.about,
            unsuited=results.unsuited, tuned=results.tuned,
        )  # fmt: skip

    with bank_folder(arguments.banks, setting) as folder:
        results = benchmark(
            task, out=folder, methods=methods,
            fractions=arguments.fractions, after_each=save, show_progress=True,
        )  # fmt: skip
    print(table(results.rows), flush=True)
    print(save(results), flush=True)


def measure_sizes(setting: str, arguments: argparse.Namespace) -> None:
    """Measure several numbers of train items; the file is written anew after each."""
    rows, about = keep_earlier_rows(arguments.add, arguments.sizes) if arguments.add else ([], {})
    for size in arguments.sizes:
        task = named_task(
            setting, arguments.data, device=arguments.device, seed=arguments.seed, size=size
        )
        with bank_folder(arguments.banks, f"{setting}-{size}") as folder:
            results = benchmark(task, out=folder, methods=arguments.methods, show_progress=True)
        rows += [{**row, "num_train": size} for row in results.rows]
        about[str(size)] = results.about
        print(table(results.rows), flush=True)
        print(write(f"lds-{setting}-sizes", arguments, rows, curves=rows, about=about), flush=True)


def keep_earlier_rows(file: Path, sizes: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and facts of an earlier file, of other sizes than are asked for now.

    Each size keeps the hardware and the versions that it was run with, among its facts.
    """
    found = read(file)
    rows = [row for row in found["rows"] if row["num_train"] not in sizes]
    about = {size: facts for size, facts in found["about"].items() if int(size) not in sizes}
    return rows, about


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("settings", nargs="+", choices=SETTINGS)
    options.add_argument("--methods", nargs="+")
    kinds = options.add_mutually_exclusive_group()
    kinds.add_argument("--by-default", action="store_true")
    kinds.add_argument("--by-solving", action="store_true")
    kinds.add_argument("--along-path", action="store_true")
    add_banks(options)
    options.add_argument("--fractions", nargs="*", type=float, default=[])
    options.add_argument("--sizes", nargs="*", type=int, default=[])
    options.add_argument("--add", type=Path, help="file of --sizes whose other sizes are kept")
    arguments = options.parse_args()
    for setting in arguments.settings:
        (measure_sizes if arguments.sizes else measure)(setting, arguments)


if __name__ == "__main__":
    main()
