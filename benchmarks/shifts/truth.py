"""What networks do that are retrained on shifted data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from benchmarks.shifts.setting import SEEDS, Setting, labels
from bif import Items
from bif.evaluate import retrain_weighted
from bif.types import Target


def weights(groups: np.ndarray, shifted: Sequence[str], sizes: Sequence[float], *,
            added: bool) -> np.ndarray:  # fmt: skip
    """Return the weights of all items without a shift, then by group and size, `[1 + G·Z, N]`.

    Each row has the sum N: the total weight is preserved, and so is the share of the weight decay.

    Args:
        groups: Of every item, `[N]`.
        shifted: The groups that gain weight, one in a row.
        sizes: What each of its items gains.
        added: Whether it has weight 0 without a shift, and no longer 1.
    """
    start = np.ones(len(groups))
    if added:
        start[np.isin(groups, shifted)] = 0.0
    rows = [start, *(start + size * (groups == g) for g in shifted for size in sizes)]
    return np.stack([row * len(row) / row.sum() for row in rows])


def actual_changes(
    setting: Setting, model: nn.Module, items: Items, shifted: Sequence[str],
    sizes: Sequence[float], target: Target, *, added: bool, device: str, seed: int,
) -> np.ndarray:  # fmt: skip
    """Return how the losses of all queries change by retraining, `[G, Z, S, Q]`.

    Networks of a seed have the same initial weights and order of items, so the change of a seed is
    that between two networks which differ in the data alone.  Whole batches from the checkpoint
    leave nothing to chance: there S is 1.
    """
    recipe = setting.retraining[target]
    random = target == "scratch" or recipe.batch_size is not None
    outcomes = {"loss": (setting.loss, setting.asked().data)}
    found = retrain_weighted(
        model, setting.loss, items.data, weights(labels(items), shifted, sizes, added=added),
        recipe, outcomes=outcomes, init=target, seeds=range(seed, seed + (SEEDS if random else 1)),
        networks_per_stack=setting.stack, device=device,
    )["loss"]  # fmt: skip
    changes = found[1:] - found[0]
    return changes.reshape(len(shifted), len(sizes), *changes.shape[1:])
