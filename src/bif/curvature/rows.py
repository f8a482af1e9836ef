"""Rows that pass through a model together, as many as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

_Found = TypeVar("_Found")


class RowsTogether:
    """A number of rows of a pass that falls by halves where memory is short.

    Args:
        most: Rows of a pass to begin with.

    Attributes:
        most: Rows of a pass.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def map(self, function: Callable[[slice], _Found], count: int) -> Iterator[_Found]:
        """Yield `function` of slices of `count` rows, one after another.

        Raises:
            torch.OutOfMemoryError: Not even a single row fits.
        """
        start = 0
        while start < count:
            size, found = min(self.most, count - start), None
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
