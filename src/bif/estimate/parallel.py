"""Threads of numba, which umap-learn and pynndescent are compiled by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Let numba's loops have as many threads as torch has, and leave both as they were.

    numba sets the threads of OpenMP for the whole process at its first parallel loop, and torch
    would go on with as many: with a process a core that is many times slower.
    """
    import numba

    # Asked last: numba's answer starts its threads, and with them those of OpenMP.
    threads, before = torch.get_num_threads(), numba.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(threads, most))
    try:
        yield
    finally:
        numba.set_num_threads(before)
        torch.set_num_threads(threads)
