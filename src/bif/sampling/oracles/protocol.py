"""What every oracle answers, and what those share that copy the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from bif.problem.functional import ItemFunction
from bif.problem.items import batch_leaves
from bif.sampling.oracles.precision import Precision
from bif.types import Batch, ItemLoss, Params


class Oracle(Protocol):
    """Item values and weighted-sum gradients for a block of chains.

    `per_chain` says whether the batch has a chain axis of its own, `[C, B, …]`, or all chains see
    the same items, `[B, …]`.

    Attributes:
        model: The module whose own weights stand wherever `params` names none.
    """

    model: nn.Module

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        """`function` of every item, `[C, B]`, at the exact precision; batch `[B, …]`."""
        ...

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        """Gradient of `Σ_b weights[b] * loss_b`, leaves `[C, *shape]`, and the losses `[C, B]`."""
        ...


def autocast(batch: Batch, precision: Precision) -> AbstractContextManager[object]:
    """Autocast on the batch's device, where the precision asks for it."""
    if precision != "bfloat16":
        return nullcontext()
    device = next(iter(batch_leaves(batch).values())).device.type
    # The cache would keep casts of one step's weights alive into the next.
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


def of_one_chain(
    model: nn.Module, function: ItemLoss, precision: Precision
) -> Callable[[Params, Batch], Tensor]:
    """Values `[B]` of a function at the weights of one chain, cast inside: it can be compiled."""
    of_items = ItemFunction(model, function)

    def one_chain(params: Params, batch: Batch) -> Tensor:
        with autocast(batch, precision):
            return of_items.at(params, batch)

    return one_chain
