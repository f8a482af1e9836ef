"""The hierarchical toy, without draws at every checkpoint and with draws at a few."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from bif.report.trajectories import Curve, draw_curves
from bif.stages import hierarchy

DOG, SPARROW = hierarchy.ITEMS.index("dog"), hierarchy.ITEMS.index("sparrow")


@cache
def known() -> hierarchy.Exact:
    return hierarchy.exact(0)


def test_the_network_learns_one_level_after_another():
    steps = list(known().branching.values())
    assert steps == sorted(steps) and steps[0] > 200 and steps[-1] < hierarchy.STEPS


@pytest.mark.parametrize("curve", ["influence", "retraining", "gradient_product"])
def test_the_dog_helps_the_sparrow_and_then_harms_it(curve):
    row = getattr(known(), curve)[:, SPARROW, DOG]
    assert row.min() < -0.01 and row.max() > 0.01 and row.argmin() < row.argmax()


def test_the_flip_stays_with_other_dampings_and_the_control_never_flips():
    for values in known().at_other_dampings.values():
        assert values.min() < -0.05 and values.max() > 0.05
    assert known().influence[:, DOG, DOG].max() <= 0  # on itself


def test_peaks_lie_within_a_tenth_of_the_branching():
    for k, branching in enumerate(known().branching.values()):
        row = known().influence[:, len(hierarchy.ITEMS) + k, DOG]
        assert 0.9 < hierarchy.peak_step(known().steps, row) / branching < 1.1
    between = -((np.arange(0, 60, 10) - 23.0) ** 2)
    assert hierarchy.peak_step(range(0, 60, 10), -between) == 23


def test_retraining_without_weights_is_retraining_without_the_item():
    kept = torch.ones(1, hierarchy.STEPS, 8, dtype=torch.float64)
    kept[..., DOG] = 0
    without = hierarchy.train([0], kept)[-1]
    model = hierarchy.network()
    model.load_state_dict({name: leaf[0] for name, leaf in without.items()})
    batch = hierarchy.pose().train.data
    losses = hierarchy.half_squared_error(model, batch)
    assert losses[DOG] > 0.1 and losses.sum() - losses[DOG] < 0.01


def test_leaving_the_dog_out_harms_most_at_its_peak():
    found = hierarchy.window_effects("dog", "mammals from birds", 475)
    assert found["seeds"] == 20 and found["interval"][0] > 0


def test_draws_agree_with_the_exact_influence_and_make_the_summary(monkeypatch):
    monkeypatch.setattr(hierarchy, "EVERY", 180)
    monkeypatch.setattr(hierarchy, "_DRAWS", 60)
    few = hierarchy.exact(0)
    halves = hierarchy.sampled(0, few, out=None, show_progress=False)
    found = hierarchy.summary(few, halves)
    value, error, step = found["dog_sparrow_most_harmful"]
    place = few.steps.index(step)
    assert value > 4 * error
    assert abs(value - few.influence[place, SPARROW, DOG]) < 4 * error
    assert found["never_flips"][0] <= 0
    by_draws, exact = (found["correlation_with_retraining"][n] for n in ("bif", "analytic"))
    np.testing.assert_allclose(by_draws[1:4], exact[1:4], atol=0.15)
    assert min(found["trusted_checkpoints"]) >= len(few.steps) - 1


def test_curves_are_drawn_with_their_names_and_marks():
    curve = Curve("dog on cat", np.arange(3.0), np.ones(3))
    svg = draw_curves([0, 10, 20], {"influence": [curve]}, marked={"the split": 10})
    assert svg.count("<svg") == 1 and "dog on cat" in svg and "the split" in svg
    assert svg == draw_curves([0, 10, 20], {"influence": [curve]}, marked={"the split": 10})
