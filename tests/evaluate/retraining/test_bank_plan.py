"""Which networks a bank holds."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from bif.bank import Plan
from bif.evaluate import leave_out, random_subsets


def test_half_subsets_are_the_default_and_a_number_of_seeds_counts_from_zero():
    plan = Plan(num_subsets=7, seeds=3)
    assert plan.fraction == 0.5 and plan.seeds == plan.tuning_seeds == (0, 1, 2)
    assert np.array_equal(plan.masks(11), random_subsets(11, 7, seed=0))
    assert plan.tuning_masks(11).shape == (0, 11)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.9])
def test_subsets_hold_the_fraction_asked_for(fraction: float):
    plan = Plan(num_subsets=5, fraction=fraction, mask_seed=3, num_tuning_subsets=4)
    for masks in (plan.masks(40), plan.tuning_masks(40)):
        assert (masks.sum(axis=1) == round(fraction * 40)).all()


def test_random_removals_and_leave_one_out_are_plans_too():
    removals = Plan(num_subsets=6, num_removed=2, mask_seed=5)
    assert removals.fraction is None
    assert np.array_equal(removals.masks(200), leave_out(200, 6, num_removed=2, seed=5))
    one_out = Plan(num_subsets=9, num_removed=1).masks(9)
    assert np.array_equal(np.sort((~one_out).argmax(axis=1)), np.arange(9))


def num_shared(plan: Plan, num_items: int) -> int:
    """Subsets that are both reported and for tuning."""
    both = [
        {m.tobytes() for m in masks}
        for masks in (plan.masks(num_items), plan.tuning_masks(num_items))
    ]
    return len(both[0] & both[1])


@pytest.mark.parametrize(
    ("plan", "num_items"),
    [
        (Plan(num_subsets=30, num_tuning_subsets=30), 50),
        (Plan(num_subsets=40, num_tuning_subsets=20), 8),  # of 70 that exist
        (Plan(num_subsets=12, num_removed=1, num_tuning_subsets=8), 20),
        (Plan(num_subsets=100, num_removed=2, num_tuning_subsets=50), 30),
    ],
    ids=["many", "few", "leave-one-out", "removals"],
)
def test_no_tuning_subset_is_a_reported_one(plan: Plan, num_items: int):
    assert len(plan.tuning_masks(num_items)) == plan.num_tuning_subsets
    assert num_shared(plan, num_items) == 0


def test_the_check_of_shared_subsets_can_fail(monkeypatch: pytest.MonkeyPatch):
    plan = Plan(num_subsets=40, num_tuning_subsets=20)
    monkeypatch.setattr(Plan, "tuning_masks", lambda self, n: self._draw(n, 20, (0, 1)))
    assert num_shared(plan, 8) > 0


def test_leave_one_out_of_every_item_leaves_no_subset_to_tune_with():
    plan = Plan(num_subsets=10, num_removed=1, num_tuning_subsets=1)
    with pytest.raises(ValueError, match="only 0 others of their size .* among the 10 that exist"):
        plan.tuning_masks(10)


def test_further_subsets_and_seeds_leave_the_others_as_they_are():
    small = Plan(num_subsets=4, seeds=(5, 1), num_tuning_subsets=3)
    large = small.joined(Plan(num_subsets=9, seeds=(1, 8), num_tuning_subsets=5, tuning_seeds=2))
    assert (large.num_subsets, large.num_tuning_subsets) == (9, 5)
    assert large.seeds == (5, 1, 8) and large.tuning_seeds == (5, 1, 0)
    assert np.array_equal(large.masks(30)[:4], small.masks(30))
    assert np.array_equal(large.tuning_masks(30)[:3], small.tuning_masks(30))
    assert large.joined(small) == large


def test_subsets_of_another_kind_are_not_joined():
    with pytest.raises(ValueError, match="expected the same. Make two banks"):
        Plan(num_subsets=2).joined(Plan(num_subsets=2, fraction=0.3))


@pytest.mark.parametrize(
    "plan",
    [
        Plan(num_subsets=3, seeds=(4, 2), num_tuning_subsets=2, tuning_seeds=5),
        Plan(num_subsets=3, num_removed=1, mask_seed=9),
    ],
)
def test_a_plan_comes_back_from_json(plan: Plan):
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"num_subsets": 3, "subsets": 4}, r"unknown entries \['subsets'\] of a plan"),
        ({}, "no plan: .*num_subsets"),
        ({"num_subsets": "many"}, "no plan"),
        ({"num_subsets": 1, "seeds": "all"}, "invalid literal|no plan"),
    ],
)
def test_what_is_no_plan_is_refused(found: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_subsets": 0}, "num_subsets is 0; expected at least 1"),
        ({"num_tuning_subsets": -1}, "num_tuning_subsets is -1; expected at least 0"),
        ({"mask_seed": -1}, "mask_seed is -1; expected at least 0"),
        ({"num_removed": 0}, "num_removed is 0; expected at least 1"),
        ({"fraction": 1.0}, "fraction is 1.0; expected a number between 0 and 1"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"fraction": 0.5, "num_removed": 3}, "expected one of the two"),
        ({"seeds": ()}, r"seeds are \(\); expected at least one, all different"),
        ({"seeds": 0}, "seeds are 0; expected at least one"),
        ({"tuning_seeds": (1, 1)}, r"tuning_seeds are \(1, 1\); expected"),
    ],
)
def test_a_plan_out_of_range_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Plan(**{"num_subsets": 2, **changes})
