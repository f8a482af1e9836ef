import numpy as np
import pytest
from scipy.stats import spearmanr

from bif.evaluate import compare, lds, noise_ceiling, predict, random_subsets


def noisy_case(seed=0, num_seeds=2):
    """Scores [4, 20], masks [12, 20] and outcomes [S, 12, 4] that follow the scores loosely."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 20))
    masks = random_subsets(20, 12, seed=seed)
    noise = rng.normal(size=(num_seeds, 12, 4))
    return scores, masks, predict(scores, masks).T + 3 * noise


def as_scores_and_masks(predictions_QM):
    """Leave-one-out masks and scores that predict the given numbers up to a constant a query."""
    return -predictions_QM, ~np.eye(predictions_QM.shape[1], dtype=bool)


def test_predict_sums_scores_over_each_subset():
    scores = [[1.0, 2.0, 4.0], [-1.0, 0.0, 8.0]]
    masks = np.array([[True, True, False], [False, True, True]])
    assert np.array_equal(predict(scores, masks), [[3.0, 6.0], [-1.0, 8.0]])


def test_exactly_linear_outcomes_give_one_and_reversed_ones_minus_one():
    scores, masks, _ = noisy_case()
    exact = predict(scores, masks).T
    result = lds(scores, masks, np.exp(0.1 * exact))
    reversed_result = lds(scores, masks, -exact)
    assert np.abs(result.per_query - 1).max() < 1e-12
    assert np.abs(reversed_result.per_query + 1).max() < 1e-12
    assert result.ci_low == pytest.approx(1, abs=1e-12) == result.ci_high


def test_lds_is_that_of_a_case_worked_by_hand():
    # predictions 1, 2, 3, 4 against mean outcomes 2, 1, 3, 4: 1 - 6*2/(4*15) = 0.8
    scores, masks = as_scores_and_masks(np.array([[1.0, 2.0, 3.0, 4.0]]))
    outcomes = np.array([[3.0, 0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])[:, :, None]
    result = lds(scores, masks, outcomes)
    assert result.mean == pytest.approx(0.8, abs=1e-14)
    assert (result.num_seeds, result.num_subsets, result.num_queries) == (2, 4, 1)


def test_every_query_agrees_with_scipy_with_seeds_averaged_and_ties():
    scores, masks, outcomes = noisy_case()
    outcomes = np.round(outcomes)
    result = lds(scores, masks, outcomes)
    predictions = predict(scores, masks)
    expected = [
        spearmanr(predictions[q], outcomes.mean(axis=0)[:, q]).statistic  # pyright: ignore
        for q in range(4)
    ]
    assert np.abs(result.per_query - expected).max() < 1e-12
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-12)


def resampled_by_scipy(scores, masks, outcomes, num_bootstrap, seed):
    """LDS of every resample of 12 subsets and 4 queries, with rows repeated and ranked anew."""
    predictions, means = predict(scores, masks), outcomes.mean(axis=0)
    rng = np.random.default_rng(seed)
    subset_counts = rng.multinomial(12, np.full(12, 1 / 12), num_bootstrap)
    query_counts = rng.multinomial(4, np.full(4, 1 / 4), num_bootstrap)
    resampled = []
    for subsets, queries in zip(subset_counts, query_counts, strict=True):
        rows = np.repeat(np.arange(12), subsets)
        correlations = [
            spearmanr(predictions[q, rows], means[rows, q]).statistic  # pyright: ignore
            for q in np.repeat(np.arange(4), queries)
        ]
        resampled.append(np.mean(correlations))
    return np.array(resampled)


def test_interval_equals_ranking_every_resample_anew():
    case = noisy_case()
    result = lds(*case, num_bootstrap=25, confidence=0.8, seed=7)
    resampled = resampled_by_scipy(*case, 25, 7)
    expected = np.quantile(resampled, [0.1, 0.9]) + result.mean - resampled.mean()
    assert np.abs(np.array([result.ci_low, result.ci_high]) - expected).max() < 1e-12


def test_interval_covers_the_expected_lds_and_resampling_queries_alone_would_not():
    num_subsets, num_queries, rho, num_trials = 40, 10, 0.5, 200
    # expected Spearman correlation of a bivariate normal sample of size M (Moran 1948)
    expected = (
        6 / (np.pi * (num_subsets + 1)) * (np.arcsin(rho) + (num_subsets - 2) * np.arcsin(rho / 2))
    )
    rng = np.random.default_rng(0)
    covered, covered_by_queries_alone = 0, 0
    for trial in range(num_trials):
        shared = rng.normal(size=(2, 1, num_subsets))
        own = rng.normal(size=(2, num_queries, num_subsets))
        prediction, noise = np.sqrt(0.5) * (shared + own)
        outcome = rho * prediction + np.sqrt(1 - rho**2) * noise
        result = lds(*as_scores_and_masks(prediction), outcome.T, num_bootstrap=200, seed=trial)
        covered += result.ci_low <= expected <= result.ci_high
        queries = rng.integers(num_queries, size=(200, num_queries))
        low, high = np.quantile(result.per_query[queries].mean(axis=1), [0.025, 0.975])
        covered_by_queries_alone += low <= expected <= high
    lowest = 0.95 - 5 * np.sqrt(0.95 * 0.05 / num_trials)
    assert covered / num_trials >= lowest
    assert covered_by_queries_alone / num_trials < lowest


def test_constant_outcomes_or_predictions_correlate_zero():
    scores, masks, outcomes = noisy_case()
    outcomes[:, :, 0] = 0.1
    scores[1] = 0.3
    result = lds(scores, masks, outcomes)
    assert result.per_query[0] == 0 and result.per_query[1] == 0
    assert (result.per_query[2:] != 0).all()


def test_a_large_common_offset_of_the_scores_changes_nothing():
    scores, masks, outcomes = noisy_case()
    assert np.array_equal(
        lds(scores + 1000.0, masks, outcomes).per_query, lds(scores, masks, outcomes).per_query
    )


def test_equal_seeds_give_equal_intervals():
    case = noisy_case()
    first, second = lds(*case, seed=3), lds(*case, seed=3)
    assert (first.ci_low, first.ci_high) == (second.ci_low, second.ci_high)


def test_a_difference_is_zero_with_no_width_for_equal_rankings():
    scores, masks, outcomes = noisy_case()
    _, differences = compare({"a": scores, "b": 2 * scores}, masks, outcomes, against="b")
    result = differences["a"]
    assert (result.mean, result.ci_low, result.ci_high) == (0.0, 0.0, 0.0)


def test_a_difference_subtracts_two_lds_resample_by_resample():
    scores, masks, outcomes = noisy_case()
    other = scores + np.random.default_rng(9).normal(size=scores.shape)
    a, b = lds(scores, masks, outcomes), lds(other, masks, outcomes)
    _, differences = compare(
        {"a": scores, "b": other}, masks, outcomes, against="b", num_bootstrap=25, confidence=0.8,
        seed=7,
    )  # fmt: skip
    result = differences["a"]
    assert result.mean == pytest.approx(a.mean - b.mean, abs=1e-14)
    difference = resampled_by_scipy(scores, masks, outcomes, 25, 7)
    difference -= resampled_by_scipy(other, masks, outcomes, 25, 7)
    expected = np.quantile(difference, [0.1, 0.9]) + result.mean - difference.mean()
    assert np.abs(np.array([result.ci_low, result.ci_high]) - expected).max() < 1e-12


def test_ceiling_is_that_of_a_case_worked_by_hand():
    # seeds (1,2,3) and (1,3,2): r = 1/2, reliability 2r/(1+r) = 2/3
    outcomes = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])[:, :, None]
    assert noise_ceiling(outcomes) == pytest.approx(np.sqrt(2 / 3), abs=1e-12)


def test_ceiling_averages_correlations_over_queries_and_counts_constant_ones_as_zero():
    # queries with r = 1 and (constant) r = 0: mean 1/2
    outcomes = np.zeros((2, 3, 2))
    outcomes[:, :, 0] = [1.0, 5.0, 2.0]
    outcomes[:, :, 1] = 0.1
    assert noise_ceiling(outcomes) == pytest.approx(np.sqrt(2 / 3), abs=1e-12)


@pytest.mark.parametrize(("num_seeds", "noise"), [(2, 0.5), (4, 1.0), (3, 2.0)])
def test_ceiling_of_gaussian_outcomes_is_the_root_of_their_reliability(num_seeds, noise):
    num_subsets, num_queries = 60, 400
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1, num_subsets, num_queries))
    outcomes = signal + noise * rng.normal(size=(num_seeds, num_subsets, num_queries))
    r = 1 / (1 + noise**2)
    # a sample correlation has standard deviation (1-r^2)/sqrt(M) and bias -r(1-r^2)/(2M); pairs
    # of seeds are not independent, so they are not counted as further samples
    r_error = 5 * (1 - r**2) / np.sqrt(num_subsets * num_queries) + r * (1 - r**2) / num_subsets
    low, high = (
        np.sqrt(num_seeds * x / (1 + (num_seeds - 1) * x)) for x in (r - r_error, r + r_error)
    )
    assert low <= noise_ceiling(outcomes) <= high


def test_a_perfect_predictor_of_gaussian_outcomes_reaches_the_spearman_form_of_the_ceiling():
    num_subsets, num_queries, num_seeds = 60, 400, 3
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(num_queries, num_subsets))
    outcomes = signal.T + rng.normal(size=(num_seeds, num_subsets, num_queries))
    result = lds(*as_scores_and_masks(signal), outcomes, num_bootstrap=1)
    ceiling = np.sqrt(num_seeds / (1 + num_seeds))
    expected = (
        6
        / (np.pi * (num_subsets + 1))
        * (np.arcsin(ceiling) + (num_subsets - 2) * np.arcsin(ceiling / 2))
    )
    error = 5 * result.per_query.std(ddof=1) / np.sqrt(num_queries)
    assert abs(result.mean - expected) < error


def test_ceiling_is_one_without_noise_zero_for_opposed_seeds_and_nan_for_one_seed():
    outcomes = np.random.default_rng(0).normal(size=(1, 9, 2))
    assert noise_ceiling(np.concatenate([outcomes, outcomes])) == pytest.approx(1, abs=1e-12)
    assert noise_ceiling(np.concatenate([outcomes, -outcomes])) == 0.0
    assert np.isnan(noise_ceiling(outcomes)) and np.isnan(noise_ceiling(outcomes[0]))


def test_lds_reports_the_ceiling_of_its_outcomes():
    scores, masks, outcomes = noisy_case(num_seeds=3)
    assert lds(scores, masks, outcomes).ceiling == noise_ceiling(outcomes)
    assert np.isnan(lds(scores, masks, outcomes[0]).ceiling)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_or_outcomes_that_are_not_finite_are_refused(value):
    scores, masks, outcomes = noisy_case()
    broken = scores.copy()
    broken[1, 3] = value
    with pytest.raises(ValueError, match=r"scores hold 1 NaN or infinite .* at \(1, 3\)"):
        lds(broken, masks, outcomes)
    outcomes[0, 2, 1] = value
    with pytest.raises(ValueError, match=r"outcomes hold 1 NaN or infinite .* at \(0, 2, 1\)"):
        lds(scores, masks, outcomes)


def test_shapes_that_do_not_fit_are_refused():
    scores, masks, outcomes = noisy_case()
    with pytest.raises(ValueError, match=r"scores have shape \(4, 19\); expected \[Q, 20\]"):
        lds(scores[:, 1:], masks, outcomes)
    with pytest.raises(ValueError, match="masks have shape .* dtype int64; expected bool"):
        lds(scores, masks.astype(int), outcomes)
    with pytest.raises(ValueError, match="predict 4 queries and 12 subsets.* hold 12 queries"):
        lds(scores, masks, outcomes.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"outcomes have shape \(12,\)"):
        lds(scores, masks, outcomes[0, :, 0])
    with pytest.raises(ValueError, match="at least two subsets"):
        lds(scores, masks[:1], outcomes[:, :1])


def test_subsets_of_several_sizes_are_refused():
    scores, masks, outcomes = noisy_case()
    masks[0] = True
    with pytest.raises(ValueError, match="subsets hold between 10 and 20 items"):
        lds(scores, masks, outcomes)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_zero_to_one_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence is .*; expected a number between 0 and 1"):
        lds(*noisy_case(), confidence=confidence)


def test_a_bootstrap_without_resamples_is_refused():
    with pytest.raises(ValueError, match="num_bootstrap is 0"):
        lds(*noisy_case(), num_bootstrap=0)
