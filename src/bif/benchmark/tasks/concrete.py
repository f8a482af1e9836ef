"""UCI concrete strength: regression with an MLP 8-128-128-128-1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bif.benchmark.task import Task
from bif.benchmark.tasks.files import find_path, read_csv
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.problem.items import Items
from bif.problem.losses import squared_error
from bif.problem.problem import Observable, Problem
from bif.sampling.settings import Settings

EPOCHS, BATCH = 20, 32
RECIPE = Recipe(1, 0.03, weight_decay=1e-5, batch_size=BATCH)


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task whose queries are the tenth that split 0 holds out.

    The tuning queries are what split 1 holds out besides.
    """
    parts = split(data, device=device, size=size)
    num_train = len(parts["train"])
    network = nn.Sequential(
        nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128),
        nn.ReLU(), nn.Linear(128, 1),
    ).to(device)  # fmt: skip
    model = train(
        network, squared_error, parts["train"].data, _recipe(num_train), seed=seed, device=device
    )
    settings = tuple(
        Settings(
            nbeta=nbeta * num_train, gamma=ratio * nbeta * num_train,
            weight_decay=RECIPE.weight_decay, chains=128, draws=100, thin=3, seed=seed,
            gradient_precision="tf32" if device.startswith("cuda") else "float32",
            compiled=device.startswith("cuda"),
        )
        for nbeta, ratio in ((0.3, 0.4), (0.3, 0.8), (1.0, 0.4))
    )  # fmt: skip
    return Task(
        "concrete",
        Problem(
            model,
            squared_error,
            train=parts["train"],
            queries=parts["queries"],
            observables=[Observable("loss", squared_error, "lower")],
        ),
        parts["tuning"],
        _recipe(num_train // 2),
        Plan(num_subsets=100, seeds=10, mask_seed=seed, num_tuning_subsets=40, tuning_seeds=3),
        settings=settings,
        about=f"UCI concrete, {num_train} train items, MLP 8-128-128-128-1, 34,433 weights.",
        networks_per_stack=100,
    )


def _recipe(num_items: int) -> Recipe:
    """Return a recipe of 20 epochs in whole batches."""
    return replace(RECIPE, steps=EPOCHS * (num_items // BATCH))


def split(data: Path, *, device: str, size: int | None = None) -> dict[str, Items]:
    """Train items, reported and tuning queries, standardised by the train items.

    Raises:
        FileNotFoundError: `data.csv.gz` or `test_mask.csv.gz` is missing.
    """
    place = find_path(data, "uci/concrete", "concrete", ".")
    table = read_csv(find_path(place, "data.csv.gz"))
    held_out = read_csv(find_path(place, "test_mask.csv.gz")).astype(bool)
    rows = np.arange(len(table))
    reported = rows[held_out[:, 0]]
    tuning = rows[held_out[:, 1] & ~held_out[:, 0]]
    # Some mixtures were measured twice: a tuning query must not be a reported one as well.
    measured = {tuple(row) for row in table[reported]}
    tuning = np.asarray([i for i in tuning if tuple(table[i]) not in measured])
    kept = rows[~held_out[:, 0] & ~held_out[:, 1]][:size]
    mean, spread = table[kept].mean(axis=0), table[kept].std(axis=0)
    standard = (table - mean) / spread

    def items(chosen: np.ndarray) -> Items:
        values = torch.tensor(standard[chosen], dtype=torch.float32, device=device)
        parts: tuple[Tensor, Tensor] = (values[:, :-1], values[:, -1])
        return Items(parts, ids=[f"row-{i}" for i in chosen])

    return {"train": items(kept), "queries": items(reported), "tuning": items(tuning)}
