"""Functions that benchmarks share: options, one dated JSON file, a table, networks that judge."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import bif
from bif import store
from bif.bank import BankPart, retrained
from bif.benchmark import Task
from bif.estimate.intervals import t_quantile
from bif.evaluate import lds
from bif.problem.provenance import versions

Input = TypeVar("Input")
Output = TypeVar("Output")
RESULTS = Path(__file__).parent / "results"

# --- Options and files ----------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", type=Path, help="folder with the standard data files")
    made.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    made.add_argument("--device", default="cpu")
    made.add_argument("--seed", type=int, default=0)
    return made


def side_by_side(
    work: Callable[[Input], Output], items: Sequence[Input], jobs: int
) -> Iterator[Output]:
    """Yield results in order, each by a process of one thread if there are several at a time."""
    if jobs == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, items)


def hardware(device: str) -> dict[str, Any]:
    """Return the facts of the machine."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts |= {"gpu": properties.name, "gpu_memory_gib": properties.total_memory / 2**30}
    return facts


def write(
    name: str, arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], **further: Any
) -> Path:
    """Write `NAME-DATE.json` with the rows, the command, versions, hardware and seed."""
    date = datetime.date.today().isoformat()
    content = {
        "benchmark": name,
        "date": date,
        "command": " ".join(["python", *_without_folders(sys.orig_argv[1:])]),
        "seed": arguments.seed,
        "versions": versions(),
        "hardware": hardware(arguments.device),
        **further,
        "rows": list(rows),
    }
    return write_json(arguments.out / f"{name}-{date}.json", content)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a file of results, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(store.plain(content), indent=1) + "\n", encoding="utf-8")
    return path


def _without_folders(words: Sequence[str]) -> list[str]:
    """Return a command without folders of this machine."""
    named = {"--data": "DIR", "--out": "DIR", "--references": "DIR", "--traces": "DIR",
             "--banks": "BANKS", "--add": "FILE"}  # fmt: skip
    return [named.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def read(file: Path) -> dict[str, Any]:
    """Read a file of results."""
    return json.loads(file.read_text(encoding="utf-8"))


def all_runs(name: str) -> list[dict[str, Any]]:
    """Read all committed runs of a benchmark, in the order of their dates."""
    return [read(file) for file in sorted(RESULTS.glob(f"{name}-????-??-??.json"))]


def newest_run(name: str) -> dict[str, Any] | None:
    """Read the newest committed run of a benchmark."""
    return next(reversed(all_runs(name)), None)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as aligned text, one column a key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys] + [[_cell(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(keys))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def mean_interval(values: Sequence[float]) -> dict[str, float | int]:
    """Return the mean of one value a seed, its 95 % interval by Student's t, and their number.

    Values that are not finite are left out; of a single one the interval is NaN.
    """
    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    mean = float(x.mean()) if len(x) else math.nan
    error = float(x.std(ddof=1)) / len(x) ** 0.5 if len(x) > 1 else math.nan
    half = t_quantile(len(x)) * error
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "seeds": len(x)}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- What judges ----------------------------------------------------------------------------------


def trust_figures(run: bif.Run) -> dict[str, Any]:
    """Return a row's figures of trust: R-hat, reliability, trusted, gates that failed."""
    figures = {name: run.summary[name] for name in ("rhat_max", "reliability", "trusted")}
    return {**figures, "failed_gates": run.failed_gates}


def add_banks(options: argparse.ArgumentParser) -> None:
    """Add the option that keeps what was retrained for the next run."""
    options.add_argument("--banks", type=Path, help="folder to keep banks in, or to find them in")


@contextmanager
def bank_folder(banks: Path | None, name: str) -> Iterator[str]:
    """Yield where banks are found or kept; a folder that goes away if none was named."""
    if banks:
        yield str(banks / name)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def retraining_options(task: Task) -> dict[str, Any]:
    """Return where a task's networks start from, and how many are stacked."""
    return {"networks_per_stack": task.networks_per_stack, "target": task.targets[-1]}


def reported_part(task: Task, banks: Path | None, **changed: Any) -> BankPart:
    """Return the reported part of a task's bank, without a tuning part.

    Args:
        task: The task of the setting.
        banks: The folder of `--banks`.
        changed: Further changes of its plan.
    """
    plan = replace(task.plan, num_tuning_subsets=0, **changed)
    if task.targets[-1] == "checkpoint":
        plan = replace(plan, seeds=1)
    out = banks / f"{task.name}-reported" if banks else None
    bank = retrained(task.problem, None, task.retraining, plan, **retraining_options(task), out=out)
    return bank.reported


def judge(task: Task, settings: bif.Settings, part: BankPart) -> dict[str, Any]:
    """Return a run's LDS of every outcome, draws, effective draws, trust and seconds."""
    started = time.perf_counter()
    try:
        run = bif.attribute(task.problem, settings)
    except (ValueError, RuntimeError) as error:  # no time for it, or chains that diverged
        return {"failed": str(error)[:500], "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    values = run.influence.dataset["influence"]
    row: dict[str, Any] = {}
    for name in (observable.name for observable in task.problem.observables):
        scores, outcomes = values.sel(observable=name).values, part.outcomes[name]
        row[f"lds_{name}"] = lds(scores, part.masks, outcomes, num_bootstrap=1).mean
    row["lds"] = sum(row.values()) / len(row)
    figures = {name: run.summary[name] for name in ("draws", "chains", "ess_median")}
    figures["nbeta"] = run.manifest["settings"]["nbeta"]
    return {**row, **figures, **trust_figures(run), "seconds": seconds}


# --- Problems and time ----------------------------------------------------------------------------


def standard_normal(*shape: int, seed: int) -> Tensor:
    """Return numbers of a standard normal law."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def minimise_(
    parameters: Iterable[nn.Parameter | Tensor], objective: Callable[[], Tensor], **given: Any
) -> None:
    """Move parameters to a minimum by L-BFGS.

    Args:
        parameters: The parameters that move.
        objective: A function that returns the number to be minimised.
        given: Further options of the optimizer.
    """
    optimizer = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **given)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    optimizer.zero_grad()


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done everything asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
