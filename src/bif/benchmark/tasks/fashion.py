"""Fashion-MNIST: MLP 784-512-256-10 without biases, 500 to 20,000 train items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from bif.benchmark.task import Task
from bif.benchmark.tasks.files import find_path, read_idx
from bif.benchmark.tasks.parts import classification_problem
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.problem.items import Items
from bif.problem.losses import cross_entropy
from bif.sampling.settings import Settings

NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES, FIRST_TUNING = 6000, 200, 200, 2000
EPOCHS, WEIGHT_DECAY = 10, 1e-4
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task of the first `size` train images, 200 test images and 200 to tune on."""
    num_train = size or NUM_TRAIN
    train_items = images(data, "train", slice(0, num_train), device)
    model = train(
        network(device), cross_entropy, train_items.data, recipe(num_train), seed=seed,
        device=device,
    )  # fmt: skip
    on_gpu = device.startswith("cuda")
    # Calibration measures a mass for most of its time and then leaves it: unit mass is said here.
    settings = tuple(
        Settings(
            nbeta=share * num_train, gamma=0.1 * share * num_train, weight_decay=WEIGHT_DECAY,
            chains=128, draws=920, thin=5, seed=seed, block_size=128, chunk_size=num_train,
            mass="identity", gradient_precision="bfloat16" if on_gpu else "float32",
            loss_precision="tf32" if on_gpu else "float32",
        )
        for share in (0.2, 0.3)
    )  # fmt: skip
    queries = images(data, "t10k", slice(0, NUM_QUERIES), device)
    tuning = images(data, "t10k", slice(FIRST_TUNING, FIRST_TUNING + NUM_TUNING_QUERIES), device)
    return Task(
        "fashion" if num_train == NUM_TRAIN else f"fashion-{num_train}",
        classification_problem(model, {"train": train_items, "queries": queries}),
        tuning,
        recipe(num_train // 2),
        Plan(num_subsets=100, seeds=3, mask_seed=seed, num_tuning_subsets=40, tuning_seeds=2),
        settings=settings,
        methods=("random", "representation", "gradient_product", "gradient_cosine", "trak",
                 "ekfac", "tracin", "source", "bif", "bif_default"),
        about=f"Fashion-MNIST, {num_train:,} train images, MLP 784-512-256-10, 534,784 weights.",
        networks_per_stack=50,
        retraining_precision="tf32" if on_gpu else "float32",
    )  # fmt: skip


def recipe(num_items: int) -> Recipe:
    """Return a recipe of 10 epochs in batches of 128, or of 32 where 128 leave fewer than 8."""
    batch = 128 if num_items >= 8 * 128 else min(32, num_items)
    steps = EPOCHS * (num_items // batch)
    return Recipe(steps, 0.1, momentum=0.9, weight_decay=WEIGHT_DECAY, batch_size=batch)


def network(device: str) -> nn.Module:
    """Return an MLP 784-512-256-10 with ReLU, without biases."""
    return nn.Sequential(
        nn.Linear(784, 512, bias=False), nn.ReLU(), nn.Linear(512, 256, bias=False), nn.ReLU(),
        nn.Linear(256, 10, bias=False),
    ).to(device)  # fmt: skip


def images(data: Path, part: str, chosen: slice, device: str) -> Items:
    """Return images `[N, 784]`, normalised, of "train" or "t10k", with labels and pictures.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: It holds fewer images.
    """
    place = find_path(data, "fashion-mnist", ".")
    pixels_file = find_path(place, f"{part}-images-idx3-ubyte.gz")
    pictures = read_idx(pixels_file, 16).reshape(-1, 28, 28)[chosen]
    labels = read_idx(find_path(place, f"{part}-labels-idx1-ubyte.gz"), 8)[chosen]
    if len(pictures) != chosen.stop - chosen.start:
        raise ValueError(
            f"{place} holds fewer than {chosen.stop:,} images of {part!r}: ask for a smaller size."
        )
    pixels = torch.tensor(pictures.reshape(-1, 784) / np.float32(255), device=device)
    targets = torch.tensor(labels.astype(np.int64), device=device)
    ids = [f"{part}-{i}" for i in range(chosen.start, chosen.stop)]
    named = [CLASSES[label] for label in labels]
    return Items(((pixels - 0.2860) / 0.3530, targets), ids=ids, labels=named, images=pictures)
