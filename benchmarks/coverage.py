"""Do 95 % intervals of scores and of self-influence hold the truth where U is not quadratic?

Automatic settings against the exact answers of `known_posteriors.py`: each problem at the default
temperature and at `nbeta = n`, by every sampler and mass.  What is chosen is chosen once; then many
runs of 64 chains are stacked, and each has its own scores and intervals from its own chains.  A few
runs a row are calls of `bif.attribute` of their own: their gates tell whether they are trusted, and
their intervals whether stacking changes anything.

    python benchmarks/coverage.py --references DIR --out benchmarks/results
    python benchmarks/coverage.py --problems unit quartic --samplers baoab --table --out DIR
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
from common import parser, print_table, write
from known_posteriors import PROBLEMS, Known, Reference, reference

import bif
from bif.estimate import convergence, estimate_influence
from bif.settings import SamplerName
from bif.traces import LossTraces, TraceBlock

CHAINS = 64
"""Of a run: the default."""
_NUMBERS = 2**26
"""Losses that a stack of runs may record."""
_LOOKED_AT = 8
"""Stacked runs whose R-hat is computed."""
TEMPERATURES = ("default", "n")
MASSES = ("auto", "identity", "kronecker")


@dataclass(frozen=True)
class Cell:
    """What a row is about."""

    problem: str
    nbeta: str
    sampler: SamplerName
    mass: str

    def settings(self, known: Known) -> bif.Settings:
        """With everything else left open."""
        given = self.nbeta != "default"
        factor = float(self.nbeta.removesuffix("n") or 1) if given else 1.0
        return bif.Settings(
            sampler=self.sampler,
            nbeta=factor * len(known.train[0]) if given else None,
            retrained_from=None if given else known.retrained_from,
            mass=None if self.mass == "auto" else self.mass,  # type: ignore[arg-type]
        )


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--references", type=Path, help="folder that keeps the long runs")
    options.add_argument("--seeds", type=int, default=100, help="stacked runs a row")
    options.add_argument("--calls", type=int, default=4, help="runs of their own a row")
    options.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    options.add_argument("--temperatures", nargs="+", default=TEMPERATURES,
                         help="default, or nbeta in units of items: n, 10n")  # fmt: skip
    options.add_argument("--samplers", nargs="+", choices=get_args(SamplerName),
                         default=get_args(SamplerName))  # fmt: skip
    options.add_argument("--mass", nargs="+", choices=MASSES, default=MASSES)
    options.add_argument("--jobs", type=int, default=1, help="problems at a time")
    options.add_argument("--table", action="store_true", help="print means over the problems")
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(
        arguments.jobs, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for found in pool.map(_problem_rows, [(name, arguments) for name in arguments.problems]):
            rows += found
            write("coverage", arguments, rows)
    print_table([_short(row) for row in rows])
    if arguments.table:
        print_table(means(rows))


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every way to sample, the mean and the least coverage over the problems."""
    found = []
    ways = dict.fromkeys((row["nbeta asked"], row["sampler"], row["mass asked"]) for row in rows)
    for way in ways:
        those = [r for r in rows if (r["nbeta asked"], r["sampler"], r["mass asked"]) == way]
        ran = [r for r in those if "coverage" in r]
        line: dict[str, Any] = dict(zip(("nbeta", "sampler", "mass"), way, strict=True))
        line |= {"problems": len(those), "refused": len(those) - len(ran)}
        for figure in ("coverage", "self_coverage"):
            values = [r[figure] for r in ran]
            line |= {figure: float(np.mean(values)), f"least {figure}": min(values)} if ran else {}
        found.append(
            {**line, "trusted": float(np.mean([r["trusted"] for r in ran])) if ran else 0.0}
        )
    return found


def cells(arguments: argparse.Namespace, problem: str) -> Iterator[Cell]:
    """The rows of a problem; a mass belongs to `baoab` alone."""
    for nbeta in arguments.temperatures:
        for sampler in arguments.samplers:
            for mass in arguments.mass if sampler == "baoab" else ("auto",):
                yield Cell(problem, nbeta, sampler, mass)


def _problem_rows(job: tuple[str, argparse.Namespace]) -> list[dict[str, Any]]:
    name, arguments = job
    known = PROBLEMS[name]()
    rows = []
    for cell in cells(arguments, name):
        started = time.perf_counter()
        row = {**about(cell), **measured(known, cell, arguments)}
        rows.append({**row, "seconds": time.perf_counter() - started})
        print(_short(rows[-1]), flush=True)
    return rows


def about(cell: Cell) -> dict[str, Any]:
    """What was asked for."""
    return {"problem": cell.problem, "nbeta asked": cell.nbeta, "sampler": cell.sampler,
            "mass asked": cell.mass}  # fmt: skip


def measured(known: Known, cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one row, or the error with which the library refused it."""
    problem = known.problem()
    try:
        chosen = bif.calibrate(problem, cell.settings(known)).settings
        exact = reference(known, nbeta=chosen.nbeta or 0.0, gamma=chosen.gamma or 0.0,
                          folder=arguments.references)  # fmt: skip
        runs = list(stacked(problem, chosen, count=arguments.seeds, seed=arguments.seed))
        calls = [
            bif.attribute(problem, replace(cell.settings(known), seed=10_000 + arguments.seed + s))
            for s in range(arguments.calls)
        ]
    except (ValueError, RuntimeError) as error:
        return {"refused": str(error)}
    return {
        "nbeta": chosen.nbeta, "gamma": chosen.gamma, "mass": chosen.mass,
        "step_size": chosen.step_size, "burn_in": chosen.burn_in, "thin": chosen.thin,
        "reference_rhat": exact.rhat,
        **figures([judged(run, exact, chosen.nbeta or 0.0) for run in runs], asked=arguments.seeds),
        "rhat": float(np.median([largest_rhat(run) for run in runs[:_LOOKED_AT]])),
        **_of_calls(calls, exact),
    }  # fmt: skip


def stacked(
    problem: bif.Problem, chosen: bif.Settings, *, count: int, seed: int
) -> Iterator[LossTraces]:
    """Independent runs of 64 chains, cut from blocks of many."""
    assert chosen.draws is not None
    columns = problem.num_train + problem.num_queries
    at_once = max(1, min(count, _NUMBERS // (CHAINS * chosen.draws * columns)))
    for start in range(0, count, at_once):
        number = CHAINS * min(at_once, count - start)
        together = replace(chosen, chains=number, block_size=number, seed=seed + start)
        with ending_at_traces():
            traces = bif.attribute(problem, together).traces
        yield from cut(traces, number // CHAINS)


@contextmanager
def ending_at_traces() -> Iterator[None]:
    """Runs end with what they recorded: what is said of thousands of chains costs most of a run."""
    module: Any = sys.modules["bif.attribute"]
    concluded = module.concluded

    def recorded(_: Any, recording: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(traces=recording.traces())

    module.concluded = recorded
    try:
        yield
    finally:
        module.concluded = concluded


def cut(traces: LossTraces, count: int) -> Iterator[LossTraces]:
    """Runs of 64 chains each, less those that diverged."""
    for run in range(count if traces.blocks else 0):
        (block,) = traces.blocks
        rows = [row for row, chain in enumerate(block.chains) if chain // CHAINS == run]
        if len(rows) >= 2:
            part = block.only(rows)
            yield LossTraces((TraceBlock(tuple(range(len(rows))), part.train, part.query),))


def judged(traces: LossTraces, exact: Reference, nbeta: float) -> dict[str, float]:
    """A run's own scores and intervals against the truth."""
    queries, items = exact.scores.shape
    traces = traces.selected(train=np.arange(items), query=np.arange(queries))
    found = estimate_influence(
        traces, nbeta=nbeta, observables={"loss": "lower"},
        query_ids=[str(q) for q in range(queries)], train_ids=[str(i) for i in range(items)],
    )  # fmt: skip
    return {**against(found, exact), "chains": traces.num_chains}


def largest_rhat(traces: LossTraces) -> float:
    """Of items and queries."""
    swapped = [replace(b, train=b.query, query=b.train) for b in traces.blocks]
    parts = (traces, LossTraces(tuple(swapped)))
    return max(float(np.nanmax(convergence(part)[1])) for part in parts)


def against(found: Any, exact: Reference) -> dict[str, float]:
    """Coverage, scale and error of a dataset of scores."""
    scores = found["influence"].values[0].astype(float)
    error = found["standard_error"].values[0].astype(float)
    selves = found["self_influence"].values.astype(float)
    self_error = found["self_influence_standard_error"].values.astype(float)
    reach = float(found.attrs["error_quantile"])
    return {
        "coverage": float((np.abs(scores - exact.scores) <= reach * error).mean()),
        "self_coverage": float(
            (np.abs(selves - exact.self_influence) <= reach * self_error).mean()
        ),
        "slope": float((scores * exact.scores).sum() / (exact.scores**2).sum()),
        "self_ratio": float(np.median(selves / exact.self_influence)),
        "reference_share": float(np.median(exact.scores_error / error)),
    }


def figures(runs: Sequence[dict[str, float]], *, asked: int) -> dict[str, float]:
    """Of independent runs: means with intervals that cluster by run, medians of scales."""
    left = sum(run["chains"] for run in runs)
    found: dict[str, float] = {"runs": len(runs), "lost_chains": 1 - left / (asked * CHAINS)}
    if not runs:
        return found
    for name in ("coverage", "self_coverage"):
        values = np.asarray([run[name] for run in runs])
        found[name] = float(values.mean())
        found[f"{name}_error"] = (
            float(values.std(ddof=1) / len(values) ** 0.5) if len(runs) > 1 else np.nan
        )
    for name in ("slope", "self_ratio", "reference_share"):
        found[name] = float(np.median([run[name] for run in runs]))
    return found


def _of_calls(calls: Sequence[bif.Run], exact: Reference) -> dict[str, Any]:
    """Trust, and the coverage of whole calls."""
    if not calls:
        return {}
    parts = [against(run.influence.dataset, exact) for run in calls]
    failed = {gate["name"] for run in calls for gate in run.manifest["gates"] if gate["failed"]}
    return {
        "trusted": float(np.mean([bool(run.summary["trusted"]) for run in calls])),
        "failed": ", ".join(sorted(failed)) or "none",
        "call_coverage": float(np.mean([part["coverage"] for part in parts])),
        "call_self_coverage": float(np.mean([part["self_coverage"] for part in parts])),
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    names = ("problem", "nbeta asked", "sampler", "mass asked", "mass", "step_size", "coverage",
             "self_coverage", "slope", "self_ratio", "rhat", "lost_chains", "trusted", "failed",
             "call_coverage", "reference_share", "refused")  # fmt: skip
    return {name: row[name] for name in names if name in row}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
