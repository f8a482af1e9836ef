"""Rows that pass through a model together, as many as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_Found = TypeVar("_Found")


class RowsTogether:
    """A number of rows of a pass that falls by halves where memory is short.

    Args:
        most: Rows of a pass to begin with.
        few_sizes: Whether passes have 1, 2, 4, … rows alone, where each size costs by itself; a
            slice may then end behind the last row, as `padded` allows for.

    Attributes:
        most: Rows of a pass.
    """

    def __init__(self, most: int, *, few_sizes: bool = False) -> None:
        self.most, self._few_sizes = most, few_sizes

    def map(self, function: Callable[[slice], _Found], count: int) -> Iterator[_Found]:
        """Yield `function` of slices of `count` rows, one after another.

        Raises:
            torch.OutOfMemoryError: Not even a single row fits.
        """
        start = 0
        while start < count:
            size, found = min(self.most, count - start), None
            if self._few_sizes:
                size = _power_of_two(size, self.most)
            try:
                found = function(slice(start, start + size))
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise torch.OutOfMemoryError(
                        "a single row does not fit into memory beside the items of its pass: give "
                        f"a smaller chunk_size, or use a larger device. Torch says: {error}"
                    ) from error
            if found is None:  # after the handler, which holds what the pass had made
                self.most = size // 2
                torch.cuda.empty_cache()
                continue
            yield found
            start += size


def padded(rows: Tensor, part: slice) -> Tensor:
    """Return the rows of a slice, and zeros for those that it has behind the last one."""
    found = rows[part]
    missing = part.stop - part.start - len(found)
    return F.pad(found, (0, 0) * (rows.dim() - 1) + (0, missing)) if missing else found


def _power_of_two(count: int, most: int) -> int:
    """Return the next larger one of a count if that is at most a third more, or the next smaller.

    The larger one is at most `most`.
    """
    below = 1 << (count.bit_length() - 1)
    above = 2 * below
    return above if below < count and 3 * above <= 4 * count and above <= most else below
