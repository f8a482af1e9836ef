"""A task: a trained model, its data, how it was trained, and which retrained networks judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bif.evaluate import Recipe, train_with_checkpoints
from bif.evaluate.retraining import Plan, Target, TrainFunction
from bif.problem.checkpoints import Checkpoint
from bif.problem.items import Items, as_items
from bif.problem.problem import UNNAMED, Observable, Problem
from bif.problem.proxy import Proxy, known_proxy, residuals
from bif.sampling.settings import Settings
from bif.types import Batch

NUM_CHECKPOINTS = 12
"""Checkpoints of a recipe's path: twice as many as in Bae et al. 2024; still more change little."""
RESIDUAL = Observable("residual", residuals)
"""The signed error `f(x) - y` of a regression with one output."""


@dataclass(frozen=True)
class Task:
    """A setting as `bif lds` needs it.

    Attributes:
        name: The task's name in tables.
        problem: The trained model, its train items, the reported queries and the observables,
            each of which is an outcome of retraining.
        tuning_queries: Other queries, on which alone anything is tuned: `Items`, or a batch.
        retraining: A `Recipe`, or a function `train(start, items, seed) -> model` as for
            `bif.bank.retrained`.
        plan: Which subsets and seeds, of the reported and of the tuning part.
        targets: "scratch", "checkpoint" or both.
        settings: Settings of the BIF between which the tuning part decides; the first is used
            where nothing is tuned.  Pilots and responses have a length of their own, whatever
            `reliability` or `budget` say.
        response_steps: Recorded steps of the response estimator's chains at temperature 1.
        methods: Names of the methods, in the order of the table; all that the model allows by
            default.
        about: One line for the reader: what the numbers are, and are not.
        in_sample: Whether the queries were trained on.
        proxies: Proxies by outcome between which the tuning part decides, the outcome itself always
            among them; by default the observable's own and `known_proxy`.
        paths: The way of training by target, for methods that follow it: the trained network and
            its checkpoints.  Where there is none, a recipe trains on all train items.
        networks_per_stack: Networks that are retrained at once by a recipe.
        retraining_precision: Precision of matrix products in retraining by a recipe.
    """

    name: str
    problem: Problem
    tuning_queries: Items | Batch
    retraining: Recipe | TrainFunction
    plan: Plan
    targets: tuple[Target, ...] = ("scratch",)
    settings: tuple[Settings, ...] = (Settings(),)
    response_steps: int = 1000
    methods: tuple[str, ...] | None = None
    about: str = ""
    in_sample: bool = False
    proxies: Mapping[str, tuple[Proxy, ...]] | None = None
    paths: Mapping[Target, tuple[nn.Module, Sequence[Checkpoint]]] | None = None
    networks_per_stack: int = 64
    retraining_precision: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tuning_queries", as_items(self.tuning_queries))
        if isinstance(self.settings, Settings):
            object.__setattr__(self, "settings", (self.settings,))
        if not self.settings:
            raise ValueError(f"task {self.name!r} has no settings of the BIF: give at least one.")
        if not all(isinstance(settings, Settings) for settings in self.settings):
            raise TypeError(
                f"task {self.name!r}: settings must be bif.Settings, one or more in a tuple, got "
                f"{self.settings!r}."
            )
        if not self.targets:
            raise ValueError(f"task {self.name!r} has no targets: give 'scratch', 'checkpoint'.")
        if self.plan.num_tuning_subsets < 8:
            raise ValueError(
                f"task {self.name!r} plans {self.plan.num_tuning_subsets} tuning subsets: at least "
                "8 are needed, methods are tuned on nothing else."
            )

        for outcome in self.problem.observables:
            names = [outcome.name, *(proxy.name for proxy in self.proxies_of(outcome))]
            if len(set(names)) < len(names):
                raise ValueError(
                    f"task {self.name!r} has {names} for the outcome {outcome.name!r}: give its "
                    "proxies names of their own."
                )

    def proxies_of(self, outcome: Observable) -> tuple[Proxy, ...]:
        """Return the proxies that may stand in for an outcome."""
        if self.proxies is not None:
            return tuple(self.proxies.get(outcome.name, ()))
        own = (outcome.through, known_proxy(outcome.function))
        return tuple(dict.fromkeys(proxy for proxy in own if proxy is not None))

    def path(self, target: Target) -> tuple[nn.Module, Sequence[Checkpoint]]:
        """Return a network trained on all train items as those of a target are, and checkpoints.

        It starts where they start and takes as many steps.

        Raises:
            ValueError: The task is retrained by a function and has no path for the target.
        """
        if self.paths is not None and target in self.paths:
            return self.paths[target]
        if not isinstance(self.retraining, Recipe):
            raise ValueError(
                f"task {self.name!r} is retrained by a function, which keeps no checkpoints: give "
                f"the task paths={{{target!r}: (model, checkpoints)}}."
            )
        problem = self.problem
        return train_with_checkpoints(
            problem.model, problem.loss, problem.train.first(problem.num_train), self.retraining,
            at=min(NUM_CHECKPOINTS, self.retraining.steps), seed=self.settings[0].seed, init=target,
        )  # fmt: skip

    @property
    def tuning_problem(self) -> Problem:
        """The problem with the tuning queries."""
        return self.problem.asking({UNNAMED: self.tuning_queries})
