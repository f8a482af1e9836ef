"""What neighbours and a map of many items take, from traces on disk.

Losses of items in 100 groups, with noise of their own, are written as a float32 array `[N, M]` of
16 chains, since a run of that size takes hours to sample; a run's traces are read as fast.  Each
way then has a process of its own, which reads them.

    python -m benchmarks.kernel.size --out benchmarks/results
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import parser, print_table, write
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.neighbours import Search
from bif.kernel import describe, find_neighbours
from bif.kernel.layout import layout

GROUPS, RANK, CHAINS, COUNT = 100, 200, 16, 15
_ROWS = 2000
"""Items whose losses are made at a time."""


def write_traces(file: Path, num_items: int, draws: int, seed: int) -> None:
    """Write losses `[N, M]`: groups in a space of 200 directions, and noise of each item."""
    source = np.random.default_rng(seed)
    directions = source.standard_normal((RANK, draws), dtype=np.float32)
    directions *= np.arange(1, RANK + 1, dtype=np.float32)[:, None] ** -0.5
    groups = source.standard_normal((GROUPS, RANK), dtype=np.float32)
    shape = (num_items, draws)
    losses = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, num_items, _ROWS):
        rows = min(_ROWS, num_items - start)
        own = source.standard_normal((rows, RANK), dtype=np.float32)
        noise = source.standard_normal((rows, draws), dtype=np.float32)
        place = source.integers(GROUPS, size=rows)
        losses[start : start + rows] = (groups[place] + own) @ directions + noise
    losses.flush()


def read(file: Path) -> LossKernel:
    """Return the kernel of the losses in a file, which are read into memory."""
    losses = torch.from_numpy(np.load(file))
    count, draws = losses.shape
    labels = {"label": tuple(str(k % GROUPS) for k in range(count))}
    chains = torch.arange(draws) * CHAINS // draws
    return LossKernel(losses, chains, tuple(map(str, range(count))), labels)


def neighbours_and_map(file: Path, search: Search, seed: int) -> dict[str, Any]:
    """Return the seconds of reading, of the neighbours and of the map, and the recall."""
    started = time.perf_counter()
    kernel = read(file)
    loaded = time.perf_counter()
    found = find_neighbours(kernel, COUNT, search=search, seed=seed)
    searched = time.perf_counter()
    layout(kernel, neighbours=(found.places, found.values), seed=seed)
    drawn = time.perf_counter()
    return {
        "way": f"{search} neighbours and map", "recall": found.recall, "read": loaded - started,
        "neighbours": searched - loaded, "map": drawn - searched, "seconds": drawn - started,
    }  # fmt: skip


def description(file: Path, search: Search, seed: int) -> dict[str, Any]:
    """Return the seconds of all that the command finds out beside the map."""
    started = time.perf_counter()
    describe(read(file), count=COUNT)
    return {"way": "all figures and scores", "seconds": time.perf_counter() - started}


def measured(
    work: Callable[[Path, Search, int], dict[str, Any]], *given: Any, threads: int, told: Any
) -> None:
    """Tell what a function returns, with the peak of this process's memory in GiB."""
    torch.set_num_threads(threads)
    row = work(*given)
    told.put({**row, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--items", type=int, default=50_000)
    options.add_argument("--draws", type=int, default=2000)
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    processes, rows = get_context("spawn"), []
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "losses.npy")
        write_traces(file, arguments.items, arguments.draws, arguments.seed)
        ways = [(neighbours_and_map, "exact"), (neighbours_and_map, "approximate"),
                (description, "exact")]  # fmt: skip
        for work, search in ways:
            told = processes.Queue()
            process = processes.Process(
                target=measured, args=(work, file, search, arguments.seed),
                kwargs={"threads": arguments.threads, "told": told},
            )  # fmt: skip
            process.start()
            rows.append({"items": arguments.items, "draws": arguments.draws, **told.get()})
            process.join()
            print_table(rows[-1:])
    print(write("kernel-size", arguments, rows))


if __name__ == "__main__":
    main()
