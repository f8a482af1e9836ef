"""CUDA graphs: a pass over a module is recorded once and then replayed without its host code.

A small model's pass is hundreds of kernels of a few microseconds, and the host is slower to launch
them than the device is to run them.  Weights that never change their address, as a live module's
do not, are read where they are; others are inputs like the items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from bif.compiling import shape_of
from bif.items import batch_leaves, map_batch
from bif.types import Batch

_EAGER_CALLS = 2
"""Of a shape before it is recorded: what comes once or twice does not pay."""
_SHAPES = 16
"""That a function keeps graphs of: each holds its intermediate values."""
_CLOSE = 1e-2
"""Relative distance at which a replay is another pass than the eager one, bfloat16 allowed for."""

_log = logging.getLogger(__name__)


class SharedMemory:
    """Where graphs that never run at the same time keep their intermediate values."""

    def __init__(self) -> None:
        self._pool: Any = None

    def pool(self) -> Any:
        """What torch knows it by."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def leave(self) -> None:
        """Later graphs get other memory: a recording failed in this one."""
        self._pool = None


class Replayed:
    """A function of a batch that is replayed from its third call of a shape on.

    What cannot be recorded, since its host code looks at values or copies from the host, stays
    eager, and so does what does not come out the same; the log says so.

    Args:
        function: From a batch to tensors; all else it reads must stay at its address.
        memory: Of its graphs; each has its own if None.
    """

    def __init__(
        self, function: Callable[[Batch], tuple[Tensor, ...]], memory: SharedMemory | None = None
    ) -> None:
        self._function, self._memory = function, memory
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        self._refused = False

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The function's values, the caller's to keep and to overwrite."""
        if self._refused or not all(x.is_cuda for x in batch_leaves(batch).values()):
            return self._function(batch)
        shape = shape_of(batch)
        if shape in self._graphs:
            return self._graphs[shape](batch)
        values = self._function(batch)
        self._calls[shape] = self._calls.get(shape, 0) + 1
        if self._calls[shape] >= _EAGER_CALLS and len(self._graphs) < _SHAPES:
            self._record(shape, batch, values)
        return values

    def _record(self, shape: Hashable, batch: Batch, values: tuple[Tensor, ...]) -> None:
        try:
            graph = _Graph(self._function, batch, self._memory and self._memory.pool())
        except RuntimeError as error:  # torch's for whatever the host code does to the device
            self._refused = True
            _log.info("not replayed as a CUDA graph", exc_info=error)
            _end_failed_capture()
            if self._memory:
                self._memory.leave()
            return
        replayed = graph(batch)
        if all(_is_close(a, b) for a, b in zip(replayed, values, strict=True)):
            self._graphs[shape] = graph
        else:
            self._refused = True
            _log.info("not replayed as a CUDA graph: the values come out otherwise.")


class _Graph:
    """One recorded pass, with the memory that its inputs and outputs lie in."""

    def __init__(
        self, function: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, pool: Any
    ) -> None:
        self._inputs = map_batch(torch.clone, batch)
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            function(self._inputs)  # libraries make their work space for a stream at its first use
        here.wait_stream(stream)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that writes to disk, may go on.
        mode = "thread_local"
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode=mode):
            self._outputs = function(self._inputs)

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        into = batch_leaves(self._inputs)
        for path, leaf in batch_leaves(batch).items():
            into[path].copy_(leaf)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)


def _end_failed_capture() -> None:
    """Let torch's own generator go, which a capture that fails leaves waiting for its end."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        torch.zeros(1, device="cuda")


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same up to the order of sums."""
    gap = torch.linalg.vector_norm((a - b).double())
    return bool(gap <= _CLOSE * torch.linalg.vector_norm(b.double()))
