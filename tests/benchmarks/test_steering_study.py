"""The study of steering: its baselines, and how its figures are made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pages.steering import _missed, _ratio
from benchmarks.steering import of_length


@pytest.mark.parametrize("size", [0.1, 3.0, 12.0])
def test_a_baseline_is_as_long_as_asked_with_weights_of_mean_one(size: float):
    direction = np.random.default_rng(0).standard_normal(200)
    weights = of_length(direction, size)
    assert np.linalg.norm(weights - 1) == pytest.approx(size, rel=1e-6)
    assert weights.min() >= 0 and weights.mean() == pytest.approx(1)
    assert np.corrcoef(weights, direction)[0, 1] > 0.6


def test_a_baseline_goes_as_far_as_its_direction_does():
    weights = of_length(np.r_[-np.ones(10), np.zeros(90)], 50.0)
    np.testing.assert_allclose(weights, np.r_[np.zeros(10), np.full(90, 100 / 90)])


def test_what_is_achieved_and_missed_is_relative_to_what_was_asked():
    near = {"asked": -0.1, "seeds_A": [-0.08, -0.08], "reached": True}
    far = {"asked": 0.4, "seeds_A": [0.56, 0.48], "reached": False}
    rows = [near, far]
    assert _ratio(rows[:1]) == "0.80 ± 0.00" and _ratio(rows).startswith("1.05 ±")
    assert _ratio(rows).endswith("*")
    still = [{"asked": 0.1, "seeds_A": [0.0, 0.0]}]
    assert _missed(still) == "1.00 ± 0.00"
    assert _missed([{"asked": 0.1, "seeds_A": [np.nan, 0.0]}]) == "diverged"
