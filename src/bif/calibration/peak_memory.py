"""Count the largest number of bytes that tensors hold at a time, operation by operation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Count the storages made by the operations that run inside, on any device.

    Workspaces of kernels and storages from before do not count.

    Attributes:
        now: Bytes of storages that are alive.
        peak: The most there ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = {x.untyped_storage() for x in tree_leaves((args, kwargs)) if _has_storage(x)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if _has_storage(x) and x.untyped_storage() not in before:
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def _has_storage(value: object) -> bool:
    """Return whether it is a dense tensor; the parts of a sparse one come on their own."""
    return isinstance(value, Tensor) and value.layout == torch.strided
