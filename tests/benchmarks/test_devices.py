"""`benchmarks.devices` at a tiny size: two ranks by gloo make the run of one."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import devices

TINY = argparse.Namespace(
    data=None, device="cpu", seed=0, chains=4, draws=12, steps=2, length=16, num_train=100,
    ranks=[1, 2],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", devices.KINDS)
def test_two_ranks_make_the_run_of_one(kind):
    one, two = devices.compare(TINY, "digits", kind)
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["same_bits"] and one["share_of_linear"] == 1
    assert two["share_of_linear"] > 0
    if kind == "solving":  # blocks of fewer queries round otherwise
        assert two["largest_difference"] < 1e-3
    else:
        assert two["same_bits"] and two["largest_difference"] == 0


@pytest.mark.slow
def test_two_ranks_hold_one_model():
    one, two = devices.compare_split(
        argparse.Namespace(**{**vars(TINY), "chains": 2, "draws": 3}), "tiny"
    )
    assert (one["weights"], two["weights"]) == ("bfloat16, lean", "float32, split")
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert min(one["seconds_a_draw"], two["seconds_a_draw"]) > 0
