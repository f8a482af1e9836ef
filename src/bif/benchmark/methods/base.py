"""The protocol of the benchmark's methods: candidates, the best on the tuning part, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from bif.benchmark.measure import Cost, measure_cost
from bif.benchmark.task import Task
from bif.evaluate import lds
from bif.evaluate.retraining import BankPart
from bif.problem.problem import Problem
from bif.types import Target


@dataclass(frozen=True)
class Scored:
    """The scores of a method for the reported queries.

    Attributes:
        method: The method's name.
        outcome: The observable that is predicted.
        scores: `[Q, N]`, signed as the outcome moves.
        cost: Set-up, tuning and scoring together.
        tuning_seconds: The part of the seconds that went into tuning.
        choice: What the tuning part chose.
        tuned: Candidates with their tuning LDS; NaN for those that the task did not allow.
        facts: Further figures for the row, such as draws and whether the run is trusted.
        curve: The same method's scores after less work, for the plots.
        target: The only target that the scores are for; None for scores of every target.
    """

    method: str
    outcome: str
    scores: np.ndarray
    cost: Cost
    tuning_seconds: float = 0.0
    choice: Mapping[str, Any] = field(default_factory=dict)
    tuned: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Scored] = ()
    target: Target | None = None

    def is_for(self, target: Target) -> bool:
        """Return whether networks of a target judge the scores."""
        return self.target in (None, target)


class Judge:
    """Tuning LDS of a score matrix: the mean over targets, on the tuning parts of their banks.

    Args:
        parts: Tuning parts, one a target.

    Raises:
        ValueError: A reported part.
    """

    def __init__(self, parts: Sequence[BankPart]) -> None:
        self.parts = [part.required("tuning") for part in parts]

    def of(self, target: Target) -> Judge:
        """Return the judge by the networks of one target."""
        return Judge([part for part in self.parts if part.target == target])

    def __call__(self, scores: np.ndarray, outcome: str, num_queries: int | None = None) -> float:
        """Return the mean LDS; 0 for scores with NaN, whose method has failed.

        Args:
            scores: `[Q, N]` of the tuning queries.
            outcome: Which observable they predict.
            num_queries: The scores are of the first so many tuning queries; of all if None.
        """
        if not np.isfinite(scores).all():
            return 0.0
        values = [
            lds(scores, part.masks, part.outcomes[outcome][..., :num_queries], num_bootstrap=1).mean
            for part in self.parts
        ]
        return float(np.mean(values))


class Fitted(Protocol):
    """A method that has been fitted to the train items."""

    def scores(self, problem: Problem, outcome: str, choice: Mapping[str, Any]) -> np.ndarray:
        """Return scores `[Q, N]` of the problem's queries.

        Raises:
            ValueError: A choice that this problem does not allow; another one is taken.
        """
        ...


class Method(Protocol):
    """A way to score, with what can be chosen about it."""

    @property
    def name(self) -> str:
        """The method's name in tables."""
        ...

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        """Tune on the tuning part and score the reported queries, for every outcome.

        Args:
            task: Model, data, settings.
            judge: The tuning part.
            found: What methods before this one have found, for those that build on them.

        Raises:
            Unsuited: The method cannot do this task; the reason goes into the table.
        """
        ...


class Unsuited(Exception):
    """Raised where a task does not allow a method: too many weights, layers of another kind."""


@dataclass(frozen=True)
class FittedMethod:
    """A method that is fitted once and scores both parts with every candidate.

    Attributes:
        name: The method's name in tables.
        fit: A function from a problem to what is `Fitted` to its train items.
        candidates: Choices between which the tuning part decides; `{}` where there is none.
    """

    name: str
    fit: Any
    candidates: tuple[Mapping[str, Any], ...] = ({},)

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        device = task.problem.device
        with measure_cost(device) as fitting:
            try:
                fitted: Fitted = self.fit(task.problem)
            except (ValueError, NotImplementedError, torch.OutOfMemoryError) as error:
                raise Unsuited(str(error)) from error
        made = []
        for outcome in task.problem.observables:
            with measure_cost(device) as tuning:
                tuned = self._tune(fitted, task, judge, outcome.name)
                choice = max(tuned, key=_tuning_lds)["choice"]
            with measure_cost(device) as scoring:
                scores = fitted.scores(task.problem, outcome.name, choice)
            made.append(
                Scored(
                    self.name,
                    outcome.name,
                    scores,
                    fitting.then(tuning).then(scoring),
                    tuning.seconds,
                    choice,
                    tuned,
                )
            )
        return made

    def _tune(self, fitted: Fitted, task: Task, judge: Judge, outcome: str) -> list[dict[str, Any]]:
        if len(self.candidates) == 1:
            return [{"choice": self.candidates[0], "lds": float("nan")}]
        tuned, refused = [], []
        for choice in self.candidates:
            try:
                scores = fitted.scores(task.tuning_problem, outcome, choice)
            except ValueError as error:  # such as a damped Hessian that is indefinite
                refused.append(f"{dict(choice)}: {error}")
                tuned.append({"choice": dict(choice), "lds": float("nan")})
                continue
            tuned.append({"choice": dict(choice), "lds": judge(scores, outcome)})
        if len(refused) == len(tuned):
            raise Unsuited("no candidate worked. " + " ".join(refused))
        return tuned


def _tuning_lds(candidate: Mapping[str, Any]) -> float:
    """Return a candidate's LDS, -inf where it has none."""
    return candidate["lds"] if np.isfinite(candidate["lds"]) else -np.inf
