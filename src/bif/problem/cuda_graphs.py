"""CUDA graphs: a pass over a module is recorded once and then replayed without its host code.

A small model's pass is hundreds of kernels of a few microseconds, and the host is slower to launch
them than the device is to run them.  Weights that never change their address, as a live module's
do not, are read where they are; others are inputs like the items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from bif.problem.items import batch_leaves, map_batch, shape_of
from bif.types import Batch

_EAGER_CALLS = 2
"""Of a shape before it is recorded: what comes once or twice does not pay."""
_SHAPES = 16
"""That a function keeps graphs of: each holds its intermediate values."""
_MOST_BYTES = 2**30
"""Of the inputs by default: a pass over more items keeps a device busy by itself."""
_CLOSE, _NEGLIGIBLE = 1e-2, 1e-5
"""Relative distance at which a replay is another pass than the eager one, bfloat16 allowed for; and
share of all values together below which one of them may be rounding alone."""

_log = logging.getLogger(__name__)


class SharedMemory:
    """Where graphs that never run at the same time keep their inputs and intermediate values.

    They are recorded on one stream: what a stream frees is free for that stream alone.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, torch.cuda.Stream] | None = None
        self._inputs: dict[Hashable, Tensor] = {}
        self._newest: list[Hashable] = []

    def copy_of(self, batch: Batch) -> Batch:
        """Return a copy, whose leaves are those of earlier copies that have their place and shape.

        Only the last copy has its values.
        """
        leaves, self._newest = iter(batch_leaves(batch).items()), []

        def copied(leaf: Tensor) -> Tensor:
            key = next(leaves)[0], leaf.device, leaf.shape, leaf.dtype
            if key not in self._inputs:
                self._inputs[key] = torch.empty_like(leaf, memory_format=torch.contiguous_format)
                self._newest.append(key)
            return self._inputs[key].copy_(leaf)

        return map_batch(copied, batch)

    def place(self) -> tuple[Any, torch.cuda.Stream]:
        """The pool, by torch's name for it, and the stream, on the current device."""
        if self._kept is None:
            self._kept = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        return self._kept

    def leave(self) -> None:
        """Later graphs get other memory: a recording failed in this one, and its inputs go."""
        self._kept = None
        for key in self._newest:
            del self._inputs[key]
        self._newest = []


class Replayed:
    """A function of a batch that is replayed from its third call of a shape on.

    What cannot be recorded, since its host code looks at values or copies from the host, stays
    eager, and so does what does not come out the same; the log says so.

    Args:
        function: From a batch to tensors; all else it reads must stay at its address.
        memory: Of its graphs; each has its own if None.
        most_bytes: Of the inputs, of which a graph has a copy.
        lends: Whether the next call may overwrite what one returns, which saves a copy.
    """

    def __init__(
        self,
        function: Callable[[Batch], tuple[Tensor, ...]],
        memory: SharedMemory | None = None,
        *,
        most_bytes: int = _MOST_BYTES,
        lends: bool = False,
    ) -> None:
        self._function, self._memory = function, memory
        self._most_bytes, self._lends = most_bytes, lends
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        self._refused = False

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The function's values, the caller's to keep and to overwrite unless they are lent."""
        leaves = list(batch_leaves(batch).values())
        if self._refused or not all(x.is_cuda for x in leaves):
            return self._function(batch)
        device = leaves[0].device
        shape = (device, shape_of(batch))
        with torch.cuda.device(device):
            if shape in self._graphs:
                values = self._graphs[shape](batch)
                return values if self._lends else tuple(x.clone() for x in values)
            values = self._function(batch)
            calls = self._calls[shape] = self._calls.get(shape, 0) + 1
            room = len(self._graphs) < _SHAPES and _bytes(leaves) <= self._most_bytes
            # To look at values waits: where they are not finite, ever more rarely.
            due = calls >= _EAGER_CALLS and calls.bit_count() == 1
            if due and room and _all_finite(values):
                self._record(shape, batch, values)
            return values

    def _record(self, shape: Hashable, batch: Batch, values: tuple[Tensor, ...]) -> None:
        memory = self._memory or SharedMemory()
        try:
            graph = _Graph(self._function, batch, memory)
        except RuntimeError as error:  # torch's for whatever the host code does to the device
            self._refused = True
            _log.info("not replayed as a CUDA graph", exc_info=error)
            _end_failed_capture()
            memory.leave()
            return
        if _are_close(graph(batch), values):
            self._graphs[shape] = graph
        else:
            self._refused = True
            _log.info("not replayed as a CUDA graph: the values come out otherwise.")


class _Graph:
    """One recorded pass, with the memory that its inputs and outputs lie in."""

    def __init__(
        self,
        function: Callable[[Batch], tuple[Tensor, ...]],
        batch: Batch,
        memory: SharedMemory,
    ) -> None:
        self._inputs = memory.copy_of(batch)
        pool, stream = memory.place()
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            function(self._inputs)  # libraries make their work space for a stream at its first use
        here.wait_stream(stream)
        torch.cuda.synchronize()
        self._graph, mode = torch.cuda.CUDAGraph(), "thread_local"
        # Other threads, such as one that writes to disk, may go on.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode=mode):
            self._outputs = function(self._inputs)

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        into = batch_leaves(self._inputs)
        for path, leaf in batch_leaves(batch).items():
            into[path].copy_(leaf)
        self._graph.replay()
        return self._outputs


def _end_failed_capture() -> None:
    """Let torch's own generator go, which a capture that fails leaves waiting for its end."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        torch.zeros(1, device="cuda")


def _bytes(leaves: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in leaves)


def _all_finite(values: Sequence[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in values)


def _are_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether values are the same up to the order of sums; NaN never is."""
    sizes = [float(torch.linalg.vector_norm(x.double())) for x in expected]
    negligible = _NEGLIGIBLE * sum(size**2 for size in sizes) ** 0.5
    gaps = [
        float(torch.linalg.vector_norm((a - b).double()))
        for a, b in zip(found, expected, strict=True)
    ]
    return all(g <= max(_CLOSE * s, negligible) for g, s in zip(gaps, sizes, strict=True))
