"""Sequences: items of tokens, evaluated by length and padded no further than each batch needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bif.problem.items import Items, map_batch
from bif.types import Batch

_LENGTH_MULTIPLE = 8
"""Tokens to a multiple of which batches are rounded up: matrix units want it, and fewer lengths
compile."""


class Sequences(Items):
    """Items of different lengths, one row each, padded on the right.

    `batches` brings the longest first, so that neighbours share a length and what does not fit in
    memory shows at once.  Every batch is cut to its longest item, rounded up to a multiple of 8;
    this is decided from lengths known on the host, so no device is waited for.  The order of
    results stays the items' own.

    Args:
        data: A dict of tensors; those `[N, T]`, such as `input_ids` `[N, T]`, are cut.
        lengths: Tokens of each item, N numbers from 1 to T.
        ids: As for `Items`.
        labels: As for `Items`.
        about: As for `Items`.
        tokens: As for `Items`.
        token_mask: As for `Items`.

    Raises:
        TypeError, ValueError: As for `Items`; lengths out of range.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor],
        *,
        lengths: Sequence[int],
        ids: Sequence[str] | None = None,
        labels: Sequence[Any] | Tensor | None = None,
        about: Mapping[str, Sequence[str]] | None = None,
        tokens: Sequence[Sequence[str]] | None = None,
        token_mask: Tensor | None = None,
    ) -> None:
        super().__init__(
            dict(data), ids=ids, labels=labels, about=about, tokens=tokens, token_mask=token_mask
        )
        self.max_length = data["input_ids"].shape[1]
        self.lengths = torch.tensor(list(lengths), dtype=torch.long)
        if len(self.lengths) != len(self) or not (
            1 <= int(self.lengths.min()) and int(self.lengths.max()) <= self.max_length
        ):
            raise ValueError(
                f"lengths must be {len(self)} numbers from 1 to {self.max_length}, one an "
                f"item; got {len(self.lengths)}. Count the tokens of each row."
            )
        order = torch.argsort(self.lengths, descending=True, stable=True)
        self._lengths_by_length = self.lengths[order].tolist()
        self._length_order, self._inverse_order = order, torch.argsort(order)

    def take(self, indices: Tensor) -> Batch:
        """Return the items at `indices` `[B]` or `[C, B]`; cut where these are on the host."""
        rows = map_batch(lambda leaf: leaf[indices.to(leaf.device)], self.data)
        if indices.device.type != "cpu":
            return rows
        return self._trim(rows, int(self.lengths[indices].max()), axis=indices.dim())

    def chunks(self, size: int) -> Iterator[tuple[slice, Batch]]:
        """Yield all items in their own order, at most `size` at a time, each chunk cut."""
        for part, batch in super().chunks(size):
            yield part, self._trim(batch, int(self.lengths[part].max()))

    def batches(self, size: int) -> Iterator[tuple[slice | Tensor, Batch]]:
        """Yield all items, the longest first, at most `size` at a time."""
        for start in range(0, len(self), size):
            positions = self._length_order[start : start + size]
            rows = map_batch(lambda leaf, at=positions: leaf[at], self.data)
            yield positions, self._trim(rows, self._lengths_by_length[start])

    def in_order(self, values: Tensor) -> Tensor:
        """Return values `[C, N]`, given in the order of `batches`, in the items' own order."""
        return values.index_select(1, self._inverse_order.to(values.device))

    def first(self, count: int) -> Batch:
        """Return the first `count` items, uncut: no other items take more memory."""
        return map_batch(lambda leaf: leaf[:count], self.data)

    def to(self, device: torch.device) -> Sequences:
        """Return the same items with tensors on `device`."""
        moved = super().to(device)
        assert isinstance(moved, Sequences)
        moved._length_order, moved._inverse_order = (
            self._length_order.to(device),
            self._inverse_order.to(device),
        )
        return moved

    def _trim(self, rows: Mapping[str, Tensor], longest: int, *, axis: int = 1) -> Batch:
        length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self.max_length)
        return {
            name: leaf.narrow(axis, 0, length) if self.data[name].dim() == 2 else leaf
            for name, leaf in rows.items()
        }
