"""`benchmarks.plans`: what is compared, and how rows say it."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from benchmarks import plans


def test_rows_have_the_medians_of_plans_and_runs(monkeypatch):
    seconds, sizes = [(9, 10), (8, 10), (1, 99)], [(2, 3), (2, 5), (2, 4)]
    found = iter(
        {"seconds": second, "memory": size * plans.MIB, "disk": 10}
        for of_seconds, of_sizes in zip(seconds, sizes, strict=True)
        for second, size in zip(of_seconds, of_sizes, strict=True)
    )
    monkeypatch.setattr(plans, "_in_own_process", lambda *_: next(found))
    time, memory, disk = plans.compare(argparse.Namespace(repeats=3), "digits")
    assert (time["planned"], time["measured"], time["within_a_fifth"]) == (8, 10, True)
    assert (memory["planned"], memory["measured"], memory["within_a_fifth"]) == (2, 4, False)
    assert memory["quantity"] == "memory, MiB" and disk["ratio"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_memory_that_is_given_back_counts_at_its_highest():
    with plans.highest_private_bytes() as highest:
        held = torch.ones(16 * plans.MIB, dtype=torch.float32)  # 64 MiB
        for _ in range(10):  # while others look
            held.add_(1)
        del held
    assert highest[0] == pytest.approx(64 * plans.MIB, rel=0.2)
