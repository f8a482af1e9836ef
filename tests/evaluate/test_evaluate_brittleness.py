import numpy as np
import pytest
from scipy.stats import binomtest

from bif.evaluate.brittleness import brittleness

SIZES = [1, 5, 20]


def as_margins(rows):
    """Margins [1, K, Q] of one seed from a list of K values for each query."""
    return np.array(rows, dtype=float).T[None]


def test_the_smallest_size_that_flips_is_found_and_later_recoveries_do_not_count():
    margins = as_margins([[2, 1, -1], [1, -1, 3], [-1, -1, -1], [1, 2, 3]])
    found = brittleness(margins, np.ones((1, 4)), SIZES)
    assert found.smallest.tolist() == [20, 5, 1, np.inf]
    assert found.flipped.tolist() == [0.25, 0.5, 0.75]
    assert found.num_right == 4 and found.sizes.tolist() == SIZES


def test_queries_that_are_wrong_with_all_items_count_as_zero_and_leave_the_curve():
    margins = as_margins([[-1, -1, -1], [1, 1, -1]])
    found = brittleness(margins, np.array([[-0.5, 0.5]]), SIZES)
    assert found.smallest.tolist() == [0, 20]
    assert found.flipped.tolist() == [0, 0, 1] and found.num_right == 1


def test_margins_are_averaged_over_seeds_before_they_are_judged():
    # two seeds of three are wrong, but the mean is right: a vote would flip it
    margins = np.array([[[-1.0]], [[-1.0]], [[3.0]]])
    assert brittleness(margins, np.ones((2, 1)), [4]).smallest.tolist() == [np.inf]
    assert brittleness(-margins, np.ones((2, 1)), [4]).smallest.tolist() == [4]


def test_a_margin_of_zero_is_not_yet_wrong():
    assert brittleness(np.zeros((1, 1, 1)), np.zeros((1, 1)), [4]).smallest.tolist() == [np.inf]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_are_wilsons(confidence):
    num_queries = 13
    margins = np.ones((1, 3, num_queries))
    margins[0, 1, :4] = -1
    margins[0, 2] = -1
    found = brittleness(margins, np.ones((1, num_queries)), SIZES, confidence=confidence)
    for k, flips in enumerate([0, 4, 13]):
        expected = binomtest(flips, num_queries).proportion_ci(confidence, method="wilson")
        assert (found.ci_low[k], found.ci_high[k]) == pytest.approx(tuple(expected), abs=1e-12)


def test_without_a_query_that_is_right_the_curve_is_unknown():
    found = brittleness(-np.ones((1, 3, 2)), -np.ones((1, 2)), SIZES)
    assert np.isnan(found.flipped).all() and np.isnan(found.ci_low).all()
    assert found.num_right == 0 and found.smallest.tolist() == [0, 0]


def test_shapes_sizes_and_values_that_do_not_fit_are_refused():
    margins, baseline = np.ones((2, 3, 4)), np.ones((2, 4))
    with pytest.raises(ValueError, match=r"sizes \(2,\); expected \[S, K, Q\], \[S, Q\] and \[K\]"):
        brittleness(margins, baseline, [1, 2])
    with pytest.raises(ValueError, match=r"baseline \(2, 3\)"):
        brittleness(margins, baseline[:, 1:], SIZES)
    for sizes in ([1, 1, 2], [0, 1, 2]):
        with pytest.raises(ValueError, match="sizes are .*; expected rising numbers from 1 on"):
            brittleness(margins, baseline, sizes)
    with pytest.raises(ValueError, match="confidence is 1.0"):
        brittleness(margins, baseline, SIZES, confidence=1.0)
    baseline[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"baseline hold 1 NaN or infinite .* at \(1, 2\)"):
        brittleness(margins, baseline, SIZES)
