import itertools

import numpy as np
import pytest

import bif
from bif.evaluate import auroc
from small_problems import TINY, classification


def test_auroc_is_that_of_a_case_worked_by_hand():
    # pairs (positive, negative): 3>1 win, 3>2 win, 2>1 win, 2=2 half: 3.5 of 4
    assert auroc([3.0, 2.0, 2.0, 1.0], [True, True, False, False]) == 0.875


def test_auroc_is_one_zero_and_a_half_for_perfect_reversed_and_constant_scores():
    positives = [False, False, True]
    assert auroc([0.0, 1.0, 2.0], positives) == 1.0
    assert auroc([2.0, 1.0, 0.0], positives) == 0.0
    assert auroc([7.0, 7.0, 7.0], positives) == 0.5


def test_auroc_equals_the_count_of_all_pairs_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=40).astype(float)
    positives = rng.random(40) < 0.3
    pairs = itertools.product(scores[positives], scores[~positives])
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert auroc(scores, positives) == pytest.approx(sum(wins) / len(wins), abs=1e-14)


@pytest.mark.parametrize("marked", [0, 3])
def test_a_single_class_is_refused(marked):
    with pytest.raises(ValueError, match=f"positives mark {marked} of 3 items"):
        auroc([1.0, 2.0, 3.0], [marked == 3] * 3)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(3,\) and positives \(2,\)"):
        auroc([1.0, 2.0, 3.0], [True, False])


def test_positives_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match="positives have dtype int64; expected bool"):
        auroc([1.0, 2.0], np.array([1, 0]))


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="scores hold 1 NaN of 3"):
        auroc([1.0, float("nan"), 3.0], [True, False, False])


def test_self_influence_is_refused_since_its_sign_is_the_other_one():
    scores = bif.attribute(classification(), TINY).influence.self_influence()
    moved = np.arange(20) < 4
    with pytest.raises(ValueError, match="pass -scores, or run.suspects"):
        auroc(scores, moved)
    assert auroc(-scores, moved) == pytest.approx(auroc(-scores.values, moved))
