"""LDS of fine-tuning a language model: rows as those of `benchmarks.lds`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import bif
from bif import baselines
from bif.bank import Plan, TrainFunction, retrained
from bif.benchmark import Task, judge
from bif.benchmark.methods import Judge, Scored, Unsuited, all_methods
from bif.benchmark.methods.base import FittedMethod
from bif.benchmark.methods.fluctuation import Fluctuation
from bif.benchmark.methods.response import Responses

METHODS = (
    "random", "gradient_product", "gradient_cosine", "ekfac", "bif", "bif_response",
    "bif_minibatch",
)  # fmt: skip
_CANDIDATES = ((1.0, 1.0), (10.0, 1.0), (10.0, 0.2))
"""nbeta in units of the number of train items, and gamma/nbeta in units of the default's."""
_OF_PAIRS = (10.0, 0.2)
_SCALES = tuple({"damping_scale": s} for s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0))


@dataclass(frozen=True)
class _Asked:
    fitted: baselines.EKFAC

    def scores(self, problem: bif.Problem, outcome: str, choice: Any) -> Any:
        return self.fitted.scores(problem, observable=outcome, **choice).double().cpu().numpy()


def _ekfac(problem: bif.Problem) -> _Asked:
    """EK-FAC on linear layers; embedding and norms are left out, as other tools do."""
    return _Asked(
        baselines.EKFAC.fit(
            problem, fisher_type="mc", criterion="cross_entropy", other_layers="leave_out"
        )
    )


def _by_mini_batches(settings: bif.Settings, num_train: int) -> bif.Settings:
    """SGLD as it is commonly run on language models: mini-batches, and few steps to a draw."""
    return replace(
        settings, sampler="sgld", gradient="minibatch", batch_size=min(32, num_train), mass=None,
        burn_in=500, thin=4,
    )  # fmt: skip


def lds_rows(
    problem: bif.Problem, train: TrainFunction, settings: bif.Settings, *,
    arguments: argparse.Namespace, pairs: bif.Settings,
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Every method on the bank of fine-tuned networks; tuned on other subsets and queries.

    Yields, after each method, the rows of all so far.

    Args:
        problem: The fine-tuned model, with groups "query" and "tuning" of queries.
        train: How it was fine-tuned.
        settings: Of the BIF.
        arguments: Sizes.
        pairs: Settings of the response estimator.
    """
    groups = dict(problem.query_groups)
    tuning = groups.pop("tuning")
    problem = problem.asking(groups)
    plan = Plan(
        num_subsets=arguments.lds_subsets, seeds=arguments.lds_seeds,
        num_tuning_subsets=max(8, arguments.lds_subsets // 3), tuning_seeds=1,
    )  # fmt: skip
    n = problem.num_train

    def task_of(*settings: bif.Settings) -> Task:
        return Task(
            "fine-tuning", problem, tuning, train, plan, settings=settings,
            response_steps=arguments.response_steps,
        )  # fmt: skip

    usual = bif.calibrate(problem, replace(settings, nbeta=float(n))).settings.gamma
    assert usual is not None

    def at(of: bif.Settings, nbeta: float, damping: float) -> bif.Settings:
        return replace(of, nbeta=nbeta * n, gamma=nbeta * damping * usual)

    candidates = [at(settings, *c) for c in _CANDIDATES]
    task = task_of(*candidates)
    noisy = task_of(*(_by_mini_batches(s, n) for s in candidates))
    paired = task_of(at(pairs, *_OF_PAIRS))
    bank = retrained(problem, tuning, train, plan, target="scratch", show_progress=True)
    print(f"bank: {bank.num_networks} networks, {bank.seconds:.0f} s", flush=True)
    assert bank.tuning is not None
    judged = Judge([bank.tuning])
    responses = Responses(
        dampings=tuple(arguments.response_dampings),
        curvatures=tuple(arguments.response_curvatures),
    )
    known = all_methods()
    methods: list[tuple[Any, Task]] = [
        (known["random"], paired),
        (known["gradient_product"], paired),
        (known["gradient_cosine"], paired),
        (FittedMethod("ekfac", _ekfac, _SCALES), paired),
        (Fluctuation("bif"), task),
        (responses, paired),
        (Fluctuation("bif_minibatch"), noisy),
    ]
    by_name = {method.name: (method, own) for method, own in methods}
    found: list[Scored] = []
    for name in arguments.methods or METHODS:
        method, own = by_name[name]
        try:
            made = method.run(own, judged, found)
        except (Unsuited, ValueError, RuntimeError, NotImplementedError) as reason:
            print(f"{method.name}: not here. {reason}", flush=True)
            continue
        found += made
        print(f"{method.name}: {made[0].cost.seconds:.1f} s", flush=True)
        tuned = [scored.tuned for scored in found]
        rows = judge.rows(found, [bank])
        yield [{"part": "lds", **r, "tuned": t} for r, t in zip(rows, tuned, strict=True)]
