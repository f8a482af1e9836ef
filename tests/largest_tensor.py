"""Watch how large the tensors are that operations make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bif import LossTraces


@contextmanager
def largest_tensor(given: LossTraces) -> Iterator[list[int]]:
    """The number of elements of the largest tensor that any operation makes, views aside."""
    seen = [0]
    own = {x.untyped_storage().data_ptr() for b in given.blocks for x in (b.train, b.query)}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else [result]:
                if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in own:
                    seen[0] = max(seen[0], x.numel())
            return result

    with Watch():
        yield seen
