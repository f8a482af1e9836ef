import numpy as np
import pytest
from scipy.stats import pearsonr

from bif.estimate.correlation import correlation


def test_rows_are_correlated_as_scipy_does():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 20)), 1e4 + rng.normal(size=(3, 20))
    expected = [[pearsonr(x, y)[0] for x, y in zip(rows, b, strict=True)] for rows in a]
    assert correlation(a, b) == pytest.approx(np.asarray(expected), abs=1e-9)
    assert correlation(a, -2 * a) == pytest.approx(-np.ones((2, 3)), abs=1e-14)


def test_a_constant_row_has_none_although_its_mean_is_rounded():
    constant, row = np.full((1, 7), 0.1), np.arange(7.0)
    assert (constant - constant.mean()).any()
    assert np.isnan(correlation(constant, row)).all() and np.isnan(correlation(row, constant)).all()
