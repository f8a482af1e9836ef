import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from bif.evaluate import lds, noise_ceiling
from bif.evaluate.leave_one_out import leave_one_out_correlation


def case(seed=0, num_seeds=3):
    """Scores [4, 15] and differences [S, 4, 15] that follow them loosely, signs opposed."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 15))
    return scores, -scores + rng.normal(size=(num_seeds, 4, 15))


def test_exact_effects_give_one_and_effects_of_the_other_sign_minus_one():
    scores, _ = case()
    right = leave_one_out_correlation(scores, 3 - 2 * scores)
    wrong = leave_one_out_correlation(scores, 2 * scores)
    for kind in ("pearson", "spearman"):
        assert np.abs(getattr(right, kind).per_query - 1).max() < 1e-12
        assert np.abs(getattr(wrong, kind).per_query + 1).max() < 1e-12
    assert right.pearson.ci_low == pytest.approx(1, abs=1e-12)


def test_the_exact_case_of_one_dimension_has_correlation_one():
    # mean of N numbers: leaving x_i out moves it by (mean - x_i)/(N-1), to first order by
    # -(x_i - mean)/N: a straight line
    x = np.random.default_rng(0).normal(size=20)
    scores = (x - x.mean())[None] / 20
    without = np.array([[np.delete(x, i).mean() for i in range(20)]])
    assert leave_one_out_correlation(scores, without - x.mean()).pearson.mean == pytest.approx(
        1, abs=1e-12
    )


def test_every_query_agrees_with_scipy_with_seeds_averaged():
    scores, differences = case()
    found = leave_one_out_correlation(scores, differences)
    mean = differences.mean(axis=0)
    for kind, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
        expected = [correlation(-scores[q], mean[q])[0] for q in range(4)]
        assert np.abs(getattr(found, kind).per_query - expected).max() < 1e-12
    assert (found.num_queries, found.num_items, found.num_seeds) == (4, 15, 3)


def test_spearman_is_the_lds_of_leave_one_out_subsets_with_its_interval():
    scores, differences = case()
    found = leave_one_out_correlation(scores, differences, num_bootstrap=200, seed=5)
    outcomes = differences.swapaxes(1, 2) + 7
    expected = lds(scores, ~np.eye(15, dtype=bool), outcomes, num_bootstrap=200, seed=5)
    assert found.spearman.per_query == pytest.approx(expected.per_query, abs=1e-12)
    assert (found.spearman.ci_low, found.spearman.ci_high) == pytest.approx(
        (expected.ci_low, expected.ci_high), abs=1e-12
    )
    assert found.ceiling == pytest.approx(expected.ceiling, abs=1e-12)


def test_pearsons_interval_equals_repeating_rows_in_every_resample():
    scores, differences = case()
    found = leave_one_out_correlation(scores, differences, num_bootstrap=40, confidence=0.8, seed=7)
    rng = np.random.default_rng(7)
    item_counts = rng.multinomial(15, np.full(15, 1 / 15), 40)
    query_counts = rng.multinomial(4, np.full(4, 1 / 4), 40)
    mean = differences.mean(axis=0)
    resampled = np.array(
        [
            np.mean(
                [
                    np.corrcoef(-scores[q, items], mean[q, items])[0, 1]
                    for q in np.repeat(np.arange(4), queries)
                ]
            )
            for items, queries in zip(
                (np.repeat(np.arange(15), count) for count in item_counts),
                query_counts,
                strict=True,
            )
        ]
    )
    expected = np.quantile(resampled, [0.1, 0.9]) + found.pearson.mean - resampled.mean()
    assert (found.pearson.ci_low, found.pearson.ci_high) == pytest.approx(
        tuple(expected), abs=1e-12
    )


def test_resamples_of_equal_items_correlate_zero_although_their_mean_is_rounded():
    # six of seven items are equal, and one resample in three lacks the seventh: 7 * x / 7 is not
    # always x, and two columns of rounding errors would correlate by 1 or -1
    scores = np.repeat(np.random.default_rng(2).normal(size=(6, 2)), [6, 1], axis=1)
    found = leave_one_out_correlation(scores, -scores, num_bootstrap=200, seed=1)
    rng = np.random.default_rng(1)
    items, _ = (rng.multinomial(n, np.full(n, 1 / n), 200) for n in (7, 6))
    varied = (items[:, 6] > 0) & (items[:, 6] < 7)
    expected = np.quantile(varied * 1.0, [0.025, 0.975]) + 1 - varied.mean()
    assert 0 < varied.mean() < 1
    assert (found.pearson.ci_low, found.pearson.ci_high) == pytest.approx(
        tuple(expected), abs=1e-12
    )


def test_ceiling_is_that_of_the_seeds():
    scores, differences = case()
    found = leave_one_out_correlation(scores, differences)
    assert found.ceiling == noise_ceiling(differences.swapaxes(1, 2))
    assert np.isnan(leave_one_out_correlation(scores, differences[0]).ceiling)


def test_a_constant_of_a_query_changes_nothing():
    scores, differences = case()
    plain = leave_one_out_correlation(scores, differences)
    shifted = leave_one_out_correlation(scores, differences + np.arange(4.0)[:, None])
    # numbers near 3 lose 3 eps each; a correlation of 15 of them no more than some hundred eps
    assert np.abs(plain.pearson.per_query - shifted.pearson.per_query).max() < 1e-13


@pytest.mark.parametrize("constant", [0.1, 0.0, 1e6 / 3])
def test_constant_scores_or_differences_correlate_zero_in_every_resample(constant):
    scores, differences = case()
    scores[:] = constant
    for pair in ((scores, differences), (differences[0], np.broadcast_to(scores, (2, 4, 15)))):
        found = leave_one_out_correlation(*pair)
        for estimate in (found.pearson, found.spearman):
            assert (estimate.per_query == 0).all()
            assert estimate.ci_low == estimate.ci_high == 0


def test_shapes_and_values_that_do_not_fit_are_refused():
    scores, differences = case()
    with pytest.raises(ValueError, match=r"scores have shape \(4, 14\) and differences"):
        leave_one_out_correlation(scores[:, 1:], differences)
    with pytest.raises(ValueError, match="at least two items"):
        leave_one_out_correlation(scores[:, :1], differences[:, :, :1])
    with pytest.raises(ValueError, match="confidence is 2"):
        leave_one_out_correlation(scores, differences, confidence=2)
    scores[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"scores hold 1 NaN or infinite .* at \(1, 3\)"):
        leave_one_out_correlation(scores, differences)
    differences[0, 1, 3] = np.nan
    with pytest.raises(ValueError, match=r"differences hold 1 NaN or infinite .* at \(0, 1, 3\)"):
        leave_one_out_correlation(np.zeros((4, 15)), differences)
