"""A task: a trained model, its data, how it was trained, and which retrained networks judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bif.bank import Plan, Target, TrainFunction
from bif.evaluate import Recipe
from bif.functional import ItemFunction
from bif.items import Items, as_items, map_batch
from bif.losses import cross_entropy, margin, squared_error
from bif.problem import MARGIN, Observable, Problem
from bif.settings import Settings
from bif.types import Batch


@dataclass(frozen=True)
class Proxy:
    """An observable that stands in for an outcome, by the chain rule at w*.

    `d outcome_q ≈ slope_q · d observable_q`, so influences on the outcome are predicted by
    `slope_q` times those on the observable.  To first order nothing changes: gradient-based scores
    are the same up to a factor a query, and so is their LDS.  A covariance differs: the curvature
    of the outcome as a function of the observable stays out of it, and so do its heavy tails.

    Attributes:
        observable: What is sampled.
        slope: `slope(model, batch) -> [B]` at w*.
    """

    observable: Observable
    slope: Callable[[nn.Module, Batch], Tensor]

    def slopes(self, problem: Problem) -> Tensor:
        """The slopes of all the problem's queries, float64 `[Q]`."""
        of_items = ItemFunction(problem.evaluation_copy(problem.device), self.slope)
        parts = []
        with torch.no_grad():
            for items in problem.query_groups.values():
                for _, batch in items.chunks(1024):
                    parts.append(of_items(map_batch(lambda leaf: leaf.to(problem.device), batch)))
        return torch.cat(parts).double().cpu()


def _cross_entropy_slope(model: nn.Module, batch: Batch) -> Tensor:
    """`d loss / d margin = -(1 - p)`: the loss is `log(1 + exp(-margin))`."""
    return -torch.sigmoid(-margin(model, batch))


def _residual(model: nn.Module, batch: Batch) -> Tensor:
    """`f(x) - y`, `[B]`, of models with one output."""
    inputs, targets = batch
    return (model(inputs).reshape(targets.shape) - targets).reshape(len(targets), -1).sum(dim=1)


RESIDUAL = Observable("residual", _residual)
"""The signed error `f(x) - y` of a regression with one output."""

PROXIES: dict[object, tuple[Proxy, ...]] = {
    cross_entropy: (Proxy(MARGIN, _cross_entropy_slope),),
    squared_error: (Proxy(RESIDUAL, _residual),),
}
"""Known proxies by the outcome's function."""


@dataclass(frozen=True)
class Task:
    """What `bif lds` needs to know of a setting.

    Attributes:
        name: In tables.
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
        proxies: Outcome -> proxies between which the tuning part decides, the outcome itself
            always among them; those of `PROXIES` by default.
        networks_per_stack: Of retraining by a recipe.
        retraining_precision: Of matrix products of a recipe.
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

    def proxies_of(self, outcome: Observable) -> tuple[Proxy, ...]:
        """What may stand in for an outcome besides itself."""
        if self.proxies is not None:
            return tuple(self.proxies.get(outcome.name, ()))
        return PROXIES.get(outcome.function, ())

    @property
    def tuning_problem(self) -> Problem:
        """The problem with the tuning queries."""
        return self.problem.asking({"tuning": self.tuning_queries})
