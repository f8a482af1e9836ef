"""scikit-learn's digits: MLP 64-64-10 tanh, small enough for the exact Hessian."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bif.benchmark.task import Task
from bif.benchmark.tasks.parts import classification_problem, split_positions
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.extras import needs_extra
from bif.problem.items import Items
from bif.problem.losses import cross_entropy
from bif.sampling.settings import Settings

NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES = 500, 200, 100
CENTER = Recipe(3000, 0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine")


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task of 500 digits and 200 queries, retrained from scratch and the checkpoint."""
    num_train = size or NUM_TRAIN
    parts = split(num_train, seed=seed, device=device)
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(device)
    model = train(network, cross_entropy, parts["train"].data, CENTER, seed=seed, device=device)
    chains = 256 if device.startswith("cuda") else 64  # as many as one kernel takes in its stride
    settings = tuple(
        Settings(
            nbeta=nbeta * num_train, gamma=ratio * nbeta * num_train,
            weight_decay=CENTER.weight_decay, chains=chains, block_size=chains, draws=1200, thin=2,
            seed=seed,
        )
        for nbeta, ratio in ((10.0, 0.004), (10.0, 0.01))
    )  # fmt: skip
    return Task(
        "digits",
        classification_problem(model, parts),
        parts["tuning"],
        replace(CENTER, steps=1500),
        Plan(num_subsets=100, seeds=4, mask_seed=seed, num_tuning_subsets=24, tuning_seeds=1),
        targets=("scratch", "checkpoint"),
        settings=settings,
        about="scikit-learn's digits, MLP 64-64-10 tanh, 4,810 weights.",
    )


def split(num_train: int, *, seed: int, device: str) -> dict[str, Items]:
    """Train items, reported queries and tuning queries of the digits.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    with needs_extra("demo", "the digits come with scikit-learn"):
        from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    chosen = split_positions(
        len(pixels),
        train=num_train,
        queries=NUM_QUERIES,
        tuning=NUM_TUNING_QUERIES,
        seed=seed,
        what=f"scikit-learn has {len(pixels):,} digits",
    )
    x = torch.tensor(pixels / 16, dtype=torch.float32, device=device)
    y = torch.tensor(labels, device=device)
    return {name: _items((x[places], y[places]), places) for name, places in chosen.items()}


def _items(data: tuple[Tensor, Tensor], places: np.ndarray) -> Items:
    return Items(data, ids=[f"digit-{i}" for i in places], labels=data[1].tolist())
