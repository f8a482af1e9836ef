"""Do 95 % intervals of scores and of self-influence hold the truth where U is not quadratic?

Automatic settings against the exact answers of `known_posteriors.py`: each problem at the default
temperature and at `nbeta = n`, by every sampler and mass.  What is chosen is chosen once; then many
runs are stacked, and each has its own scores and intervals from its own chains.  A few runs a row
are calls of `bif.attribute` of their own: their gates tell whether they are trusted, and their
intervals whether stacking changes anything.  On a GPU, where a stack holds more chains, all is
computed in float32.

    python -m benchmarks.converged.coverage --references DIR --jobs 16 --parts 4 --out DIR
    python -m benchmarks.converged.coverage --problems unit quartic --samplers baoab --out DIR
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import bif
from benchmarks.common import parser, print_table, read, write
from benchmarks.known_posteriors import PROBLEMS, KnownProblem, Reference, reference
from bif.estimate import ScoreAxes, convergence, estimate_influence
from bif.estimate.traces import LossTraces, TraceBlock
from bif.sampling.samplers import SAMPLERS, Traits

CHAINS = 64
"""Chains of a run, the default."""
_FEW_DRAWS = 60
"""Draws of chains without velocities, which forget in ten to a hundred times the steps; they run at
the default temperature alone."""
_MAX_LOSSES = 2**26
"""Losses that a stack of runs may record."""
_MAX_REFERENCE_RHAT = 1.02
"""R-hat above which a long run is no reference."""
_NUM_RHATS = 8
"""Stacked runs whose R-hat is computed."""
TEMPERATURES = ("default", "n")
MASSES = ("auto", "identity", "kronecker")


@dataclass(frozen=True)
class Cell:
    """The problem, temperature, sampler, mass and device of a row."""

    problem: str
    nbeta: str
    sampler: str
    mass: str
    device: str

    @property
    def traits(self) -> Traits:
        """What the sampler declares of itself."""
        return SAMPLERS[self.sampler].traits

    def settings(self, known: KnownProblem) -> bif.Settings:
        """Return settings with everything else left open."""
        given = self.nbeta != "default"
        factor = float(self.nbeta.removesuffix("n") or 1) if given else 1.0
        return bif.Settings(
            sampler=self.sampler,
            chains=CHAINS,
            draws=None if self.traits.underdamped else _FEW_DRAWS,
            nbeta=factor * len(known.train[0]) if given else None,
            retrained_from=None if given else known.retrained_from,
            mass=None if self.mass == "auto" else self.mass,  # type: ignore[arg-type]
            gradient_precision="float32",
            loss_precision="float32",
        )


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--references", type=Path, help="folder that keeps the long runs")
    options.add_argument("--seeds", type=int, default=100, help="stacked runs a row")
    options.add_argument("--calls", type=int, default=4, help="runs of their own a row")
    options.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    options.add_argument("--temperatures", nargs="+", default=TEMPERATURES,
                         help="default, or nbeta in units of items: n, 10n")  # fmt: skip
    options.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    options.add_argument("--mass", nargs="+", choices=MASSES, default=MASSES)
    options.add_argument("--jobs", type=int, default=1, help="processes")
    options.add_argument("--parts", type=int, default=1, help="of a row's runs, one a process")
    options.add_argument("--add", type=Path, help="file whose other rows are kept")
    options.add_argument("--table", action="store_true", help="print means over the problems")
    arguments = options.parse_args()
    asked = list(cells(arguments))
    rows, earlier = keep_earlier_rows(arguments.add, asked) if arguments.add else ([], {})
    with ProcessPoolExecutor(
        arguments.jobs, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for row in measure_cells(pool, asked, arguments):
            rows.append(row)
            print(_short(row), flush=True)
            write("coverage", arguments, rows, **earlier)
    print_table([_short(row) for row in rows])
    if arguments.table:
        print_table(mean_coverage(rows))


def keep_earlier_rows(
    file: Path, asked: Sequence[Cell]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows of an earlier file that are not asked for, and how they came about."""
    found = read(file)
    anew = [key_columns(cell) for cell in asked]
    rows = [row for row in found["rows"] if {k: row[k] for k in anew[0]} not in anew]
    how = ("command", "date", "seed", "versions", "hardware")
    return rows, {"earlier": [*found.get("earlier", []), {name: found[name] for name in how}]}


def mean_coverage(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean and least coverage over the problems, for every way to sample."""
    found = []
    ways = dict.fromkeys((row["nbeta asked"], row["sampler"], row["mass asked"]) for row in rows)
    for way in ways:
        every = [r for r in rows if (r["nbeta asked"], r["sampler"], r["mass asked"]) == way]
        those = [r for r in every if "no_reference" not in r]
        ran = [r for r in those if "coverage" in r]
        line: dict[str, Any] = dict(zip(("nbeta", "sampler", "mass"), way, strict=True))
        line |= {"problems": len(those), "refused": len(those) - len(ran)}
        line["no reference"] = len(every) - len(those)
        for figure in ("coverage", "self_coverage"):
            values = [r[figure] for r in ran]
            line |= {figure: float(np.mean(values)), f"least {figure}": min(values)} if ran else {}
        found.append(
            {**line, "trusted": float(np.mean([r["trusted"] for r in ran])) if ran else 0.0}
        )
    return found


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield the rows; a mass where the sampler takes one."""
    for problem in arguments.problems:
        for nbeta in arguments.temperatures:
            for sampler in arguments.samplers:
                traits = SAMPLERS[sampler].traits
                if not traits.underdamped and nbeta != TEMPERATURES[0]:
                    continue
                for mass in arguments.mass if traits.takes_mass else ("auto",):
                    yield Cell(problem, nbeta, sampler, mass, arguments.device)


def measure_cells(
    pool: Executor, asked: Sequence[Cell], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the rows as they end; rows that are refused, or lack a reference, say so."""
    ready = [
        Row(cell, *found)
        for cell, found in zip(asked, pool.map(choose_settings, asked), strict=True)
    ]
    exact = _references(pool, ready, arguments.references)
    bounds = np.linspace(0, arguments.seeds, arguments.parts + 1).astype(int)
    running: dict[Future[Any], Row] = {}
    found: dict[Cell, list[Any]] = {}
    for this in ready:
        if this.refused:
            yield {**key_columns(this.cell), "refused": this.refused}
            continue
        truth, first = exact[_key(this)], arguments.seed
        if truth.rhat > _MAX_REFERENCE_RHAT:
            yield {**key_columns(this.cell), "no_reference": truth.rhat}
            continue
        running[pool.submit(run_calls, this, truth, first + 10_000, arguments.calls)] = this
        for start, stop in pairwise(bounds):
            running[pool.submit(run_part, this, truth, first + start, stop - start)] = this
        found[this.cell] = []
    for future in as_completed(running):
        this = running[future]
        if this.cell not in found:
            continue
        try:
            found[this.cell].append(future.result())
        except (ValueError, RuntimeError) as error:  # a run that the library refused
            del found[this.cell]
            yield {**key_columns(this.cell), "refused": str(error)}
            continue
        if len(found[this.cell]) == arguments.parts + 1:
            yield _row(this, exact[_key(this)], found[this.cell], asked=arguments.seeds)


@dataclass(frozen=True)
class Row:
    """A row with the settings that the library chose, or its words of refusal."""

    cell: Cell
    settings: bif.Settings
    refused: str = ""


def choose_settings(cell: Cell) -> tuple[bif.Settings, str]:
    """Return automatic settings, or the reason why there are none."""
    known = PROBLEMS[cell.problem]()
    asked = cell.settings(known)
    try:
        return bif.calibrate(known.problem(), asked).settings, ""
    except (ValueError, RuntimeError) as error:
        return asked, str(error)


def _key(this: Row) -> tuple[str, float, float]:
    return this.cell.problem, this.settings.nbeta or 0.0, this.settings.gamma or 0.0


def _references(
    pool: Executor, ready: Sequence[Row], folder: Path | None
) -> dict[tuple[str, float, float], Reference]:
    """Return the exact answers of all posteriors that occur."""
    keys = list(dict.fromkeys(_key(this) for this in ready if not this.refused))
    return dict(zip(keys, pool.map(partial(exact_answer, folder=folder), keys), strict=True))


def exact_answer(key: tuple[str, float, float], folder: Path | None) -> Reference:
    """Return the exact answer for a problem at an nbeta and a gamma."""
    problem, nbeta, gamma = key
    return reference(PROBLEMS[problem](), nbeta=nbeta, gamma=gamma, folder=folder)


def run_part(
    this: Row, exact: Reference, seed: int, count: int
) -> tuple[list[dict[str, float]], list[float], float]:
    """Return the coverage of some stacked runs, R-hat of the first ones, and seconds."""
    began = time.perf_counter()
    problem = PROBLEMS[this.cell.problem]().problem()
    chosen = replace(this.settings, device=this.cell.device)
    runs = list(run_stacked(problem, chosen, count=count, seed=int(seed)))
    nbeta = this.settings.nbeta or 0.0
    rhats = [largest_rhat(run) for run in runs[:_NUM_RHATS]]
    return [judge_run(run, exact, nbeta) for run in runs], rhats, time.perf_counter() - began


def run_calls(this: Row, exact: Reference, seed: int, count: int) -> dict[str, Any]:
    """Return trust and coverage of whole calls of the library with everything left open."""
    known = PROBLEMS[this.cell.problem]()
    problem = known.problem()
    settings = replace(this.cell.settings(known), device=this.cell.device)
    runs = [bif.attribute(problem, replace(settings, seed=seed + s)) for s in range(count)]
    return summarise_calls(runs, exact)


def _row(this: Row, exact: Reference, found: Sequence[Any], *, asked: int) -> dict[str, Any]:
    parts = [part for part in found if isinstance(part, tuple)]
    (calls,) = (part for part in found if isinstance(part, dict))
    chosen, cell = this.settings, this.cell
    runs = [run for part in parts for run in part[0]]
    rhats = [rhat for part in parts for rhat in part[1]]
    return {
        **key_columns(cell),
        "nbeta": chosen.nbeta, "gamma": chosen.gamma, "mass": chosen.mass,
        "step_size": chosen.step_size, "burn_in": chosen.burn_in, "thin": chosen.thin,
        "chains": CHAINS, "draws": chosen.draws,
        "reference_rhat": exact.rhat,
        **summarise_runs(runs, asked=asked * CHAINS),
        "rhat": float(np.median(rhats)) if rhats else float("nan"),
        "device": cell.device,
        **calls,
        "seconds": sum(part[2] for part in parts),
    }  # fmt: skip


def key_columns(cell: Cell) -> dict[str, Any]:
    """Return the columns that say what was asked for."""
    return {"problem": cell.problem, "nbeta asked": cell.nbeta, "sampler": cell.sampler,
            "mass asked": cell.mass}  # fmt: skip


def run_stacked(
    problem: bif.Problem, chosen: bif.Settings, *, count: int, seed: int
) -> Iterator[LossTraces]:
    """Yield independent runs, split from blocks of many."""
    assert chosen.draws is not None and chosen.chains is not None
    columns = problem.num_train + problem.num_queries
    at_once = max(1, min(count, _MAX_LOSSES // (chosen.chains * chosen.draws * columns)))
    for start in range(0, count, at_once):
        runs = min(at_once, count - start)
        number = chosen.chains * runs
        together = replace(chosen, chains=number, block_size=number, seed=seed + start)
        with stop_at_traces():
            traces = bif.attribute(problem, together).traces
        yield from split_runs(traces, runs, chosen.chains)


@contextmanager
def stop_at_traces() -> Iterator[None]:
    """Make runs end with their traces: what follows costs most with thousands of chains."""
    module: Any = sys.modules["bif.runs.attribute"]
    conclude = module.conclude

    def recorded(_: Any, recording: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(traces=recording.traces())

    module.conclude = recorded
    try:
        yield
    finally:
        module.conclude = conclude


def split_runs(traces: LossTraces, count: int, chains: int) -> Iterator[LossTraces]:
    """Yield runs of so many chains each, less those that diverged."""
    for run in range(count if traces.blocks else 0):
        (block,) = traces.blocks
        rows = [row for row, chain in enumerate(block.chains) if chain // chains == run]
        if len(rows) >= 2:
            part = block.only(rows)
            yield LossTraces((TraceBlock(tuple(range(len(rows))), part.train, part.query),))


def judge_run(traces: LossTraces, exact: Reference, nbeta: float) -> dict[str, float]:
    """Return coverage and scale of a run's own scores and intervals."""
    queries, items = exact.scores.shape
    traces = traces.selected(train=np.arange(items), query=np.arange(queries))
    axes = ScoreAxes(
        observables={"loss": "lower"}, query_ids=[str(q) for q in range(queries)],
        train_ids=[str(i) for i in range(items)], nbeta=nbeta,
    )  # fmt: skip
    found = estimate_influence(traces, axes)
    return {**compare_with_exact(found, exact), "chains": traces.num_chains}


def largest_rhat(traces: LossTraces) -> float:
    """Return the largest R-hat of items and queries."""
    swapped = [replace(b, train=b.query, query=b.train) for b in traces.blocks]
    parts = (traces, LossTraces(tuple(swapped)))
    return max(float(np.nanmax(convergence(part)[1])) for part in parts)


def compare_with_exact(found: Any, exact: Reference) -> dict[str, float]:
    """Return coverage, scale and error of a dataset of scores."""
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


def summarise_runs(runs: Sequence[dict[str, float]], *, asked: int) -> dict[str, float]:
    """Return means of independent runs, with intervals that cluster by run, and medians."""
    left = sum(run["chains"] for run in runs)
    found: dict[str, float] = {"runs": len(runs), "lost_chains": 1 - left / asked}
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


def summarise_calls(calls: Sequence[bif.Run], exact: Reference) -> dict[str, Any]:
    """Return trust and coverage of whole calls."""
    if not calls:
        return {}
    parts = [compare_with_exact(run.influence.dataset, exact) for run in calls]
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
             "call_coverage", "reference_share", "refused", "no_reference")  # fmt: skip
    return {name: row[name] for name in names if name in row}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
