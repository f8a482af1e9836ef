"""Fashion-MNIST as the benchmarks use it: the files, the network, its recipe."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import bif
from bif.evaluate import Recipe, train

RECIPE = Recipe(460, 0.1, momentum=0.9, weight_decay=1e-4, batch_size=128)
"""10 epochs of 46 batches of 128."""
LARGEST_CURVATURE = 4.4
"""Of the mean loss, as found by the first probes; fixed here so that runs compare."""


def load(folder: Path, part: str, count: int, device: str) -> tuple[Tensor, Tensor]:
    """The first `count` images `[N, 784]`, normalised, and labels of "train" or "t10k"."""
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16)[: count * 784]
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)[:count]
    pixels = torch.tensor(images.reshape(-1, 784) / np.float32(255), device=device)
    return (pixels - 0.2860) / 0.3530, torch.tensor(labels.astype(np.int64), device=device)


def network(device: str) -> nn.Module:
    """MLP 784-512-256-10 without biases, ReLU."""
    sizes = [784, 512, 256, 10]
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device)


def problem(folder: Path, *, num_train: int, num_queries: int, device: str, seed: int):
    """The trained network, `num_train` items, `num_queries` test images, loss and margin."""
    items = load(folder, "train", num_train, device)
    queries = load(folder, "t10k", num_queries, device)
    model = train(
        network(device), bif.losses.cross_entropy, items, RECIPE, seed=seed, device=device
    )
    loss = bif.Observable("loss", bif.losses.cross_entropy, "lower")
    return bif.Problem(
        model,
        bif.losses.cross_entropy,
        train=items,
        queries=queries,
        observables=[loss, bif.MARGIN],
    )


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header)
