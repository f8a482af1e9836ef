"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_SAMPLE_SECONDS = 0.02
"""Seconds between two looks at the memory."""
_STATM = Path("/proc/self/statm")


@dataclass
class Cost:
    """The time and memory that a piece of work took.

    Attributes:
        seconds: Wall-clock seconds.
        peak_memory_gib: On a GPU the most that was allocated there; on the CPU the most by which
            the process grew meanwhile.  NaN where the system does not tell.
    """

    seconds: float = 0.0
    peak_memory_gib: float = 0.0

    def then(self, other: Cost) -> Cost:
        """Return the cost of both pieces of work, one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory_gib, other.peak_memory_gib))


@contextmanager
def measure_cost(device: torch.device) -> Iterator[Cost]:
    """Yield a cost that is filled in when the block ends; wait for the device."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watch = _MemorySampler()
    started = time.perf_counter()
    try:
        with watch:
            yield cost
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    finally:
        cost.seconds = time.perf_counter() - started
        allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        cost.peak_memory_gib = (watch.grown if allocated is None else allocated) / 2**30


class _MemorySampler:
    """A thread that samples the process's resident memory."""

    def __init__(self) -> None:
        self.grown = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> None:
        self._before = _resident_bytes()
        self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self.grown = max(self.grown, _resident_bytes() - self._before)


def _resident_bytes() -> float:
    """Return the resident memory of the process in bytes."""
    import resource

    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return float("nan")
