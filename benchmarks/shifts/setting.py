"""What a setting is: items with groups, queries, a network, how it is trained, what is tried."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import bif
from bif import Items
from bif.evaluate import Recipe, train
from bif.problem.items import map_batch
from bif.types import Batch, ItemLoss, Target

SIZES = (-1.0, -0.75, -0.5, -0.35, -0.2, -0.1, -0.03, -0.01,
         0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # fmt: skip
"""Weight that each item of a group gains: -1 removes the group, 1 doubles it."""
ADDED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0)
"""Weight of items that were not trained on: 1 adds them as they are."""
SEEDS = 5
SEED_OF_CHECKPOINT = 1000
"""Of the network around which influence is taken; no retrained network has it."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A network and data whose groups gain or lose weight.

    Attributes:
        name: Of the setting.
        start: The network before training, which every item's loss takes.
        loss: Of items and queries.
        items: All train items, those of groups that stay outside among them; labels are groups.
        queries: What is reported; labels are their groups.
        tuning: Queries that nbeta, gamma and dampings are chosen by.
        training: Recipe of w*.
        fresh: Whether `training` draws fresh weights, or starts from those of `start`.
        retraining: Recipe by where retraining starts.
        groups: Groups that are shifted.
        outside: Groups that are added in turn to a training without them.
        weight_decay: Of the training objective.
        posteriors: nbeta in items with gamma in nbeta, from which the tuning queries choose.
        dampings: Of Gauss-Newton influence, from which they choose.
        chains: Of a run.
        draws: Of a chain.
        stack: Networks that are retrained at once.
    """

    name: str
    start: nn.Module
    loss: ItemLoss
    items: Items
    queries: Items
    tuning: Items
    training: Recipe
    fresh: bool
    retraining: dict[Target, Recipe]
    groups: tuple[str, ...]
    outside: tuple[str, ...]
    weight_decay: float
    posteriors: tuple[tuple[float, float], ...]
    dampings: tuple[float, ...]
    chains: int
    draws: int
    stack: int = 64

    def of_groups(self, groups: Collection[str]) -> Items:
        """Return the train items of some groups."""
        return part(self.items, np.flatnonzero(np.isin(labels(self.items), list(groups))))

    def trained(self, groups: Collection[str], device: str) -> nn.Module:
        """Return the network w* of some groups of items."""
        return train(
            self.start, self.loss, self.of_groups(groups).data, self.training,
            seed=SEED_OF_CHECKPOINT, init="scratch" if self.fresh else "checkpoint", device=device,
        )  # fmt: skip

    def asked(self) -> Items:
        """Return the reported queries, and after them those of the tuning."""
        both = [self.queries, self.tuning]
        names = np.concatenate([labels(queries) for queries in both])
        return Items(_joined(*(queries.data for queries in both)), labels=names.tolist())


def labels(items: Items) -> np.ndarray:
    """Return the group of every item, `[N]`."""
    assert items.labels is not None
    return np.array([str(name) for name in items.labels])


def part(items: Items, places: np.ndarray) -> Items:
    """Return items at some positions."""
    index = torch.from_numpy(places)
    data = map_batch(lambda leaf: leaf[index.to(leaf.device)], items.data)
    return Items(data, ids=[str(i) for i in places], labels=labels(items)[places].tolist())


def posed(setting: Setting, model: nn.Module, inside: Items, outside: Items | None) -> bif.Problem:
    """Return the problem of the losses themselves, not through a margin."""
    return bif.Problem(
        model, setting.loss, train=inside, queries=setting.asked(),
        observables=[bif.Observable("loss", setting.loss, "lower")],
        candidates=None if outside is None else {"added": outside},
    )  # fmt: skip


def _joined(first: Any, then: Any) -> Batch:
    if isinstance(first, dict):
        return {name: torch.cat([leaf, then[name]]) for name, leaf in first.items()}
    return tuple(torch.cat(leaves) for leaves in zip(first, then, strict=True))
