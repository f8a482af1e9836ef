"""Retraining small networks on all items with other weights, many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bif.evaluate.retrain import MatmulPrecision, Recipe, Retrainer, check_seeds
from bif.evaluate.training import Network, num_rows
from bif.types import Batch, ItemLoss, Target


def retrain_weighted(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    weights: Any,
    recipe: Recipe,
    *,
    outcomes: Mapping[str, tuple[ItemLoss, Batch]],
    init: Target = "scratch",
    seeds: Sequence[int],
    networks_per_stack: int = 64,
    device: torch.device | str | None = None,
    precision: MatmulPrecision = "float32",
) -> dict[str, np.ndarray]:
    """Train a network with every row of weights and every seed and return the outcomes of queries.

    Network (w, s) minimises `mean_{i in batch} weights[w, i]·l_i + (weight_decay/2)·|w|²`. All rows
    of a seed start from the same weights and see the items in the same order, so that differences
    between rows are paired. Weights of 1 give the network of `retrain` with a full mask.

    The mean is over the number of items, not over their weights: rows of another sum change the
    share of the weight decay. Items of weight 0 are visited all the same, so a mini-batch may weigh
    less than another.

    Args:
        model: As in `retrain`.
        loss: As in `retrain`.
        items: As in `retrain`.
        weights: Of the items, [W, N], 1 for an item as it is. Negative ones push its loss up, which
            may diverge.
        recipe: As in `retrain`.
        outcomes: As in `retrain`.
        init: As in `retrain`.
        seeds: As in `retrain`.
        networks_per_stack: As in `retrain`.
        device: As in `retrain`.
        precision: As in `retrain`.

    Returns:
        Name -> outcomes, float64 [W, S, Q].

    Raises:
        ValueError: If an argument does not fit, before any training.
        FloatingPointError: If a network diverges; names row and seed.
    """
    weights = _check_weights(weights, num_rows(items, "items"))
    check_seeds(seeds, recipe, init)
    retrainer = Retrainer(model, loss, items, recipe, init=init, device=device, precision=precision)
    every = np.ones(weights.shape[1], dtype=bool)
    retrainer.check(every)
    networks = [Network(every, seed, w, row) for w, row in enumerate(weights) for seed in seeds]
    found = retrainer.in_stacks(networks, outcomes, networks_per_stack)
    shape = (len(weights), len(seeds), -1)
    return {name: values.reshape(shape) for name, values in found.items()}


def _check_weights(weights: Any, num_items: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != num_items or not len(weights):
        raise ValueError(
            f"weights have shape {weights.shape}; expected [W, {num_items}], one column per item."
        )
    bad = np.argwhere(~np.isfinite(weights))
    if len(bad):
        row, item = bad[0].tolist()
        raise ValueError(
            f"row {row} of the weights gives item {item} the weight {weights[row, item]}; expected "
            "finite numbers, 1 for an item as it is and 0 for one that is left out."
        )
    return weights
