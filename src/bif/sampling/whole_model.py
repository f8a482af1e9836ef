"""The one shard of a model that a device holds; `bif.mesh.shards` has those of larger ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bif.types import Batch, T


class WholeModel:
    """One process holds all weights: nothing is split, summed or gathered."""

    count = 1
    index = 0

    def local(self, leaf: Tensor) -> Tensor:
        return leaf

    def place(
        self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | None
    ) -> Callable[[Callable[[Batch], Tensor], Batch], Tensor]:
        if device is not None:
            model.to(device)
        return lambda function, batch: function(batch)

    def view(self, parameter: Tensor) -> Tensor:
        return parameter

    def rows(self, count: int) -> range:
        return range(count)

    def joined(self, values: Tensor, count: int) -> Tensor:
        return values

    def total(self, x: Tensor) -> Tensor:
        return x

    def gather(self, value: T) -> list[T]:
        return [value]

    def of_first(self, value: T) -> T:
        return value


WHOLE = WholeModel()
"""What everything takes that is given no shards."""
