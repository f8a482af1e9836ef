"""Linearise an observable in its proxy at w*, and prepare the items for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bif.problem.items import Items, batch_leaves, map_batch, to_device
from bif.problem.losses import at_least_float32
from bif.problem.proxy import Proxy
from bif.sampling.observe_tokens import ByToken
from bif.sampling.oracles import Oracle
from bif.types import Batch, ItemLoss, Params

Figures = dict[str, Tensor]


@dataclass(frozen=True)
class Linearised:
    """Evaluate `phi(w*) + slope · (m(w) - m(w*))` of `CenteredItems`, `[B, 1]` or `[B, T]`."""

    proxy: Proxy

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        center, slope, value = batch["center"], batch["slope"], batch["value"]
        now = at_least_float32(self.proxy.function(model, batch["items"]))
        now = now.reshape(len(center), -1)
        width = now.shape[1]  # texts may be cut to the longest of a batch
        moved = slope[:, :width] * (now - center[:, :width])
        one_each = value.shape[1] == 1
        return value + moved.sum(dim=1, keepdim=True) if one_each else value[:, :width] + moved


class CenteredItems(Items):
    """Items whose batches hold phi, m and slope at w* beside the items.

    Args:
        items: The items, unchanged.
        figures: `value` `[N, 1]` or `[N, T]`, `center` and `slope` `[N, K]`, on the items' device.
    """

    def __init__(self, items: Items, figures: Figures) -> None:
        self.__dict__.update(items.__dict__)
        self._items, self._figures = items, figures

    def take(self, indices: Tensor) -> Batch:
        return self._joined(self._items.take(indices), indices)

    def chunks(self, size: int) -> Iterator[tuple[slice, Batch]]:
        for part, batch in self._items.chunks(size):
            yield part, self._joined(batch, part)

    def batches(self, size: int) -> Iterator[tuple[slice | Tensor, Batch]]:
        for where, batch in self._items.batches(size):
            yield where, self._joined(batch, where)

    def in_order(self, values: Tensor) -> Tensor:
        return self._items.in_order(values)

    def first(self, count: int) -> Batch:
        return self._joined(self._items.first(count), slice(count))

    def to(self, device: torch.device) -> CenteredItems:
        figures = to_device(self._figures, device)
        return CenteredItems(self._items.to(device), figures)

    def _joined(self, batch: Batch, where: slice | Tensor) -> Batch:
        def of_items(leaf: Tensor) -> Tensor:
            return leaf[where.to(leaf.device) if isinstance(where, Tensor) else where]

        return {"items": batch, **map_batch(of_items, self._figures)}


def centered(
    items: Items,
    function: ItemLoss,
    proxy: Proxy,
    *,
    oracle: Oracle,
    center: Params,
    chunk_size: int,
) -> CenteredItems:
    """Return the items with the value of an observable, its proxy and their slope at w*.

    Args:
        items: On the oracle's device.
        function: The observable.
        proxy: The observable's proxy.
        oracle: Source of values.
        center: w*, leaves `[1, *shape]`.
        chunk_size: Items a forward pass.
    """
    functions = {"value": function, "center": proxy.function, "slope": proxy.slope}
    figures: Figures = {}
    with torch.compiler.set_stance("force_eager"):  # evaluated once: nothing to compile
        for name, one in functions.items():
            for where, batch in items.batches(chunk_size):
                flat = oracle.values(ByToken(one), center, batch)[0]
                rows = flat.reshape(len(next(iter(batch_leaves(batch).values()))), -1)
                if name not in figures:  # the longest texts come first
                    figures[name] = rows.new_zeros(len(items), rows.shape[1])
                figures[name][where, : rows.shape[1]] = rows
    return CenteredItems(items, figures)
