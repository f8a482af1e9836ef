"""The response estimator as a method of the benchmark: its candidates, and queries that fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bif
from bif.bank import Plan, retrained
from bif.baselines import gradient_product
from bif.benchmark import Task
from bif.benchmark.methods import Judge, response
from bif.benchmark.methods.response import Responses
from bif.evaluate import Recipe
from small_problems import classification, labelled

RECIPE = Recipe(30, 0.1)
SETTINGS = bif.Settings(nbeta=200.0, gamma=20.0)


@pytest.fixture
def task() -> Task:
    plan = Plan(num_subsets=2, seeds=1, num_tuning_subsets=8)
    return Task("small", classification(), labelled(4, seed=3), RECIPE, plan, settings=(SETTINGS,))


def run(task: Task, method: Responses, monkeypatch, respond) -> Any:
    """The loss's scores, with `respond` in the place of chains."""
    monkeypatch.setattr(response, "respond", respond)
    bank = retrained(task.problem, task.tuning_queries, RECIPE, task.plan, target="scratch")
    assert bank.tuning is not None
    return method.run(task, Judge([bank.tuning]), [])[0]


def scores_of(problem: bif.Problem, seed: int = 0) -> np.ndarray:
    shape = (problem.num_queries, problem.num_train)
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("curvatures", [("hessian",), ("hessian", "gauss_newton")])
def test_the_gauss_newton_matrix_is_tried_at_temperature_0_if_asked_for(
    task, monkeypatch, curvatures
):
    gauss_newton = "gauss_newton" in curvatures
    asked: list[tuple[float, str]] = []

    def respond(problem: bif.Problem, _: bif.Settings, **how: Any) -> SimpleNamespace:
        asked.append((how["temperature"], how["curvature"]))
        sign = 1 if how["curvature"] == "gauss_newton" else -1
        return SimpleNamespace(scores=sign * gradient_product(problem, observable="loss").numpy())

    found = run(task, Responses(curvatures=curvatures), monkeypatch, respond)
    tried = asked[: len(found.tuned)]
    assert tried.count((0.0, "hessian")) == 3 and tried.count((1.0, "hessian")) == 1
    assert tried.count((0.0, "gauss_newton")) == (3 if gauss_newton else 0)
    assert len(tried) == (7 if gauss_newton else 4)
    assert found.choice.get("curvature", "hessian") == (
        "gauss_newton" if gauss_newton else "hessian"
    )


def test_a_query_whose_pairs_diverged_costs_a_candidate_that_query_alone(task, monkeypatch):
    def respond(problem: bif.Problem, _: bif.Settings, **how: Any) -> SimpleNamespace:
        scores = scores_of(problem)
        scores[0] = np.nan
        return SimpleNamespace(scores=scores)

    found = run(task, Responses(), monkeypatch, respond)
    assert all(t["lds"] != 0 for t in found.tuned)
    assert found.facts == {"failed_queries": 1.0}
    assert (found.scores[0] == 0).all() and (found.scores[1:] != 0).all()
