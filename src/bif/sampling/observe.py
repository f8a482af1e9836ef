"""Evaluate items at a draw by forward passes, in which a run spends most of its time."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.problem.items import Items
from bif.sampling.oracles import Oracle
from bif.types import ItemLoss, Params


def observe(
    oracle: Oracle, function: ItemLoss, params: Params, items: Items, *, chunk_size: int
) -> Tensor:
    """Return `function` of every item at every chain's weights.

    Args:
        oracle: Source of values.
        function: A per-item loss or observable.
        params: Leaves `[C, *shape]`.
        items: The items, on the chains' device.
        chunk_size: Items per forward pass.

    Returns:
        Values `[C, N]`, float32 or wider.
    """
    parts = [oracle.values(function, params, batch) for _, batch in items.batches(chunk_size)]
    return items.in_order(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
