"""The separation of a level in the hierarchical toy, and the moments of its curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.kernel.hierarchy import moments, separations
from bif.kernel import FeatureKernel
from bif.stages.hierarchy import ITEMS


@pytest.mark.parametrize(
    ("width", "expected"), [(8, (0, 0)), (4, (1, 0)), (2, (1 / 3, 1)), (1, (0, 0))]
)
def test_a_level_is_separate_where_items_above_it_are_one(width, expected):
    groups = torch.arange(len(ITEMS)) // width  # all alike within, nothing in common across
    kernel = FeatureKernel(torch.eye(8, dtype=torch.float64)[groups], ITEMS, {})
    np.testing.assert_allclose(separations(kernel), expected, atol=1e-12)


def test_items_that_compete_have_a_negative_separation():
    sign = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)  # within each pair of a class
    rows = sign[:, None] * torch.eye(4, dtype=torch.float64).repeat_interleave(2, dim=0)
    kernel = FeatureKernel(rows, ITEMS, {})
    np.testing.assert_allclose(separations(kernel), (-1 / 3, -1), atol=1e-12)


def test_a_curve_peaks_and_then_turns_negative():
    assert moments([1, 2, 3, 4], [-1.0, 0.5, 0.2, -0.1]) == (2.0, 4.0)
    assert moments([1, 2, 3], [0.1, 0.2, 0.3]) == (3.0, math.inf)
