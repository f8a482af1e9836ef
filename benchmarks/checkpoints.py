"""What a series of checkpoints costs, and whether it goes on to the same bits wherever it is cut.

A network of 10,060 weights learns handwritten digits; influence of 1,000 items on 50 queries is
followed over 50 checkpoints.  Then the same is killed at random moments, again and again, until it
comes to its end.

    python -m benchmarks.checkpoints --out benchmarks/results
    python -m benchmarks.checkpoints --out DIR --count 3 --kills 1
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bif
from benchmarks.common import parser, print_table, write

WIDTH, STEPS, BATCH, RATE = 134, 400, 50, 0.1
"""Of the network, and of its training by SGD."""
ITEMS, QUERIES = 1000, 50


def network(seed: int) -> nn.Module:
    """Return an untrained network of 64 pixels and 10 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def data() -> tuple[Tensor, Tensor]:
    """Return pixels and labels of train items and queries."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    count = ITEMS + QUERIES
    return torch.tensor(pixels[:count] / 16).float(), torch.tensor(labels[:count])


def train(folder: Path, seed: int, count: int) -> int:
    """Train, save checkpoints at equal ratios of steps, and return the number of weights."""
    x, y = (leaf[:ITEMS] for leaf in data())
    model = network(seed)
    save = bif.SaveCheckpoints(folder, bif.log_spaced_steps(STEPS, count=count))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    for step in range(STEPS + 1):
        save(step, model)
        batch = torch.randperm(ITEMS, generator=order)[:BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return sum(leaf.numel() for leaf in model.parameters())


def follow(checkpoints: Path, out: Path, seed: int, told: Any = None) -> None:
    """Follow influence; tell its seconds and the peak of this process's memory in GiB."""
    x, y = data()
    problem = bif.Problem(
        network(seed), bif.losses.cross_entropy,
        train=(x[:ITEMS], y[:ITEMS]), queries=(x[ITEMS:], y[ITEMS:]),
    )  # fmt: skip
    started = time.perf_counter()
    bif.trajectory(problem, bif.CheckpointSeries.from_folder(checkpoints), out=out)
    if told is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        told.put((time.perf_counter() - started, peak))


def killed(checkpoints: Path, out: Path, seed: int, kills: int, seconds: float) -> int:
    """Follow influence in processes that are killed, and return how many were."""
    processes, moments = get_context("spawn"), random.Random(seed)
    for done in range(kills + 1):
        process = processes.Process(target=follow, args=(checkpoints, out, seed))
        process.start()
        process.join(None if done == kills else moments.uniform(0.1, 1.0) * seconds / kills + 8)
        if not process.is_alive():
            if process.exitcode:
                raise RuntimeError(f"it ended with status {process.exitcode} after {done} kills.")
            return done
        process.kill()
        process.join()
    raise AssertionError


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--count", type=int, default=65, help="of steps; the first ones are one")
    options.add_argument("--kills", type=int, default=8, help="at most")
    arguments = options.parse_args()
    seed, processes = arguments.seed, get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        saved, whole, cut = (Path(place, name) for name in ("saved", "whole", "cut"))
        num_weights = train(saved, seed, arguments.count)
        told = processes.Queue()
        process = processes.Process(target=follow, args=(saved, whole, seed, told))
        process.start()
        seconds, peak = told.get()
        process.join()
        kills = killed(saved, cut, seed, arguments.kills, seconds)
        first, second = (bif.Trajectory.load(out).dataset for out in (whole, cut))
        row = {
            "checkpoints": first.sizes["checkpoint"], "items": ITEMS, "queries": QUERIES,
            "weights": num_weights, "seconds": seconds, "peak_gib": peak, "kills": kills,
            "same_bits": all(np.array_equal(first[n], second[n]) for n in first.data_vars),
            "trusted": int(first["trusted"].sum()),
        }  # fmt: skip
    print_table([row])
    print(write("checkpoints", arguments, [row]))


if __name__ == "__main__":
    main()
