"""What benchmarks of calibration and sampling are judged by: networks retrained for a setting."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import trust
from torch import Tensor

import bif
from bif.bank import BankPart, retrained
from bif.benchmark import Task
from bif.evaluate import lds


def how_retrained(task: Task) -> dict[str, Any]:
    """Where networks start from, the last of the task's targets, and how many are stacked."""
    return {"networks_per_stack": task.networks_per_stack, "target": task.targets[-1]}


def add_banks(options: argparse.ArgumentParser) -> None:
    """The option that keeps what was retrained for the next run."""
    options.add_argument("--banks", type=Path, help="folder to keep the bank in, or to find it in")


def reported_part(task: Task, banks: Path | None, **changed: Any) -> BankPart:
    """The reported part of a task's bank, without a tuning part.

    Args:
        task: Its setting.
        banks: The folder of `--banks`.
        changed: Of its plan.
    """
    plan = replace(task.plan, num_tuning_subsets=0, **changed)
    if task.targets[-1] == "checkpoint":
        plan = replace(plan, seeds=1)
    out = banks / f"{task.name}-reported" if banks else None
    bank = retrained(task.problem, None, task.retraining, plan, **how_retrained(task), out=out)
    return bank.reported


def judged_draws(
    problem: bif.Problem, part: BankPart, losses: Tensor, values: Tensor
) -> dict[str, Any]:
    """LDS of every outcome by minus the covariance of draws that the library did not make.

    Args:
        problem: What they are of.
        part: Networks that they are judged by.
        losses: Of the train items, `[T, N]`.
        values: Observables of the queries, `[T, A·Q]`.
    """
    losses, values = losses.double(), values.double()
    covariance = (values - values.mean(0)).T @ (losses - losses.mean(0)) / (len(losses) - 1)
    names = [observable.name for observable in problem.observables]
    row = {
        f"lds_{name}": lds(x.numpy(), part.masks, part.outcomes[name], num_bootstrap=1).mean
        for name, x in zip(names, (-covariance).chunk(len(names)), strict=True)
    }
    return {**row, "lds": sum(row.values()) / len(row)}


def judged(task: Task, settings: bif.Settings, part: BankPart) -> dict[str, Any]:
    """A run within its budget: LDS of every outcome, draws, effective draws, seconds."""
    started = time.perf_counter()
    try:
        run = bif.attribute(task.problem, settings)
    except (ValueError, RuntimeError) as error:  # no time for it, or chains that diverged
        return {"failed": str(error)[:500], "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    values = run.influence.dataset["influence"]
    scores = {o.name: values.sel(observable=o.name).values for o in task.problem.observables}
    row: dict[str, Any] = {
        f"lds_{name}": lds(matrix, part.masks, part.outcomes[name], num_bootstrap=1).mean
        for name, matrix in scores.items()
    }
    row["lds"] = sum(row.values()) / len(row)
    figures = {name: run.summary[name] for name in ("draws", "chains", "ess_median")}
    figures["nbeta"] = run.manifest["settings"]["nbeta"]
    return {**row, **figures, **trust(run), "seconds": seconds}
