"""What runs take beside what `bif plan` and the run's own forecast said before: are they close?

Seconds of sampling, on a CPU those of its time, which other work on the machine does not lengthen;
the peak of the memory, on a GPU of its tensors, on a CPU of the process above what it holds when
the run begins; bytes of the folder.  Plan and run have a process each.

    python -m benchmarks.plans --data DIR --out DIR --problems digits fashion
    python -m benchmarks.plans --device cuda --out DIR --problems 160M 1.4B 6.9B
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import bif
from benchmarks.common import parser, print_table, write
from benchmarks.devices import posed
from bif.calibration import memory_plan
from bif.runs import block_run, recording, retention
from bif.sampling.factory import make_posterior, run_device

MIB = 2**20
UNITS = {"seconds": ("seconds", 1), "memory": ("memory, MiB", MIB), "disk": ("disk, MiB", MIB)}
"""What is compared: its name with the unit, and the unit."""
_POLL = 0.01
"""Seconds between two looks at the memory of the process."""
_FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which the C library gives memory back when it is freed, so that what is counted is
in use."""
_PASSED_ON = (
    "data", "out", "device", "seed", "chains", "draws", "chunk", "length", "num_train",
)  # fmt: skip
"""Options that the processes of plan and run get."""


def chosen(arguments: argparse.Namespace) -> bif.Settings:
    """Return the settings of a live run, all of them given."""
    shared = bif.Settings(
        oracle="live", chains=arguments.chains, draws=arguments.draws, burn_in=2, thin=1,
        nbeta=100.0, gamma=100.0, sampler="sgld", step_size=1e-5, estimator="covariance",
        gradient="minibatch", batch_size=16, chunk_size=arguments.chunk, seed=arguments.seed,
    )  # fmt: skip
    if arguments.problem in ("digits", "fashion"):
        return shared
    return replace(
        shared, memory="fused", compiled=True, gradient_precision="bfloat16",
        loss_precision="bfloat16",
    )  # fmt: skip


def planned(problem: bif.Problem, settings: bif.Settings) -> dict[str, float]:
    """Return what is forecast, without any sampling but the plan's own measurements."""
    found = memory_plan.plan(problem, settings)
    posterior = make_posterior(problem, found.settings)
    sizes = retention.forecast(problem, posterior, found.settings, "traces")
    on_gpu = run_device(problem, found.settings).type == "cuda"
    return {
        "seconds": found.seconds,
        "memory": found.peak if on_gpu else sizes["memory"] + max(found.peak, sizes["scores"]),
        "disk": sum(sizes[name] for name in retention.ON_DISK),
    }  # fmt: skip


def measured(problem: bif.Problem, settings: bif.Settings) -> dict[str, float]:
    """Return what the run takes."""
    cuda = run_device(problem, settings).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        # What is imported, compiled and allocated once is no part of a run's own memory.
        warm = replace(settings, chains=2, draws=2)
        bif.attribute(problem, warm, out=f"{folder}/warm")
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with highest_private_bytes() as highest:
            # A long run has two commits of each block on disk.
            run = bif.attribute(problem, settings, out=f"{folder}/run", commit_every=1.0)
        memory = torch.cuda.max_memory_allocated() if cuda else highest[0]
        files = [file for file in Path(folder, "run").rglob("*") if file.is_file()]
        disk = sum(file.stat().st_size for file in files)
    return {"seconds": run.summary.sampling_seconds, "memory": memory, "disk": disk}


@contextmanager
def highest_private_bytes() -> Iterator[list[int]]:
    """Yield a list that has at the end the most bytes of this process beyond those of now."""
    begun, found, ended = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL):
            found[0] = max(found[0], private_bytes() - begun)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    yield found
    ended.set()
    watching.join()


def private_bytes() -> int:
    """Return the memory of this process without pages of files, such as libraries."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def compare(arguments: argparse.Namespace, problem: str) -> list[dict[str, Any]]:
    """Return a row for each quantity of a problem's run."""
    kinds = ("planned", "measured")
    found = [
        [_in_own_process(arguments, problem, k) for k in kinds] for _ in range(arguments.repeats)
    ]
    rows = []
    for name, (label, unit) in UNITS.items():
        there, here = (float(np.median([each[i][name] for each in found])) for i in range(2))
        rows.append({
            "problem": problem, "quantity": label, "planned": there / unit, "measured": here / unit,
            "ratio": there / here, "within_a_fifth": abs(there / here - 1) <= 0.2,
        })  # fmt: skip
    return rows


def _in_own_process(arguments: argparse.Namespace, problem: str, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.plans", "--kind", kind, "--problem", problem]
    for name in _PASSED_ON:
        value = getattr(arguments, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    environment = {**os.environ, **_FREED_AT_ONCE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr[-4000:]
        raise RuntimeError(f"{problem}, {kind}, ended with {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and write."""
    given = parser(__doc__ or "")
    given.add_argument("--problems", nargs="+", default=["digits"], help="digits, fashion, 160M …")
    given.add_argument("--chains", type=int, default=4)
    given.add_argument("--draws", type=int, default=200)
    given.add_argument("--chunk", type=int, default=64, help="items of a forward pass")
    given.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    given.add_argument("--num-train", type=int, default=1_000, help="items of fashion")
    given.add_argument("--repeats", type=int, default=1, help="of which the medians count")
    given.add_argument("--kind", choices=["planned", "measured"], help=argparse.SUPPRESS)
    given.add_argument("--problem", help=argparse.SUPPRESS)
    arguments = given.parse_args()
    if arguments.kind:
        if arguments.device == "cpu":
            clock = SimpleNamespace(perf_counter=time.process_time, monotonic=time.process_time)
            for module in (memory_plan, block_run, recording):
                module.time = clock  # type: ignore[attr-defined]
        take = planned if arguments.kind == "planned" else measured
        print(json.dumps(take(posed(arguments, 1), chosen(arguments))))
        return
    rows = [row for problem in arguments.problems for row in compare(arguments, problem)]
    print_table(rows)
    write("plans", arguments, rows)


if __name__ == "__main__":
    main()
