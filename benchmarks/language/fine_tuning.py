"""LDS of fine-tuning a language model: rows as those of `benchmarks.lds`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import bif
from bif import baselines
from bif.bank import Plan, TrainFunction, retrained
from bif.benchmark import Task, judge
from bif.benchmark.measure import measure_cost
from bif.benchmark.methods import Judge, Scored, Unsuited, all_methods
from bif.benchmark.methods.base import FittedMethod
from bif.benchmark.methods.fluctuation import Fluctuation
from bif.benchmark.methods.response import Responses
from bif.benchmark.methods.rivals import FittedRival
from bif.benchmark.methods.solving import Solving
from bif.types import Params

METHODS = (
    "random", "gradient_product", "gradient_cosine", "ekfac", "ekfac_cg", "solver_default",
    "solver", "gradient_product_in_metric", "solver_default_in_metric", "solver_in_metric",
    "solver_along_path", "bif", "bif_response", "bif_minibatch",
)  # fmt: skip
BATCH = 16
"""Documents of an update of fine-tuning, and of the mini-batches that give the metric."""
_CANDIDATES = ((1.0, 1.0), (10.0, 1.0), (10.0, 0.2))
"""nbeta in units of the number of train items, and gamma/nbeta in units of the default's."""
_PAIR_CANDIDATE = (10.0, 0.2)
"""The candidate of pairs of chains, in the same units."""
_DAMPING_SCALES = tuple({"damping_scale": s} for s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0))


def _ekfac(problem: bif.Problem) -> FittedRival:
    """Return EK-FAC on linear layers; embedding and norms are left out, as other tools do."""
    return FittedRival(
        baselines.EKFAC.fit(
            problem, fisher_type="mc", criterion="cross_entropy", other_layers="leave_out"
        )
    )


@dataclass(frozen=True)
class InMetric:
    """A method in the metric of Adam, from the squared gradients of mini-batches at w*."""

    inner: Any

    @property
    def name(self) -> str:
        return f"{self.inner.name}_in_metric"

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        with measure_cost(task.problem.device) as cost:
            metric = _metric(task.problem)
        task = replace(task, problem=task.problem.with_metric(metric))
        return [
            replace(scored, method=self.name, cost=cost.then(scored.cost))
            for scored in self.inner.run(task, judge, found)
        ]


@dataclass(frozen=True)
class AlongPath:
    """Influence along the path of fine-tuning: damped responses at models on the way, averaged.

    Damping, steps and metric are those of `solver_in_metric`, chosen at w*.
    """

    path: Sequence[nn.Module]
    name: str = "solver_along_path"

    def run(self, task: Task, judge: Judge, found: Sequence[Scored]) -> list[Scored]:
        (first,) = InMetric(Solving("solver")).run(task, judge, found)
        problem = task.problem
        with measure_cost(problem.device) as cost:
            metric = _metric(problem)
            settings = bif.Settings(
                estimator="response", nbeta=1.0, gamma=first.choice["damping"],
                solver_steps=int(first.choice["steps"]),
            )  # fmt: skip
            run = bif.attribute(problem.with_metric(metric).with_path(self.path), settings)
        mean = run.influence.dataset["influence"].values[0]
        return [replace(first, method=self.name, scores=mean, cost=first.cost.then(cost))]


def _metric(problem: bif.Problem) -> Params:
    return bif.gradient_metric(problem, batch_size=min(BATCH, problem.num_train // 2))


def _mini_batch_settings(settings: bif.Settings, num_train: int) -> bif.Settings:
    """Return settings of SGLD as it is commonly run: mini-batches, few steps a draw."""
    return replace(
        settings, sampler="sgld", gradient="minibatch", batch_size=min(32, num_train), mass=None,
        burn_in=500, thin=4,
    )  # fmt: skip


def lds_rows(
    problem: bif.Problem, train: TrainFunction, settings: bif.Settings, *,
    arguments: argparse.Namespace, pairs: bif.Settings, path: Sequence[nn.Module],
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Judge every method by fine-tuned networks, tuned on other subsets and queries.

    Yields, after each method, the rows of all so far.

    Args:
        problem: The fine-tuned model, with groups "query" and "tuning" of queries.
        train: How it was fine-tuned.
        settings: Settings of the BIF.
        arguments: Sizes.
        pairs: Settings of the response estimator.
        path: Models on the way of fine-tuning.
    """
    groups = dict(problem.query_groups)
    tuning = groups.pop("tuning")
    plan = Plan(
        num_subsets=arguments.lds_subsets, seeds=arguments.lds_seeds,
        num_tuning_subsets=max(8, arguments.lds_subsets // 3), tuning_seeds=1,
    )  # fmt: skip
    task = Task(
        "fine-tuning", problem.asking(groups), tuning, train, plan, settings=(settings,),
        response_steps=arguments.response_steps,
    )  # fmt: skip
    bank = retrained(task.problem, tuning, train, plan, target="scratch", show_progress=True)
    print(f"bank: {bank.num_networks} networks, {bank.seconds:.0f} s", flush=True)
    assert bank.tuning is not None
    judged = Judge([bank.tuning])
    methods = _methods(task, pairs, arguments, path)
    found: list[Scored] = []
    for name in arguments.methods or METHODS:
        method, settings_of_it = methods[name]
        try:
            made = method.run(replace(task, settings=settings_of_it), judged, found)
        except (Unsuited, ValueError, RuntimeError, NotImplementedError) as reason:
            print(f"{method.name}: not here. {reason}", flush=True)
            continue
        found += made
        print(f"{method.name}: {made[0].cost.seconds:.1f} s", flush=True)
        tuned = [scored.tuned for scored in found]
        rows = judge.rows(found, [bank])
        yield [{"part": "lds", **r, "tuned": t} for r, t in zip(rows, tuned, strict=True)]


def _methods(
    task: Task, pairs: bif.Settings, arguments: argparse.Namespace, path: Sequence[nn.Module]
) -> dict[str, tuple[Any, tuple[bif.Settings, ...]]]:
    """Return every method by name, with the settings between which it is tuned."""
    (settings,), n = task.settings, task.problem.num_train
    usual = bif.calibrate(task.problem, replace(settings, nbeta=float(n))).settings.gamma
    assert usual is not None

    def at(of: bif.Settings, nbeta: float, damping: float) -> bif.Settings:
        return replace(of, nbeta=nbeta * n, gamma=nbeta * damping * usual)

    candidates = tuple(at(settings, *c) for c in _CANDIDATES)
    noisy = tuple(_mini_batch_settings(s, n) for s in candidates)
    paired = (at(pairs, *_PAIR_CANDIDATE),)
    responses = Responses(
        dampings=tuple(arguments.response_dampings),
        curvatures=tuple(arguments.response_curvatures),
    )
    known = all_methods()
    plain = (
        "random",
        "gradient_product",
        "gradient_cosine",
        "ekfac_cg",
        "solver",
        "solver_default",
    )
    in_metric = ("gradient_product", "solver", "solver_default")
    return {
        **{name: (known[name], paired) for name in plain},
        **{f"{name}_in_metric": (InMetric(known[name]), paired) for name in in_metric},
        "solver_along_path": (AlongPath(path), paired),
        "ekfac": (FittedMethod("ekfac", _ekfac, _DAMPING_SCALES), paired),
        "bif": (Fluctuation("bif"), candidates),
        "bif_response": (responses, paired),
        "bif_minibatch": (Fluctuation("bif_minibatch"), noisy),
    }
