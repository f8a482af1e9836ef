from itertools import permutations

import numpy as np
import pytest

from bif.evaluate import auroc
from bif.evaluate.tracing import tracing
from bif.types import Better


def of_one_query(scores, planted, k=2, better: Better = "higher"):
    """AUROC, average precision, recall and reciprocal rank of one query."""
    found = tracing([scores], planted, better=better, k=k, num_bootstrap=1)
    return (
        found.auroc.mean,
        found.average_precision.mean,
        found.recall.mean,
        found.reciprocal_rank.mean,
    )


def in_order(planted, k):
    """Average precision, recall and reciprocal rank of items that are in their order already."""
    ranks = np.flatnonzero(planted) + 1
    precision = np.mean([(found + 1) / rank for found, rank in enumerate(ranks)])
    return precision, np.mean(ranks <= k), 1 / ranks[0]


def test_measures_are_those_of_a_case_worked_by_hand():
    # ranks 1 and 3 of 4 are planted: AUROC 3/4, precision (1 + 2/3)/2, recall at 2 1/2, first 1
    expected = (0.75, (1 + 2 / 3) / 2, 0.5, 1.0)
    assert of_one_query([9, 7, 5, 3], [True, False, True, False]) == pytest.approx(
        expected, abs=1e-14
    )


def test_the_most_negative_items_of_a_loss_are_the_most_helpful():
    planted = [True, False, True, False]
    assert of_one_query([-9, -7, -5, -3], planted, better="lower") == of_one_query(
        [9, 7, 5, 3], planted
    )
    assert of_one_query([-9, -7, -5, -3], planted)[0] == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize(
    "scores", [[1, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 0], [3, 2, 2, 2, 2, 1], [3, 3, 3, 1, 1, 1]]
)
@pytest.mark.parametrize(
    "planted", [[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
)
def test_ties_count_as_the_mean_over_all_orders_of_the_tied_items(scores, planted, k):
    scores, planted = np.array(scores, float), np.array(planted, bool)
    orders = [
        order for order in map(list, permutations(range(6))) if (np.diff(scores[order]) <= 0).all()
    ]
    expected = np.mean([in_order(planted[order], k) for order in orders], axis=0)
    assert of_one_query(scores, planted, k)[1:] == pytest.approx(expected, abs=1e-12)


def test_without_ties_all_agree_with_their_definitions_on_many_items():
    rng = np.random.default_rng(0)
    scores, planted = rng.normal(size=300), rng.random(300) < 0.1
    area, precision, recall, reciprocal = of_one_query(scores, planted, k=20)
    order = np.argsort(-scores)
    assert area == auroc(scores, planted)
    assert (precision, recall, reciprocal) == pytest.approx(in_order(planted[order], 20), abs=1e-12)


def test_perfect_scores_are_perfect_and_constant_ones_earn_nothing_from_the_order():
    planted = np.arange(50) < 5
    assert of_one_query(planted.astype(float), planted, k=5) == pytest.approx((1, 1, 1, 1))
    first = of_one_query(np.zeros(50), planted, k=5)
    last = of_one_query(np.zeros(50), planted[::-1], k=5)
    assert first == last
    assert first[0] == 0.5 and first[2] == pytest.approx(5 / 50, abs=1e-14)


def test_queries_may_have_planted_items_of_their_own():
    scores = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    planted = np.array([[True, False, False, False], [False, False, False, True]])
    found = tracing(scores, planted, better="higher", k=1)
    assert found.auroc.per_query.tolist() == [1, 1] and found.recall.mean == 1 and found.k == 1
    shared = tracing(scores, planted[0], better="higher", k=1)
    assert shared.auroc.per_query.tolist() == [1, 0] and shared.auroc.mean == 0.5


def test_intervals_are_percentiles_of_resampled_queries():
    rng = np.random.default_rng(1)
    scores, planted = rng.normal(size=(7, 30)), rng.random(30) < 0.2
    found = tracing(scores, planted, better="lower", k=3, num_bootstrap=50, confidence=0.8, seed=4)
    counts = np.random.default_rng(4).multinomial(7, np.full(7, 1 / 7), 50)
    for measure in (found.auroc, found.average_precision, found.recall, found.reciprocal_rank):
        resampled = np.array(
            [measure.per_query[np.repeat(np.arange(7), count)].mean() for count in counts]
        )
        expected = np.quantile(resampled, [0.1, 0.9]) + measure.mean - resampled.mean()
        assert (measure.ci_low, measure.ci_high) == pytest.approx(tuple(expected), abs=1e-12)
        assert measure.mean == pytest.approx(measure.per_query.mean(), abs=1e-14)


def test_queries_with_nothing_or_everything_planted_are_refused():
    planted = np.array([[True, False], [False, False]])
    with pytest.raises(ValueError, match="query 1 has 0 planted of 2 items"):
        tracing(np.zeros((2, 2)), planted, better="lower", k=1)
    with pytest.raises(ValueError, match="query 0 has 2 planted of 2 items"):
        tracing(np.zeros((2, 2)), [True, True], better="lower", k=1)


def test_marks_k_and_scores_that_do_not_fit_are_refused():
    scores, planted = np.zeros((2, 3)), np.array([True, False, False])
    with pytest.raises(ValueError, match=r"planted has shape \(3,\) and dtype int64"):
        tracing(scores, planted.astype(int), better="lower", k=1)
    with pytest.raises(ValueError, match=r"expected bool \[3\] or \[2, 3\]"):
        tracing(scores, planted[1:], better="lower", k=1)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 3"):
            tracing(scores, planted, better="lower", k=k)
    with pytest.raises(ValueError, match="scores hold 6 NaN"):
        tracing(scores * np.nan, planted, better="lower", k=1)
    with pytest.raises(ValueError, match="better is 'down'"):
        tracing(scores, planted, better="down", k=1)  # type: ignore[arg-type]
