"""Settings of images: handwritten digits and Fashion-MNIST, whose groups are classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import bif
from benchmarks.shifts.setting import Setting
from bif import Items
from bif.benchmark.tasks import fashion as fashion_mnist
from bif.evaluate import Recipe

DECAY = 0.01
"""Weight decay at which networks of other seeds change alike when the data shift."""

POSTERIORS = ((1.0, 0.003), (1.0, 0.03), (10.0, 0.003), (10.0, 0.03))
"""nbeta in items with gamma in nbeta, from which the tuning queries choose."""
DAMPINGS = (0.0003, 0.003, 0.03)


def digits(data: Path | None, device: str, *, tiny: bool) -> Setting:
    """Return a network of 1,810 weights on 400 digits; `data` is not used."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))
    x = torch.tensor(pixels[order] / 16, device=device).float()
    y = torch.tensor(classes[order], device=device)
    count, asked = (60, 20) if tiny else (400, 400)
    recipe = Recipe(20 if tiny else 200, 0.5, momentum=0.9, weight_decay=DECAY, schedule="cosine")
    items, queries, tuning = _parts(x, y, [str(k) for k in range(10)], (count, asked, asked // 2))
    return Setting(
        "digits", _network(64, 24), bif.losses.cross_entropy, items, queries, tuning, recipe, True,
        {"scratch": recipe, "checkpoint": recipe}, tuple("01" if tiny else "0123456789"),
        ("1",) if tiny else ("1", "8"), DECAY,
        ((1.0, 0.1),) if tiny else POSTERIORS, (0.01,) if tiny else DAMPINGS,
        2 if tiny else 16, 40 if tiny else 500,
    )  # fmt: skip


def fashion(data: Path | None, device: str, *, tiny: bool) -> Setting:
    """Return a network of 970 weights on 600 images of 7 × 7 pixels."""
    assert data is not None
    count, asked = (60, 20) if tiny else (600, 200)
    parts = {"train": count, "t10k": asked + asked // 2}
    read = [fashion_mnist.images(data, name, slice(0, n), device).first(n)
            for name, n in parts.items()]  # fmt: skip
    x, y = (torch.cat([images[leaf] for images in read]) for leaf in (0, 1))
    x = avg_pool2d(x.reshape(-1, 1, 28, 28), 4).flatten(1)
    recipe = Recipe(20 if tiny else 150, 0.3, momentum=0.9, weight_decay=DECAY, schedule="cosine")
    names = list(fashion_mnist.CLASSES)
    items, queries, tuning = _parts(x, y, names, (count, asked, asked // 2))
    return Setting(
        "fashion", _network(49, 16), bif.losses.cross_entropy, items, queries, tuning, recipe,
        True, {"scratch": recipe, "checkpoint": recipe}, tuple(names[:2] if tiny else names),
        (), DECAY, ((1.0, 0.1),) if tiny else POSTERIORS, (0.01,) if tiny else DAMPINGS,
        2 if tiny else 16, 40 if tiny else 500,
    )  # fmt: skip


def _network(pixels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, 10))


def _parts(x: Tensor, y: Tensor, names: Sequence[str], counts: tuple[int, ...]) -> list[Items]:
    """Return items one part after another, labelled by their classes."""
    ends = np.cumsum([0, *counts])
    return [
        Items((x[a:b], y[a:b]), labels=[names[int(k)] for k in y[a:b]])
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]
