"""Retraining small networks on subsets of the items, many at once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bif.evaluate.training import (
    Init,
    Recipe,
    StackTrainer,
    check_per_item,
    num_rows,
    to_device,
    values_of_stack,
)
from bif.functional import ItemFunction
from bif.types import Batch, ItemLoss

__all__ = ["Recipe", "retrain", "train"]


def retrain(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    masks: Any,
    recipe: Recipe,
    *,
    outcomes: Mapping[str, tuple[ItemLoss, Batch]],
    init: Init = "scratch",
    seeds: Sequence[int],
    networks_per_stack: int = 64,
    device: torch.device | str | None = None,
) -> dict[str, np.ndarray]:
    """Trains a network on every subset with every seed and returns the outcomes of queries.

    The model runs in evaluation mode: dropout is off. "scratch" calls `reset_parameters` of
    every submodule, children before parents, so a model with an initialisation of its own has
    to define that method. Parameters that do not require gradients keep the model's values.

    Args:
        model: The architecture and, for "checkpoint", the initial weights. Left as it is.
        loss: `loss(model, batch)` -> [B], or [B, T], which is summed over tokens.
        items: Training items, a tensor or a tuple, list or dict of tensors with leading axis N.
        masks: Subsets, bool [M, N], all of one size.
        recipe: How to train.
        outcomes: Name -> (function(model, batch) -> [Q] or [Q, T], batch of queries).
        init: "scratch" or "checkpoint".
        seeds: Seeds S of initial weights and of the order of mini-batches. Training from the
            checkpoint on whole subsets has no randomness and takes one seed.
        networks_per_stack: Number of networks trained at once: memory against speed.
        device: Where to train; by default where the model's first parameter is.

    Returns:
        Name -> outcomes, float64 [S, M, Q].

    Raises:
        ValueError: If an argument does not fit, before any training.
        FloatingPointError: If a network diverges; names subset and seed.
    """
    masks = _check_masks(masks, items)
    if not outcomes:
        raise ValueError("outcomes are empty; expected name -> (function, batch of queries).")
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {list(seeds)}; expected at least one, all different.")
    if init == "checkpoint" and recipe.batch_size is None and len(seeds) > 1:
        raise ValueError(
            f"{len(seeds)} seeds, but training from the checkpoint on whole subsets has no "
            "randomness and they would all agree. Pass one seed, or set batch_size."
        )
    if networks_per_stack < 1:
        raise ValueError(f"networks_per_stack is {networks_per_stack}; expected at least 1.")
    trainer = StackTrainer(model, loss, items, recipe, init, device)
    trainer.check(masks[0])
    queries = {
        name: (ItemFunction(trainer.model, function), to_device(batch, trainer.device))
        for name, (function, batch) in outcomes.items()
    }
    results: dict[str, np.ndarray] = {}
    for name, (function, batch) in queries.items():
        num_queries = num_rows(batch, f"the queries of outcome {name!r}")
        with torch.no_grad():
            check_per_item(function.raw(batch), num_queries, f"outcome {name!r}")
        results[name] = np.empty((len(seeds), len(masks), num_queries))

    networks = list(itertools.product(range(len(seeds)), range(len(masks))))
    for start in range(0, len(networks), networks_per_stack):
        stack = networks[start : start + networks_per_stack]
        leaves = trainer.fit([(masks[m], seeds[s]) for s, m in stack])
        values = {name: values_of_stack(fn, leaves, batch) for name, (fn, batch) in queries.items()}
        _require_finite(leaves, values, [(m, seeds[s]) for s, m in stack], recipe)
        for name, value_GQ in values.items():
            for (s, m), value in zip(stack, value_GQ.double().cpu().numpy(), strict=True):
                results[name][s, m] = value
    return results


def train(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    recipe: Recipe,
    *,
    seed: int,
    init: Init = "scratch",
    device: torch.device | str | None = None,
) -> nn.Module:
    """Trains a copy of the model on all items: the network of `retrain` with a full mask.

    Args:
        model: As in `retrain`.
        loss: As in `retrain`.
        items: As in `retrain`.
        recipe: As in `retrain`.
        seed: Seed of the initial weights and of the order of mini-batches.
        init: As in `retrain`.
        device: As in `retrain`.

    Returns:
        The trained copy, on `device`, in the mode (training or evaluation) of `model`.

    Raises:
        ValueError: If an argument does not fit, before any training.
        FloatingPointError: If the network diverges.
    """
    trainer = StackTrainer(model, loss, items, recipe, init, device)
    mask = np.ones(num_rows(items, "items"), dtype=bool)
    trainer.check(mask)
    leaves = trainer.fit([(mask, seed)])
    _require_finite(leaves, {}, [(0, seed)], recipe)
    trained = copy.deepcopy(model).to(trainer.device)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(leaves[name][0])
    return trained


def _check_masks(masks: Any, items: Batch) -> np.ndarray:
    masks = np.asarray(masks)
    num_items = num_rows(items, "items")
    if masks.ndim != 2 or masks.dtype != np.bool_ or masks.shape[1] != num_items or not len(masks):
        raise ValueError(
            f"masks have shape {masks.shape} and dtype {masks.dtype}; expected bool "
            f"[M, {num_items}], one column per item."
        )
    sizes = masks.sum(axis=1)
    if sizes.min() != sizes.max() or sizes.min() == 0:
        raise ValueError(
            f"subsets hold between {sizes.min()} and {sizes.max()} items; expected one size "
            "above 0. Retrain each size in a call of its own."
        )
    return masks


def _require_finite(
    leaves: dict[str, Tensor],
    values: dict[str, Tensor],
    networks: list[tuple[int, int]],
    recipe: Recipe,
) -> None:
    finite = torch.stack(
        [
            torch.isfinite(t.reshape(len(t), -1)).all(dim=1)
            for t in (*leaves.values(), *values.values())
        ]
    )
    diverged = [
        net for net, fine in zip(networks, finite.all(dim=0).tolist(), strict=True) if not fine
    ]
    if diverged:
        subset, seed = diverged[0]
        raise FloatingPointError(
            f"{len(diverged)} network(s) diverged, the first with subset {subset} and seed {seed}: "
            f"weights or outcomes are not finite after {recipe.steps} steps at learning_rate "
            f"{recipe.learning_rate}. Lower learning_rate or momentum."
        )
