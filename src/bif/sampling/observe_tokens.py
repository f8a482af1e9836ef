"""Evaluate tokens at a draw, each for a column of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bif.problem.columns import mask_of
from bif.problem.items import Items, batch_leaves
from bif.sampling.oracles import Oracle
from bif.types import Batch, ItemLoss, Params


@dataclass(frozen=True)
class ByToken:
    """Return a token loss `[B, T]` as that of `B·T` items, `[B·T]`, so that nobody sums it."""

    function: ItemLoss

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.function(model, batch).flatten()


class TokenReader:
    """Read the values of the tokens that have a column.

    Args:
        items: Items with a `token_mask`, on the device of the chains.
        shift: Tokens at the start of a text that the function has no value for: 1 where each value
            is of the next token, else 0.
    """

    def __init__(self, items: Items, *, shift: int) -> None:
        self._items, self._shift = items, shift
        self._plans: dict[int, tuple[list[tuple[Tensor, Tensor, int]], Tensor]] = {}

    def __call__(
        self, oracle: Oracle, function: ItemLoss, params: Params, *, chunk_size: int
    ) -> Tensor:
        """Return `function` of every token at every chain's weights, `[C, n]`.

        Args:
            oracle: Source of values.
            function: A loss or observable that returns `[B, T]`.
            params: Leaves `[C, *shape]`.
            chunk_size: Items per forward pass.

        Raises:
            ValueError: A batch is narrower than the mask of its items.
        """
        by_token, parts = ByToken(function), []
        plan, order = self._plan(chunk_size)
        batches = self._items.batches(chunk_size)
        for (row, token, last), (_, batch) in zip(plan, batches, strict=True):
            values = oracle.values(by_token, params, batch)
            width = values.shape[1] // len(next(iter(batch_leaves(batch).values())))
            if last - self._shift >= width:
                raise ValueError(
                    f"token_mask holds token {last}, but the batch has values up to token "
                    f"{width + self._shift - 1}: a mask may hold tokens with a loss only."
                )
            parts.append(values.index_select(1, row * width + (token - self._shift)))
        return torch.cat(parts, dim=1).index_select(1, order)

    def _plan(self, chunk_size: int) -> tuple[list[tuple[Tensor, Tensor, int]], Tensor]:
        """Return rows and tokens to read from each batch, and the order of the columns.

        Made once: at a draw nothing waits for the device.
        """
        if chunk_size not in self._plans:
            mask, places, parts = mask_of(self._items), [], []
            numbers = np.cumsum(mask).reshape(mask.shape) - 1  # of the column, where there is one
            for where, batch in self._items.batches(chunk_size):
                device = next(iter(batch_leaves(batch).values())).device
                rows = where if isinstance(where, slice) else where.cpu().numpy()
                row, token = np.nonzero(mask[rows])
                parts.append(numbers[rows][row, token])
                last = int(token.max()) if len(token) else -1
                places.append((*(torch.from_numpy(x).to(device) for x in (row, token)), last))
            order = torch.from_numpy(np.argsort(np.concatenate(parts))).to(places[0][0].device)
            self._plans[chunk_size] = places, order
        return self._plans[chunk_size]
