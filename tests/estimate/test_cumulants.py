"""Third cumulants against dense sums, in any chunks, and what their errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import bif
from bif.estimate import cumulants
from bif.estimate.cumulants import (
    ThirdCumulantSums,
    estimate_third_cumulants,
    group_cumulants,
    mean_of_groups,
)
from law_checks import STANDARD_ERRORS
from small_problems import normal

PAIRS = [(0, 0), (0, 1), (2, 1), (3, 3)]


def skewed(draws: int, columns: int, *, seed: int = 0) -> Tensor:
    """Correlated columns that are no Gaussians, `[D, P]`."""
    common = normal(draws, 1, seed=seed)
    x = normal(draws, columns, seed=seed + 1) + common
    return x + 0.4 * x.square()


def dense(rows: Tensor, columns: Tensor, pairs: list[tuple[int, int]]) -> np.ndarray:
    """`n² / ((n-1)(n-2))` times the mean of products of three centred numbers."""
    n = len(rows)
    x, y = (part - part.mean(dim=0) for part in (rows, columns))
    found = [[(x[:, r] * y[:, a] * y[:, b]).mean() for a, b in pairs] for r in range(x.shape[1])]
    return np.asarray(found) * n**2 / ((n - 1) * (n - 2))


def closed(rows: Tensor, columns: Tensor, edges: list[int]) -> cumulants.GroupCumulants:
    """The cumulants by parts, each with sums of its own, merged from the last to the first."""
    parts = []
    for start, stop in zip(edges, edges[1:], strict=False):
        sums = ThirdCumulantSums(PAIRS)
        sums.update(rows[start:stop], columns[start:stop])
        parts.append(sums)
    total = ThirdCumulantSums(PAIRS)
    for part in reversed(parts):
        total.merge(part)
    return total.close()


@pytest.mark.parametrize("edges", [[0, 300], [0, 1, 2, 7, 7, 150, 299, 300]])
def test_parts_that_are_merged_are_the_whole(edges: list[int]):
    rows, columns = skewed(300, 3), skewed(300, 4)
    found = closed(rows, columns, edges)
    np.testing.assert_allclose(found.third, dense(rows, columns, PAIRS), rtol=1e-11)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, columns.T)[:3, 3:], rtol=1e-11)
    with pytest.raises(AssertionError):  # mutant: divided by D in the place of (D-1)(D-2)/D
        np.testing.assert_allclose(
            found.third * (299 * 298 / 300**2), dense(rows, columns, PAIRS), rtol=1e-3
        )


def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch):
    rows, columns = skewed(300, 3), skewed(300, 4)
    whole = closed(rows, columns, [0, 300])
    monkeypatch.setattr(cumulants, "_CHUNK_ELEMENTS", 70)
    np.testing.assert_allclose(closed(rows, columns, [0, 300]).third, whole.third, rtol=1e-12)


def test_large_offsets_cost_no_digits():
    rows, columns = skewed(300, 3), skewed(300, 4)
    exact = dense(rows, columns, PAIRS)
    shifted = closed(rows + 1e6, columns - 1e6, [0, 10, 300]).third
    # A number near 1e6 is rounded to 1e-10, which the products carry to about 1e-9.
    np.testing.assert_allclose(shifted, exact, atol=1e-8)
    naive = ((rows + 1e6)[:, 0] * (columns - 1e6)[:, 0] ** 2).mean()
    assert abs(float(naive)) > 1e17  # what a sum of raw products would have to cancel


def test_the_estimate_has_no_bias_where_draws_are_independent():
    source = torch.Generator().manual_seed(0)
    x = -torch.rand(4000, 5, 1, generator=source, dtype=torch.float64).log()
    trials = torch.stack([closed(one, one.expand(-1, 4), [0, 5]).third for one in x])
    error = trials.std(dim=0) / len(trials) ** 0.5
    exact = 2.0  # of the exponential law
    assert ((trials.mean(dim=0) - exact).abs() < STANDARD_ERRORS * error).all()
    biased = trials.mean(dim=0) * (4 * 3 / 5**2)  # mutant: the mean of the products
    assert ((biased - exact).abs() > STANDARD_ERRORS * error).all()


def test_errors_are_the_spread_over_runs():
    def run(seed: int) -> bif.LossTraces:
        x = skewed(8 * 60, 5, seed=11 * seed).reshape(8, 60, 5)
        return bif.LossTraces.from_arrays(x[..., 1:], x[..., :1])

    found = [estimate_third_cumulants(run(seed), PAIRS) for seed in range(300)]
    values, errors = (torch.stack([getattr(f, n) for f in found]) for n in
                      ("value", "standard_error"))  # fmt: skip
    # The variance of a mean of heavy-tailed variances over 300 runs: known to about a fifth.
    np.testing.assert_allclose(errors.square().mean(dim=0).sqrt(), values.std(dim=0), rtol=0.2)


def test_groups_are_centred_each_about_its_own_mean():
    x = skewed(200, 5).reshape(4, 50, 5)
    levels = 10 * normal(4, 1, 1, seed=5)
    still, moved = (
        list(group_cumulants(bif.LossTraces.from_arrays(y[..., 1:], y[..., :1]), PAIRS))
        for y in (x, x + levels)
    )
    for a, b in zip(still, moved, strict=True):
        np.testing.assert_allclose(a.third, b.third, rtol=1e-9)


def test_rows_may_be_train_columns():
    x = skewed(100, 4).reshape(2, 50, 4)
    traces = bif.LossTraces.from_arrays(x, x[..., :1])
    found = estimate_third_cumulants(traces, PAIRS, rows="train").value
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found[:1], estimate_third_cumulants(traces, PAIRS).value, rtol=1e-12)
    # symmetric: κ₃(0, 2, 1) = κ₃(2, 0, 1)
    np.testing.assert_allclose(found[0, 2], found[2, 1], rtol=1e-9)


def test_groups_weigh_as_their_draws_do():
    value, error = mean_of_groups([torch.tensor([1.0]), torch.tensor([4.0])], [1, 3])
    assert value.item() == pytest.approx(3.25)
    assert error.item() == pytest.approx(((2.25**2 + 3 * 0.75**2) / 4) ** 0.5)
    assert mean_of_groups([torch.ones(1)], [5])[1].isnan().all()


def test_what_cannot_be_is_refused():
    x = skewed(4, 3).reshape(2, 2, 3)
    traces = bif.LossTraces.from_arrays(x, x)
    with pytest.raises(ValueError, match="needs at least 3 draws, got 2"):
        estimate_third_cumulants(traces, [(0, 0)])
    with pytest.raises(ValueError, match=r"3 train columns, and 1 pairs name others, .*\(0, 3\)"):
        estimate_third_cumulants(traces, [(0, 1), (0, 3)])
