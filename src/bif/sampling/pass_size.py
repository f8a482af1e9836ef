"""Halve the items of a pass where the device has no memory left for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


class PassSize:
    """The items of a pass through the model, fewer from the first time on that memory is short.

    Other processes on the device, or fragments of its memory, may leave less than was measured at
    the start.  Values are those of larger passes to rounding.

    Args:
        size: Items of a pass at first.
        halves: Whether passes get smaller; not those that several processes make together, of
            which some have memory left.

    Attributes:
        size: Items of a pass now.
        halved: Whether memory was short.
    """

    def __init__(self, size: int, *, halves: bool = True) -> None:
        self.size = self._first = size
        self._least = 1 if halves else size

    @property
    def halved(self) -> bool:
        """Return whether memory was short."""
        return self.size < self._first

    def run(self, passes: Callable[[int], _T]) -> _T:
        """Return what passes of so many items make, once they fit.

        Args:
            passes: Function of the items of a pass; starts anew where it is called again.

        Raises:
            torch.OutOfMemoryError: Not even the smallest passes fit.
        """
        while True:
            try:
                return passes(self.size)
            except torch.OutOfMemoryError:
                if self.size <= self._least:
                    raise
            # Behind the handler, whose error holds the tensors of the pass.
            self.size = -(-self.size // 2)
            torch.cuda.empty_cache()

    def in_words(self, what: str) -> str:
        """Return the note of a run whose memory was short."""
        return (
            f"the device had no memory left for {what} of {self._first} items: from then on they "
            f"had {self.size}, which changes values by rounding only"
        )
