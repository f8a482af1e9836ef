"""Retraining small networks on subsets of the items, many at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bif.evaluate.recipe import Recipe
from bif.evaluate.training import (
    Network,
    StackTrainer,
    check_per_item,
    num_rows,
    values_of_stack,
)
from bif.problem.checkpoints import Checkpoint
from bif.problem.functional import ItemFunction
from bif.problem.items import to_device
from bif.problem.literals import require_literal
from bif.problem.weights import copy_module, widen_
from bif.sampling.oracles.precision import matmul_precision
from bif.types import Batch, ItemLoss, Target

__all__ = ["Recipe", "retrain", "train", "train_with_checkpoints"]

MatmulPrecision = Literal["float32", "tf32"]
Queries = Mapping[str, tuple[ItemLoss, Sequence[Batch]]]
"""Functions `(model, batch) -> [Q_b] or [Q_b, T]` and their batches, by the outcome's name."""


def retrain(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    masks: Any,
    recipe: Recipe,
    *,
    outcomes: Mapping[str, tuple[ItemLoss, Batch]],
    init: Target = "scratch",
    seeds: Sequence[int],
    networks_per_stack: int = 64,
    device: torch.device | str | None = None,
    precision: MatmulPrecision = "float32",
) -> dict[str, np.ndarray]:
    """Train a network on every subset with every seed and return the outcomes of queries.

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
        networks_per_stack: Number of networks trained at once: memory against speed. Networks
            one at a time do without vmap, which not all models take.
        device: Where to train; by default where the model's first parameter is.
        precision: Precision of matrix products: "float32", or "tf32" on a GPU that has it.

    Returns:
        Name -> outcomes, float64 [S, M, Q].

    Raises:
        ValueError: If an argument does not fit, before any training.
        FloatingPointError: If a network diverges; names subset and seed.
    """
    masks = _check_masks(masks, items)
    check_seeds(seeds, recipe, init)
    retrainer = Retrainer(model, loss, items, recipe, init=init, device=device, precision=precision)
    retrainer.check(masks[0])
    networks = [Network(mask, seed, m) for seed in seeds for m, mask in enumerate(masks)]
    found = retrainer.in_stacks(networks, outcomes, networks_per_stack)
    shape = (len(seeds), len(masks), -1)
    return {name: values.reshape(shape) for name, values in found.items()}


class Retrainer:
    """A trainer of stacks of networks that returns outcomes of queries.

    Args: as for `retrain`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ItemLoss,
        items: Batch,
        recipe: Recipe,
        *,
        init: Target,
        device: torch.device | str | None,
        precision: MatmulPrecision,
    ) -> None:
        require_literal("precision", precision, MatmulPrecision)
        self._trainer = StackTrainer(model, loss, items, recipe, init, device)
        self._recipe = recipe
        self._precision: MatmulPrecision = precision
        self.device = self._trainer.device

    def check(self, mask: np.ndarray) -> None:
        """Call the loss once on items of a subset and say what is wrong with it."""
        self._trainer.check(mask)

    def check_outcomes(self, queries: Queries) -> dict[str, int]:
        """Call every function once and return its number of queries."""
        for name, (function, batches) in queries.items():
            for batch in batches:
                num_queries = num_rows(batch, f"the queries of outcome {name!r}")
                with torch.no_grad():
                    values = self._function(function).raw(to_device(batch, self.device))
                check_per_item(values, num_queries, f"outcome {name!r}")
        return {n: sum(num_rows(b, n) for b in batches) for n, (_, batches) in queries.items()}

    def in_stacks(
        self,
        networks: Sequence[Network],
        outcomes: Mapping[str, tuple[ItemLoss, Batch]],
        num_at_once: int,
    ) -> dict[str, np.ndarray]:
        """Train networks, so many at once, and return name -> outcomes, float64 [G, Q].

        Raises:
            ValueError: If an argument does not fit, before any training.
            FloatingPointError: If a network diverges; names it.
        """
        if not outcomes:
            raise ValueError("outcomes are empty; expected name -> (function, batch of queries).")
        if num_at_once < 1:
            raise ValueError(f"networks_per_stack is {num_at_once}; expected at least 1.")
        queries = {name: (function, [batch]) for name, (function, batch) in outcomes.items()}
        self.check_outcomes(queries)
        parts = [
            self.outcomes(networks[start : start + num_at_once], queries)
            for start in range(0, len(networks), num_at_once)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in queries}

    def outcomes(self, networks: Sequence[Network], queries: Queries) -> dict[str, np.ndarray]:
        """Train networks as one stack and return name -> outcomes, float64 [G, Q].

        Raises:
            FloatingPointError: If a network diverges; names subset and seed.
        """
        with matmul_precision(self._precision):
            leaves = self._trainer.fit(networks)
            values = {
                name: torch.cat(
                    [
                        values_of_stack(self._function(fn), leaves, to_device(b, self.device))
                        for b in batches
                    ],
                    dim=1,
                )
                for name, (fn, batches) in queries.items()
            }
        _require_finite(leaves, values, networks, self._recipe)
        return {name: value.double().cpu().numpy() for name, value in values.items()}

    def _function(self, function: ItemLoss) -> ItemFunction:
        return ItemFunction(self._trainer.model, function)


def train(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    recipe: Recipe,
    *,
    seed: int,
    init: Target = "scratch",
    device: torch.device | str | None = None,
) -> nn.Module:
    """Train a copy of the model on all items: the network of `retrain` with a full mask.

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
    return _train(model, loss, items, recipe, seed, init, device, kept=())[0]


def train_with_checkpoints(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    recipe: Recipe,
    *,
    at: Sequence[int] | int,
    seed: int,
    init: Target = "scratch",
    device: torch.device | str | None = None,
) -> tuple[nn.Module, list[Checkpoint]]:
    """Train as `train` does, and keep the weights at some steps.

    Each checkpoint stands for the updates nearest to it: its learning rate is their mean, divided
    by `1 - momentum`.

    Args:
        model: As in `retrain`.
        loss: As in `retrain`.
        items: As in `retrain`.
        recipe: As in `retrain`.
        at: Numbers of updates after which weights are kept, from 0 to `recipe.steps - 1`, rising;
            or how many checkpoints, in the middle of equal stretches of steps.
        seed: As in `train`.
        init: As in `retrain`.
        device: As in `retrain`.

    Returns:
        The trained copy, the same as `train` returns, and the checkpoints in order, with weights
        on `device`.

    Raises:
        ValueError: If an argument does not fit, before any training.
        FloatingPointError: If the network diverges.
    """
    steps = _kept_steps(at, recipe.steps)
    trained, weights = _train(model, loss, items, recipe, seed, init, device, kept=steps)
    inner = [(a + b + 1) // 2 for a, b in itertools.pairwise(steps)]
    edges = itertools.pairwise([0, *inner, recipe.steps])
    checkpoints = []
    for (first, last), leaves in zip(edges, weights, strict=True):
        rates = [recipe.rate_at(step) for step in range(first, last)]
        mean = float(np.mean(rates)) / (1 - recipe.momentum)
        checkpoints.append(Checkpoint(leaves, mean, last - first))
    return trained, checkpoints


def _train(
    model: nn.Module,
    loss: ItemLoss,
    items: Batch,
    recipe: Recipe,
    seed: int,
    init: Target,
    device: torch.device | str | None,
    *,
    kept: Sequence[int],
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Return the trained copy, and the weights after some numbers of updates."""
    trainer = StackTrainer(model, loss, items, recipe, init, device)
    network = Network(np.ones(num_rows(items, "items"), dtype=bool), seed)
    trainer.check(network.mask)
    leaves: dict[str, Tensor] = {}
    weights = []
    with matmul_precision("float32"):
        for step, leaves in enumerate(trainer.path([network])):
            if step in kept:
                weights.append({name: leaf[0].detach().clone() for name, leaf in leaves.items()})
    _require_finite(leaves, {}, [network], recipe)
    trained = widen_(copy_module(model)).to(trainer.device)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(leaves[name][0])
    return trained, weights


def _kept_steps(at: Sequence[int] | int, steps: int) -> list[int]:
    """Return the numbers of updates, checked; a count means the middles of equal stretches."""
    if isinstance(at, int):
        if not 1 <= at <= steps:
            raise ValueError(f"at is {at} checkpoints; expected 1 to {steps}, the recipe's steps.")
        return [(2 * k + 1) * steps // (2 * at) for k in range(at)]
    rising = all(a < b for a, b in itertools.pairwise(at))
    if not len(at) or not rising or not 0 <= at[0] <= at[-1] < steps:
        raise ValueError(
            f"at is {list(at)}; expected numbers of updates from 0 to {steps - 1}, rising, or how "
            "many checkpoints to keep."
        )
    return list(at)


def check_seeds(seeds: Sequence[int], recipe: Recipe, init: Target) -> None:
    """Raise ValueError unless there are seeds, all different, and several can differ."""
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {list(seeds)}; expected at least one, all different.")
    if init == "checkpoint" and recipe.batch_size is None and len(seeds) > 1:
        raise ValueError(
            f"{len(seeds)} seeds, but training from the checkpoint on whole subsets has no "
            "randomness and they would all agree. Pass one seed, or set batch_size."
        )


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
    networks: Sequence[Network],
    recipe: Recipe,
) -> None:
    finite = torch.stack(
        [
            torch.isfinite(t.reshape(len(t), -1)).all(dim=1)
            for t in (*leaves.values(), *values.values())
        ]
    )
    fine = finite.all(dim=0).tolist()
    diverged = [net for net, is_fine in zip(networks, fine, strict=True) if not is_fine]
    if diverged:
        raise FloatingPointError(
            f"{len(diverged)} network(s) diverged, the first with {diverged[0]}: weights or "
            f"outcomes are not finite after {recipe.steps} steps at learning_rate "
            f"{recipe.learning_rate}. Lower learning_rate or momentum."
        )
