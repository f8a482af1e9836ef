"""What calibration gives beside the best of a sweep, at the same wall-clock.

A grid of sampler × step × nbeta × gamma/nbeta, each for so many seconds, all judged on the reported
part of a bank; beside it the defaults alone, the same told what networks are retrained from, and
`bif.tune` (its retrained networks and pilots counted in the seconds).  The best of the sweep is
chosen by what is reported, so it is flattered.

    python -m benchmarks.sweep digits --seconds 45 --out benchmarks/results
    python -m benchmarks.sweep concrete --seconds 45 --data DIR --out benchmarks/results

`--share K/N` runs every N-th entry of the grid only, from the K-th, so that several devices of one
kind can divide it; `--join` makes one file of theirs, with `--unfinished` also where entries are
missing.  A sweep of another size has it in its file's name.  `--add FILE` takes the rows of the
grid from an earlier file of the same machine, and runs the other ways and the best of the grid
again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bif
from benchmarks.common import (
    add_banks,
    judge,
    parser,
    print_table,
    read,
    reported_part,
    retraining_options,
    write,
    write_json,
)
from bif.bank import BankPart, Plan, retrained
from bif.benchmark import SETTINGS, Task, named_task

SAMPLERS, STEPS = ("baoab", "sgld"), (1.0, 0.5)
NBETAS = (0.25, 1.0, 4.0, 16.0)
"""nbeta in units of the untempered posterior's: n, or the tokens whose means the losses are."""
DAMPINGS = (0.2, 1.0, 3.0)
"""gamma in units of the default's share of nbeta."""
TUNING_SUBSETS = 24


def grid() -> Iterator[dict[str, Any]]:
    """Yield the 48 settings of the grid."""
    for sampler, step, nbeta, damping in itertools.product(SAMPLERS, STEPS, NBETAS, DAMPINGS):
        yield {"sampler": sampler, "step": step, "nbeta/n": nbeta, "damping": damping}


class DefaultPosterior(NamedTuple):
    """The nbeta that calibration takes, and its gamma/nbeta, the same at any temperature."""

    nbeta: float
    damping: float


def default_posterior(task: Task, base: bif.Settings) -> DefaultPosterior:
    chosen = bif.calibrate(task.problem, replace(base, budget=None, mass="identity")).settings
    assert chosen.nbeta is not None and chosen.gamma is not None
    return DefaultPosterior(chosen.nbeta, chosen.gamma / chosen.nbeta)


def settings_of_entry(
    task: Task, base: bif.Settings, found: dict[str, Any], default: DefaultPosterior
) -> bif.Settings:
    """Return the settings of an entry of the grid.

    Its step is a share of the one that calibration takes.

    Args:
        task: The task of the setting.
        base: What all entries share.
        found: The entry.
        usual: nbeta and gamma/nbeta of an entry of 1 and 1.
    """
    nbeta = found["nbeta/n"] * default.nbeta
    settings = replace(
        base,
        sampler=found["sampler"],
        nbeta=nbeta,
        gamma=nbeta * found["damping"] * default.damping,
    )
    if found["step"] == 1.0:
        return settings
    complete = bif.calibrate(task.problem, replace(settings, budget=None)).settings
    assert complete.step_size is not None
    return replace(
        settings, step_size=found["step"] * complete.step_size, friction=complete.friction,
        mass=complete.mass,
    )  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("setting", choices=SETTINGS)
    options.add_argument("--seconds", type=float, default=45.0)
    options.add_argument("--size", type=int, help="train items, where other than the setting's")
    options.add_argument("--add", type=Path, help="file whose grid is not run again")
    options.add_argument("--limit", type=int, help="only so many of the grid, to try the script")
    options.add_argument("--share", default="0/1", help="K/N: every N-th entry, from the K-th")
    add_banks(options)
    options.add_argument("--join", type=Path, nargs="+", help="files of all shares: nothing is run")
    options.add_argument("--unfinished", action="store_true", help="join what there is of the grid")
    arguments = options.parse_args()
    if arguments.join:
        join_shares(arguments)
        return
    first, every = (int(part) for part in arguments.share.split("/"))
    if arguments.add and every > 1:
        options.error("--add runs no more than the best of a whole grid: leave --share out")
    task = named_task(
        arguments.setting, arguments.data, device=arguments.device, seed=arguments.seed,
        size=arguments.size,
    )  # fmt: skip
    trial = arguments.limit and task.plan.num_removed is None
    small = {"num_subsets": 10, "seeds": 1} if trial else {}
    part = reported_part(task, arguments.banks, **small)
    base = bif.Settings(weight_decay=task.settings[0].weight_decay, seed=arguments.seed)
    within = replace(base, budget=arguments.seconds)

    # Before the first row, which would pay alone for what a process does once.
    default = default_posterior(task, within)
    rows: list[dict[str, Any]] = []
    if arguments.add:
        rows = earlier_grid_rows(arguments.add, arguments.seconds)
    if first == 0:
        for name, way in ways(task, within).items():
            rows.append({"name": name, **judge_way(task, way, part)})
            print(rows[-1], flush=True)
    settings_of_grid = list(grid())[first : arguments.limit : every]
    if arguments.add:  # the best one once more
        best = max((r for r in rows if r["name"] == "sweep"), key=lambda r: r.get("lds", 0.0))
        settings_of_grid = [g for g in settings_of_grid if g.items() <= best.items()]
        rows.remove(best)
    for found in settings_of_grid:
        settings = settings_of_entry(task, within, found, default)
        rows.append({"name": "sweep", **found, **judge(task, settings, part)})
        print(rows[-1], flush=True)
        save(rows, arguments, task)
    print_table(summary(rows))


def join_shares(arguments: argparse.Namespace) -> None:
    """Write one file of several shares: the first one's, with the rows of all.

    Raises:
        ValueError: Shares of different runs, or not all of the grid.
    """
    shares = [read(file) for file in arguments.join]
    rows = [row for share in shares for row in share["sweep"]]
    same = ("benchmark", "date", "budget", "seed", "versions", "hardware", "about")
    first = shares[0]
    for name in same:
        if any(share[name] != first[name] for share in shares):
            raise ValueError(f"the shares differ in {name!r}: join those of one run.")
    swept = [{name: row[name] for name in entry} for entry in grid() for row in rows
             if row["name"] == "sweep" and entry.items() <= row.items()]  # fmt: skip
    of_grid = [entry for entry in grid() if entry in swept]
    if swept != (of_grid if arguments.unfinished else list(grid())):
        raise ValueError(
            f"the files hold {len(swept)} entries of the grid; expected each of the "
            f"{len(list(grid()))} once, or with --unfinished at most once."
        )
    commands = "; ".join(share["command"] for share in shares)
    content = {**first, "benchmark": benchmark_name(arguments), "command": commands,
               "rows": summary(rows), "sweep": rows}  # fmt: skip
    write_json(arguments.out / f"{content['benchmark']}-{first['date']}.json", content)
    print_table(content["rows"])


def earlier_grid_rows(file: Path, seconds: float) -> list[dict[str, Any]]:
    """Return the grid's rows of an earlier run.

    Raises:
        ValueError: It gave its runs other seconds.
    """
    earlier = read(file)
    if earlier["budget"] != seconds:
        raise ValueError(f"{file} gave {earlier['budget']:g} s to each run, not {seconds:g}.")
    return [row for row in earlier["sweep"] if row["name"] == "sweep"]


def ways(task: Task, within: bif.Settings) -> dict[str, Callable[[], bif.Settings]]:
    """Return the ways to be calibrated, each to be called when its time begins."""
    return {
        "defaults": lambda: within,
        "retrained_from": lambda: replace(within, retrained_from=task.targets[-1]),
        "tuned": lambda: tune_within(task, within),
    }


def judge_way(task: Task, way: Callable[[], bif.Settings], part: BankPart) -> dict[str, Any]:
    """Return what a run by a way's settings is worth, or why there is none."""
    try:
        settings = way()
    except ValueError as error:  # nothing of the budget is left
        return {"failed": str(error)}
    return judge(task, settings, part)


def tune_within(task: Task, within: bif.Settings) -> bif.Settings:
    """Return settings by retrained networks, with what is left of the budget.

    Raises:
        ValueError: Nothing, or too little, is left.
    """
    started = time.perf_counter()
    plan = Plan(num_subsets=1, seeds=1, num_tuning_subsets=TUNING_SUBSETS, tuning_seeds=1)
    bank = retrained(
        task.problem, task.tuning_queries, task.retraining, plan, **retraining_options(task)
    )
    spent = time.perf_counter() - started
    assert bank.tuning is not None and isinstance(within.budget, float)
    if spent >= within.budget:
        raise ValueError(f"retraining alone took {spent:.1f} of {within.budget:g} s.")
    left = replace(within, budget=within.budget - spent)
    found = bif.tune(task.problem, left, part=bank.tuning, queries=task.tuning_queries)
    for line in map(str, found.choices):
        print(line, flush=True)
    print(f"{spent:.1f} s of retraining, {found.settings.budget:.1f} s left", flush=True)
    return found.settings


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calibrated ways beside the best three of the sweep."""
    done = [row for row in rows if "lds" in row]
    ranked = sorted((r for r in done if r["name"] == "sweep"), key=lambda r: -r["lds"])
    shown = [r for r in done if r["name"] != "sweep"] + ranked[:3]
    best = ranked[0]["lds"] if ranked else float("nan")
    return [{**r, "share_of_best": r["lds"] / best} for r in shown]


def benchmark_name(arguments: argparse.Namespace) -> str:
    """Return the benchmark's name, of the setting and of its size where that is given."""
    size = [] if arguments.size is None else [str(arguments.size)]
    return "-".join(["sweep", arguments.setting, *size])


def save(rows: list[dict[str, Any]], arguments: argparse.Namespace, task: Task) -> None:
    """Write the table, and the whole sweep beside it."""
    write(
        benchmark_name(arguments), arguments, summary(rows), about=task.about,
        target=task.targets[-1], budget=arguments.seconds, sweep=rows,
        threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
