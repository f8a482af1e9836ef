"""Retraining that checks a prediction, where the user's file says how the network is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bif.cli.language import Language, pose_problem
from bif.cli.loading import load_function
from bif.sampling.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from bif.benchmark import Task
    from bif.problem.problem import Problem
    from bif.runs.run import Run

EVERY = "all queries"
"""Name of the group of all queries."""


@dataclass(frozen=True)
class Request:
    """What is asked of retraining.

    Attributes:
        num_seeds: Networks of each re-weighting.
        only_leaves_out: Whether no item has another weight than 0 or its own.
    """

    num_seeds: int
    only_leaves_out: bool = False


@dataclass(frozen=True, eq=False)
class Checked:
    """Changes of the queries that retraining made, each less what no change of the weights makes.

    Attributes:
        changes: By observable, `[W, S, Q]`.
        num_seeds: S.
    """

    changes: Mapping[str, np.ndarray]
    num_seeds: int

    def of(self, observable: str, queries: Sequence[int]) -> np.ndarray:
        """Return the changes of a mean over queries, `[W, S]`."""
        return self.changes[observable][:, :, list(queries)].mean(axis=2)


def pose_task(
    target: str | None, language: Language, settings: Settings, *, query: Sequence[str] = ()
) -> tuple[Problem, Settings, Task | None]:
    """Return the problem that the command line names, its settings, and its task if it is one.

    A task brings settings of its own, which are taken where none are given.

    Raises: as `pose_problem`.
    """
    from bif.benchmark import Task

    if target is None or language != Language():
        return *pose_problem(target, language, settings, query=query), None
    made = load_function(target)()
    if not isinstance(made, Task):
        from bif.problem.problem import Problem

        if not isinstance(made, Problem):
            raise TypeError(
                f"{target} must return a bif.Problem, or a bif.benchmark.Task, got "
                f"{type(made).__name__}."
            )
        return made, settings, None
    if settings == Settings():
        settings = made.settings[0]
    return made.problem, settings, made


def attributed_run(
    target: str | None,
    run_folder: str | None,
    language: Language,
    settings: Settings,
    *,
    out: str,
    query: Sequence[str],
    groups: str | None,
    retraining: Request | None,
    estimator: Literal["covariance"] | None,
) -> tuple[Run, Tensor | None, Task | None]:
    """Return a run that is there or is made, the weights of train items, and the task to retrain.

    Args:
        target: FILE.py:FUNCTION.
        run_folder: Of a run, in the place of another.
        language: A model and documents.
        settings: Of the run that is made.
        out: Folder below which it is kept.
        query: Files of queries.
        groups: Text of the train items that names their groups, if any.
        retraining: What is to be retrained, which needs a task; otherwise none is returned.
        estimator: That of the run, where it cannot be chosen.

    Raises:
        ValueError: Two problems; a run folder of another problem than the task's.
        Others: As `pose_task` and of a task that cannot be retrained.
    """
    from bif.runs.attribute import attribute
    from bif.runs.run import load

    if run_folder is not None and (language.model or (target and not retraining)):
        raise ValueError("expected FILE.py:FUNCTION, a --model, or --run-folder DIR, not two.")
    if run_folder is not None and retraining is None:
        return load(run_folder), None, None
    problem, settings, task = pose_task(target, language, settings, query=query)
    task = _require_task(task, retraining) if retraining is not None else None
    if groups is not None:
        _refuse_without_text(problem, groups)
    if run_folder is not None:
        run = load(run_folder)
        refuse_other_items(run, problem)
    else:
        if estimator is not None:
            settings = replace(settings, estimator=estimator)
        run = attribute(problem, settings, out=f"{out.rstrip('/')}/run", show_progress=True)
    return run, problem.train_weights, task


def refuse_other_items(run: Run, problem: Problem) -> None:
    """Raise where a run is of other train items or queries than the problem.

    Raises:
        ValueError: It is.
    """
    dataset = run.influence.dataset
    for side, known in (("train", problem.train.ids), ("query", problem.query_ids)):
        if [str(x) for x in dataset[f"{side}_id"].values] != [str(x) for x in known]:
            raise ValueError(
                f"the run is of other {side} items than the task that is to be retrained: leave "
                "out --run-folder, or give the task's own run."
            )


def _refuse_without_text(problem: Problem, text: str) -> None:
    """Raise before the run where the train items do not say their groups.

    Raises:
        KeyError: They do not.
    """
    known = {*problem.train.about, *(["label"] if problem.train.labels is not None else [])}
    if text not in {*known, *(["group"] if problem.candidate_groups else [])}:
        raise KeyError(
            f"the train items have no {text!r} that names their groups; they have {sorted(known)}: "
            "give them labels, or Items(about=…), or name another in --groups."
        )


def query_groups(run: Run, text: str) -> dict[str, Sequence[int]]:
    """Return all queries, and those of each group by the same text, or by their own groups."""
    from bif.results.group_sums import members_of

    dataset = run.influence.dataset
    name = f"query_{text}" if f"query_{text}" in dataset.coords else "query_group"
    names = [str(value) for value in dataset[name].values]
    everything = {EVERY: range(len(names))}
    return everything | (members_of(names, len(names)) if len(set(names)) > 1 else {})


def _require_task(task: Task | None, request: Request) -> Task:
    """Return the task, if it can be retrained as is asked for.

    Raises:
        ValueError: There is none; no seed; columns that are no train items; weights that a
            function cannot take.
    """
    from bif.evaluate import Recipe

    if task is None:
        raise ValueError(
            "--retrain needs to know how the network is trained: let FILE.py:FUNCTION return a "
            "bif.benchmark.Task, whose retraining is a bif.evaluate.Recipe."
        )
    if request.num_seeds < 1:
        raise ValueError(f"--seeds is {request.num_seeds}: expected at least 1.")
    task.problem.refuse_tokens("retraining with weights")
    if task.problem.candidate_groups:
        raise ValueError(
            "the problem has candidates, which are no items to retrain on: leave them out, or "
            "leave out --retrain."
        )
    if not isinstance(task.retraining, Recipe) and not request.only_leaves_out:
        raise ValueError(
            f"task {task.name!r} is retrained by a function of the items, which can leave items "
            "out and give them no weights: with bif shift pass --sizes -1, or give the task a "
            "bif.evaluate.Recipe."
        )
    return task


def retrain_task(task: Task, weights: np.ndarray, *, num_seeds: int) -> Checked:
    """Return what retraining with weights of the items makes of a task's queries.

    By a recipe all weights of a seed share initial weights and order of batches.  By a function
    they do not, and weights can only be 0 or what they were.

    Args:
        task: Problem, training, and where networks start from.
        weights: Of the train items, `[W, N]`.
        num_seeds: Networks of each.

    Raises:
        FloatingPointError: A network diverges.
    """
    problem = task.problem
    from bif.evaluate import Recipe

    rho = np.ones(problem.num_train)
    if problem.train_weights is not None:
        rho = np.asarray(problem.train_weights, dtype=float)
    rows = np.concatenate([rho[None], weights])
    by_recipe = isinstance(task.retraining, Recipe)
    values = (_by_recipe if by_recipe else _by_function)(task, rows, num_seeds)
    seeds = next(iter(values.values())).shape[1]
    return Checked({name: x[1:] - x[:1] for name, x in values.items()}, seeds)


def _by_recipe(task: Task, rows: np.ndarray, num_seeds: int) -> dict[str, np.ndarray]:
    from bif.evaluate import Recipe, retrain_weighted

    problem, recipe = task.problem, task.retraining
    assert isinstance(recipe, Recipe)
    start = task.targets[0]
    if start == "checkpoint" and recipe.batch_size is None:
        num_seeds = 1  # such training has no randomness
    asked = {
        (observable.name, group): (observable.function, items.first(len(items)))
        for group, items in problem.query_groups.items()
        for observable in problem.observables
    }
    found = retrain_weighted(
        problem.model, problem.loss, problem.train.first(problem.num_train), rows, recipe,
        outcomes={str(key): value for key, value in asked.items()}, init=start,
        seeds=range(num_seeds), networks_per_stack=task.networks_per_stack,
        precision=task.retraining_precision,  # type: ignore[arg-type]
    )  # fmt: skip
    return {
        observable.name: np.concatenate(
            [found[str((observable.name, group))] for group in problem.query_groups], axis=2
        )
        for observable in problem.observables
    }


def _by_function(task: Task, rows: np.ndarray, num_seeds: int) -> dict[str, np.ndarray]:
    from bif.evaluate.retraining.trainers import FunctionTrainer
    from bif.evaluate.training import Network

    kept = rows > 0
    problem = task.problem
    trainer = FunctionTrainer(problem, task.retraining, target=task.targets[0], device=None)  # type: ignore[arg-type]
    batches = [items.first(len(items)) for items in problem.query_groups.values()]
    queries = {o.name: (o.function, batches) for o in problem.observables}
    networks = [Network(mask, seed, w) for w, mask in enumerate(kept) for seed in range(num_seeds)]
    found: dict[str, Any] = trainer.outcomes(networks, queries)
    return {name: x.reshape(len(rows), num_seeds, -1) for name, x in found.items()}
