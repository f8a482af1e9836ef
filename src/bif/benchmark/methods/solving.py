"""The response by solving, with its damping from the tuning part and with the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bif.benchmark.measure import Cost, measure_cost
from bif.benchmark.methods.base import Judge, Scored, Unsuited
from bif.benchmark.task import Task
from bif.calibration.tune_solver import as_choice, tune_solver
from bif.linear_response.request import of_observable
from bif.problem.problem import Problem
from bif.runs.attribute import attribute
from bif.sampling.settings import Settings


@dataclass(frozen=True)
class Solving:
    """Scores of `attribute` with `estimator="response"`.

    Attributes:
        name: The name of its rows.
        tuned: Whether damping and steps are from the tuning part; else nothing is given but the
            weight decay.
        residual: To what relative residual the systems are solved at the tuned damping, in the
            place of the tuned steps; None for these.
        share: Part of the train items whose curvature is taken.
    """

    name: str
    tuned: bool = True
    residual: float | None = None
    share: float = 1.0

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        first, device = task.settings[0], task.problem.device
        some = None if self.share == 1 else max(2, round(self.share * task.problem.num_train))
        plain = Settings(
            estimator="response", weight_decay=first.weight_decay, seed=first.seed,
            solver_items=some,
        )  # fmt: skip
        made = []
        for outcome in task.problem.observables:
            alone = of_observable(task.problem, outcome.name)
            settings, tuning, choice, tried = plain, Cost(), {}, []
            try:
                if self.tuned:
                    asked = of_observable(task.tuning_problem, outcome.name)
                    with measure_cost(device) as tuning:
                        chosen = tune_solver(asked, plain, judge.parts)
                    settings, choice = chosen.settings, as_choice(chosen)
                    tried = [{"choice": asdict(t), "lds": t.lds} for t in chosen.tried]
                if self.residual is not None:
                    settings = settings.reopened(solver_steps=None, solver_residual=self.residual)
                with measure_cost(device) as cost:
                    scores, facts = _solve(alone, settings)
            except (ValueError, torch.OutOfMemoryError) as error:
                raise Unsuited(str(error)) from error
            made.append(
                Scored(
                    self.name, outcome.name, scores, tuning.then(cost), tuning.seconds, choice,
                    tried, facts,
                )
            )  # fmt: skip
        return made


def _solve(problem: Problem, settings: Settings) -> tuple[np.ndarray, Mapping[str, Any]]:
    run = attribute(problem, settings)
    names = ("damping", "solver_steps", "largest_residual", "truncation", "damping_keeps")
    facts = {name: run.summary[name] for name in names}
    if "curvature_sampling" in run.summary:
        facts["curvature_sampling"] = run.summary["curvature_sampling"]
    scores = run.influence.dataset["influence"].values[0]
    return scores, {**facts, "trusted": run.summary.trusted, "failed_gates": run.failed_gates}


def solving() -> dict[str, Solving]:
    """Return the ways to solve, by name."""
    ways = (
        Solving("solver"),
        Solving("solver_default", tuned=False),
        Solving("solver_exact", residual=1e-4),
        Solving("solver_half", tuned=False, share=1 / 2),
        Solving("solver_quarter", tuned=False, share=1 / 4),
    )
    return {way.name: way for way in ways}
