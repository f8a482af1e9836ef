"""The toy: five sparse features in two dimensions, learned one after another by gradient descent.

An item has one active feature, and the network is to give it back: `ReLU(Wᵀ W x + b)` with W of
shape `[2, 5]`.  A feature is represented when its column of W has grown; the columns of k
represented features are a polygon of k corners (Elhage et al. 2022, arXiv 2209.10652; Chen et al.
2023, arXiv 2310.06301).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bif
from bif.types import Batch

ITEMS = (8, 10, 12, 14, 17)
"""Items of each feature.  A feature that starts smaller has more of them, so that it too comes in:
with as many of each, some trainings end with four features."""
FEATURES = tuple(f"feature {j}" for j in range(len(ITEMS)))
LEARNING_RATE = 0.2
START, SMALLER = 0.1, 0.3
"""Scale of the start of the first feature, and the ratio of each next one's to it: these part the
stages in time."""


class Autoencoder(nn.Module):
    """`ReLU(Wᵀ W x + b)`, with weights that are written over."""

    def __init__(self) -> None:
        super().__init__()
        count = len(ITEMS)
        self.W = nn.Parameter(torch.zeros(2, count, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def hidden(self, x: Tensor) -> Tensor:
        """Return `W x` of inputs `[B, 5]`, `[B, 2]`."""
        return x @ self.W.mT

    def forward(self, x: Tensor) -> Tensor:
        """Return the answer to inputs `[B, 5]`."""
        return torch.relu(self.hidden(x) @ self.W + self.b)


def half_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Return half the squared distance of each answer from its input, `[B]`."""
    (x,) = batch
    return 0.5 * (model(x) - x).square().sum(dim=-1)


def squared_size(model: nn.Module, batch: Batch) -> Tensor:
    """Return `|W x|²`, `[B]`: the squared size of the column of the active feature."""
    assert isinstance(model, Autoencoder)
    (x,) = batch
    return model.hidden(x).square().sum(dim=-1)


def train_items() -> Tensor:
    """Return the items `[61, 5]`: of each feature as many values, evenly between 0 and 1."""
    one_hot = torch.eye(len(ITEMS), dtype=torch.float64)
    values = [(torch.arange(count, dtype=torch.float64) + 0.5) / count for count in ITEMS]
    return torch.cat([v[:, None] * one_hot[j] for j, v in enumerate(values)])


def groups() -> list[str]:
    """Return the feature of each item, by name."""
    return [name for name, count in zip(FEATURES, ITEMS, strict=True) for _ in range(count)]


def pose(device: str) -> bif.Problem:
    """Return the problem: for each feature a query at which it is fully on, loss and size of it."""
    queries = bif.Items((torch.eye(len(ITEMS), dtype=torch.float64),), ids=FEATURES)
    observables = [
        bif.Observable("loss", half_squared_error, "lower"),
        bif.Observable("size", squared_size, "higher"),
    ]
    return bif.Problem(
        Autoencoder().to(device), half_squared_error, train=bif.Items((train_items(),)),
        queries=queries, observables=observables,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Path:
    """Weights before each step of trainings side by side, and after the last.

    Attributes:
        W: `[T + 1, R, 2, 5]`.
        b: `[T + 1, R, 5]`.
    """

    W: Tensor
    b: Tensor

    def sizes(self) -> Tensor:
        """Return the size of each feature's column, `[T + 1, R, 5]`."""
        return self.W.norm(dim=-2)

    def losses(self) -> Tensor:
        """Return the loss of each feature's query, `[T + 1, R, 5]`."""
        x = torch.eye(len(ITEMS), dtype=torch.float64, device=self.W.device)
        off = torch.relu(self.W.mT @ self.W + self.b.unsqueeze(-2)) - x
        return 0.5 * off.square().sum(dim=-1)

    def weights(self, step: int) -> dict[str, Tensor]:
        """Return the first training's state dict before a step."""
        return {"W": self.W[step, 0], "b": self.b[step, 0]}


def train(seed: int, steps: int, device: str, kept: Tensor | None = None) -> Path:
    """Train by gradient descent on all items, from one start.

    Biases start at each feature's mean, so that the start is the plateau with no feature.

    Args:
        seed: Of the start.
        steps: Steps of gradient descent.
        device: Where.
        kept: Weights of the features' items at each step, `[R, steps, 5]`: R trainings side by
            side; one with weights of 1 by default.
    """
    x = train_items()
    source = torch.Generator().manual_seed(seed)
    scale = START * SMALLER ** torch.arange(len(ITEMS), dtype=torch.float64)
    start = scale * torch.randn(2, len(ITEMS), generator=source, dtype=torch.float64)
    if kept is None:
        kept = torch.ones(1, steps, len(ITEMS), dtype=torch.float64)
    of_item = torch.arange(len(ITEMS)).repeat_interleave(torch.tensor(ITEMS)).to(device)
    W, b = (
        leaf.to(device).expand(len(kept), *leaf.shape).clone() for leaf in (start, x.mean(dim=0))
    )
    x, kept, path = x.to(device), kept.to(device), [(W, b)]
    for step in range(steps):
        leaves = W.detach().requires_grad_(), b.detach().requires_grad_()
        off = torch.relu(x @ leaves[0].mT @ leaves[0] + leaves[1].unsqueeze(1)) - x
        losses = 0.5 * off.square().sum(dim=-1) * kept[:, step, of_item]
        along = torch.autograd.grad(losses.mean(dim=1).sum(), leaves)
        W, b = W - LEARNING_RATE * along[0], b - LEARNING_RATE * along[1]
        path.append((W, b))
    stacked = (torch.stack(leaf).detach() for leaf in zip(*path, strict=True))
    return Path(*stacked)


def series(path: Path, steps: Sequence[int]) -> bif.CheckpointSeries:
    """Return the checkpoints of the first training at some steps."""
    return bif.CheckpointSeries.from_weights({step: path.weights(step) for step in steps})
