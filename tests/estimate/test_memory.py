"""Memory of the estimate: O(N·Q), whatever the number of chains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bif

GIB = 2**30
ESTIMATE = """
import resource, sys
import torch
torch.set_num_threads(2)
from bif import LossTraces
from bif.estimate import ScoreAxes, estimate_influence
from bif.estimate.traces import TraceBlock

num_train, num_queries, blocks = map(int, sys.argv[1:])
source = torch.Generator().manual_seed(0)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parts = [
    TraceBlock(
        tuple(range(2 * b, 2 * b + 2)),
        torch.randn(2, 32, num_train, generator=source),
        torch.randn(2, 32, num_queries, generator=source),
    )
    for b in range(blocks)
]
got = estimate_influence(
    LossTraces(tuple(parts)),
    ScoreAxes(
        observables={"loss": "lower"},
        query_ids=[str(q) for q in range(num_queries)],
        train_ids=[str(i) for i in range(num_train)],
        nbeta=1.0,
    ),
)
assert got["influence"].shape == (1, num_queries, num_train)
# Independent N(0, 1): the error of a covariance is 1 / sqrt(degrees of freedom).
freedom = 2 * blocks * 31
error = float((got["standard_error"].astype("float64") ** 2).mean()) * freedom
assert abs(error - 1) < 0.05, error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(num_train: int, num_queries: int, *, blocks: int) -> int:
    """Peak resident memory of an estimate in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(bif.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", ESTIMATE, str(num_train), str(num_queries), str(blocks)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_fifty_thousand_items_by_a_thousand_queries_with_errors_fit_into_4_gib():
    peak = peak_bytes(50_000, 1_000, blocks=8)  # 16 chains of 32 draws
    print(f"peak resident memory: {peak / GIB:.2f} GiB")
    assert peak < 4 * GIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_more_chains_cost_no_more_than_their_traces():
    few, many = (peak_bytes(10_000, 500, blocks=blocks) for blocks in (8, 32))
    traces = 2 * (32 - 8) * 32 * (10_000 + 500) * 4
    print(f"16 chains: {few / GIB:.2f} GiB, 64 chains: {many / GIB:.2f} GiB")
    matrix = 10_000 * 500 * 8
    assert many - few < traces + matrix
