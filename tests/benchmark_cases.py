"""The convex task that the tests of the benchmark, of tuning and of `bif lds` share."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import nn

import bif
from bif.bank import Plan
from bif.benchmark import Task
from bif.evaluate import Recipe, train
from small_problems import labelled

RECIPE = Recipe(60, 0.5, momentum=0.9, weight_decay=1e-2)
SETTINGS = bif.Settings(
    nbeta=2000.0, gamma=20.0, weight_decay=1e-2, chains=8, draws=30, burn_in=20, thin=2,
    step_size=0.025, friction=10.0,
)  # fmt: skip


@cache
def _trained(num_train: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Linear(4, 3).double()
    return train(network, bif.losses.cross_entropy, labelled(num_train, seed=0), RECIPE, seed=0)


def convex(num_train: int = 40) -> Task:
    """Logistic regression in four dimensions: classical influence is nearly the truth."""
    items, queries, tuning = (labelled(n, seed=s) for n, s in ((num_train, 0), (8, 1), (6, 2)))
    problem = bif.Problem(
        deepcopy(_trained(num_train)), bif.losses.cross_entropy, train=items, queries=queries,
        observables=[bif.Observable("loss", bif.losses.cross_entropy, "lower"), bif.MARGIN],
    )  # fmt: skip
    plan = Plan(num_subsets=12, seeds=1, num_tuning_subsets=8)
    return Task(
        "convex", problem, tuning, RECIPE, plan, targets=("checkpoint",), settings=(SETTINGS,),
        response_steps=100,
    )  # fmt: skip
