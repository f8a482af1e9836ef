"""Logistic regression on the digits: convex, so classical influence is the truth."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bif.benchmark.task import Task
from bif.benchmark.tasks.digits import NUM_TRAIN, split
from bif.benchmark.tasks.parts import classification_problem
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.problem.losses import cross_entropy
from bif.sampling.settings import Settings

RECIPE = Recipe(2000, 0.5, momentum=0.9, weight_decay=1e-2)
"""A recipe that converges: the largest curvature of the mean loss is about 3."""


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task of 500 digits, whose weight decay is large against gamma.

    It makes U strongly convex.
    """
    num_train = size or NUM_TRAIN
    parts = split(num_train, seed=seed, device=device)
    network = nn.Linear(64, 10).to(device)
    model = train(network, cross_entropy, parts["train"].data, RECIPE, seed=seed, device=device)
    nbeta = 100.0 * num_train
    settings = Settings(
        nbeta=nbeta, gamma=1e-3 * nbeta, weight_decay=RECIPE.weight_decay,
        chains=64, draws=800, thin=5, seed=seed,
    )  # fmt: skip
    return Task(
        "logistic",
        classification_problem(model, parts),
        parts["tuning"],
        RECIPE,
        Plan(num_subsets=100, seeds=1, mask_seed=seed, num_tuning_subsets=24),
        targets=("checkpoint",),
        settings=(settings,),
        about="Logistic regression on scikit-learn's digits, 650 weights, weight decay .01; one "
        "minimum, so scratch and checkpoint are the same.",
    )
