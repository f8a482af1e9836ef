"""Images, networks and their training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bif import Items
from bif.benchmark.networks import ResNet9
from bif.benchmark.tasks import cifar, fashion, resnet20
from bif.evaluate import Recipe, train, train_with_checkpoints
from bif.losses import cross_entropy

DataSet = Literal["fashion", "cifar"]
WEIGHT_DECAY = {"fashion": fashion.WEIGHT_DECAY, "cifar": cifar.WEIGHT_DECAY}
_RATES = {"fashion": 0.05, "cifar": 0.01}
_BATCH = 128


class Images(NamedTuple):
    """Train images and others that the network does not see, or None."""

    train: Items
    others: Items | None


def read(data: Path, name: DataSet, train: int, others: int, device: str) -> Images:
    """Return the first train images, and the first test images or, of CIFAR-10, the next ones."""
    if name == "fashion":
        first = fashion.images(data, "train", slice(0, train), device)
        further = fashion.images(data, "t10k", slice(0, others), device) if others else None
        return Images(first, further)
    first = cifar.images(data, np.arange(train), device=device)
    further = (
        cifar.images(data, np.arange(train, train + others), device=device) if others else None
    )
    return Images(first, further)


def with_data(items: Items, inputs: Tensor, classes: Tensor, names: Sequence[str]) -> Items:
    """Return items with other inputs and classes under the same ids."""
    return Items(
        (inputs, classes), ids=items.ids.tolist(), labels=[names[int(c)] for c in classes]
    )  # fmt: skip


def class_names(items: Items) -> list[str]:
    """Return the names of the classes by their numbers."""
    numbers, labels = inputs_and_classes(items)[1].tolist(), items.labels
    assert labels is not None
    known = dict(zip(numbers, map(str, labels), strict=True))
    return [known.get(c, f"class {c}") for c in range(max(known) + 1)]


def inputs_and_classes(items: Items) -> tuple[Tensor, Tensor]:
    """Return the tensors of items, `[N, …]` and `[N]`."""
    assert isinstance(items.data, tuple)
    return items.data[0], items.data[1]


def network(name: DataSet) -> nn.Module:
    """Return an untrained network: a CNN of 55,338 weights, or ResNet-9 of 171,000."""
    with torch.random.fork_rng(devices=[]):
        if name == "cifar":
            return ResNet9()
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 49, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


def recipe(name: DataSet, num_items: int, epochs: int) -> Recipe:
    """Return how a network is trained."""
    batch = min(_BATCH, max(1, num_items // 4))
    return Recipe(
        epochs * (num_items // batch), _RATES[name], momentum=0.9,
        weight_decay=WEIGHT_DECAY[name], batch_size=batch, schedule="cosine",
    )  # fmt: skip


def trained(name: DataSet, items: Items, *, epochs: int, seed: int, device: str) -> nn.Module:
    """Return a network trained on items."""
    return train(
        network(name).to(device), cross_entropy, items.data, recipe(name, len(items), epochs),
        seed=seed, device=device,
    )  # fmt: skip


def path(
    name: DataSet, items: Items, steps: Sequence[int], *, epochs: int, seed: int, device: str
) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """Return the network trained on items, and its weights after some updates."""
    model, found = train_with_checkpoints(
        network(name).to(device), cross_entropy, items.data, recipe(name, len(items), epochs),
        at=steps, seed=seed, device=device,
    )  # fmt: skip
    return model, {step: dict(c.weights) for step, c in zip(steps, found, strict=True)}


def published(data: Path, count: int, device: str) -> tuple[nn.Module, Items]:
    """Return the published ResNet-20 and the images as it takes them."""
    items = cifar.images(
        data, np.arange(count), device=device, mean=resnet20.MEAN, spread=resnet20.SPREAD
    )
    return resnet20.checkpoint(data).to(device), items


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a network says of inputs, `[N, 10]`."""
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(1000)])


def accuracy(model: nn.Module, items: Items) -> float:
    """Return the share of items whose class a network names."""
    inputs, classes = inputs_and_classes(items)
    return float((logits(model, inputs).argmax(dim=1) == classes).double().mean())
