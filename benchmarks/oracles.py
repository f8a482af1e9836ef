"""Chains stacked by vmap, or one after another: which is cheaper on a device, and by how much.

Gradients and values of the networks of the settings, by oracle, precision and items at once.  A
stack of convolutions is one convolution of as many groups as chains, which libraries of kernels do
badly; a single chain may be too little work for a GPU.

    python benchmarks/oracles.py --data DIR --out benchmarks/results --device cuda
    python benchmarks/oracles.py --data DIR --out benchmarks/results --chains 2 --items 32
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from common import parser, print_table, write

from bif import tensors
from bif.benchmark import named_task
from bif.problem.problem import Problem
from bif.sampling.factory import wait_for
from bif.sampling.oracles import SequentialOracle, StackedOracle
from bif.sampling.oracles.precision import Precision
from bif.types import Params

SETTINGS = ("fashion", "cifar", "resnet20", "stories")
PRECISIONS: tuple[Precision, ...] = ("tf32", "bfloat16")
_REPEATS = 3


def measured(
    problem: Problem, kind: str, precision: Precision, *, chains: int, items: int
) -> dict[str, Any]:
    """Milliseconds of one gradient and of one pass of values, and the peak memory."""
    device = problem.device
    model = problem.evaluation_copy(device)
    batch = problem.train.to(device).first(items)
    weights = torch.full((items,), 1 / items, device=device)
    params: Params = tensors.stacked({n: p.to(device) for n, p in problem.center().items()}, chains)
    make: Any = StackedOracle if kind.startswith("stacked") else SequentialOracle
    more = {"use_compile": True} if kind.endswith("compiled") else {}
    oracle = make(
        model, problem.loss, gradient_precision=precision, value_precision=precision, **more
    )

    def gradient() -> None:
        oracle.gradient(params, batch, weights, per_chain=False)

    def values() -> None:
        oracle.values(problem.loss, params, batch)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    row = {"gradient_ms": timed(gradient, device), "values_ms": timed(values, device)}
    row["gradient_ns_an_item"] = row["gradient_ms"] * 1e6 / chains / items
    row["seconds_in_all"] = time.perf_counter() - started
    if device.type == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Milliseconds, after a call that is not counted."""
    run()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(_REPEATS):
        run()
    wait_for(device)
    return (time.perf_counter() - started) / _REPEATS * 1e3


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Precision, int]]:
    """Oracle, precision, items at once."""
    precisions = PRECISIONS if arguments.device.startswith("cuda") else ("float32",)
    yield from product(arguments.oracles, precisions, arguments.items)


def main() -> None:
    options = parser(__doc__ or "")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("settings", nargs="*", default=SETTINGS)
    options.add_argument("--oracles", nargs="+", default=["stacked", "sequential"],
                         choices=("stacked", "stacked compiled", "sequential",
                                  "sequential compiled"))  # fmt: skip
    options.add_argument("--chains", type=int, default=16)
    options.add_argument("--items", type=int, nargs="+", default=[250, 1000])
    arguments = options.parse_args()
    rows = []
    for setting in arguments.settings:
        task = named_task(
            setting, arguments.data, device=arguments.device, seed=arguments.seed,
            size=max(64, *arguments.items),
        )  # fmt: skip
        for kind, precision, items in cases(arguments):
            row = {"setting": setting, "oracle": kind, "precision": precision, "items": items,
                   "chains": arguments.chains}  # fmt: skip
            try:
                row |= measured(task.problem, kind, precision, chains=arguments.chains, items=items)
            except Exception as error:  # out of memory, a compiler's: the other rows stand
                row["reason"] = f"{type(error).__name__}: {str(error)[:150]}"
            rows.append(row)
            print_table([row])
        write("oracles", arguments, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
