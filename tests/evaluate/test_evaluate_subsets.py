import numpy as np
import pytest

from bif.evaluate import leave_out, random_subsets


def test_random_subsets_all_hold_the_rounded_fraction_of_the_items():
    masks = random_subsets(11, 40, fraction=0.3, seed=0)
    assert masks.shape == (40, 11) and masks.dtype == np.bool_
    assert (masks.sum(axis=1) == 3).all()


def test_random_subsets_hold_every_item_equally_often_within_sampling_error():
    masks = random_subsets(20, 4000, seed=1)
    # each item's count is binomial(4000, 1/2): standard deviation sqrt(1000)
    assert (np.abs(masks.sum(axis=0) - 2000) < 5 * np.sqrt(1000)).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda num, seed: random_subsets(20, num, seed=seed),
        lambda num, seed: leave_out(20, num, num_removed=3, seed=seed),
    ],
    ids=["random_subsets", "leave_out"],
)
def test_more_subsets_extend_the_earlier_ones_and_another_seed_differs(draw):
    assert np.array_equal(draw(30, 5)[:7], draw(7, 5))
    assert not np.array_equal(draw(7, 5), draw(7, 6))


def test_leave_out_removes_the_given_number_in_disjoint_pieces_of_each_sweep():
    masks = leave_out(10, 9, num_removed=3, seed=0)
    assert (masks.sum(axis=1) == 7).all()
    for start in (0, 3, 6):
        assert (~masks[start : start + 3]).sum(axis=0).max() == 1


def test_leaving_out_one_item_takes_every_item_exactly_once():
    masks = leave_out(8, 8, num_removed=1, seed=3)
    assert np.array_equal(np.sort(np.flatnonzero(~masks) % 8), np.arange(8))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction is .*; expected a number between 0 and 1"):
        random_subsets(10, 2, fraction=fraction, seed=0)


def test_a_fraction_that_leaves_subsets_empty_or_whole_is_refused():
    with pytest.raises(ValueError, match="fraction=0.01 leaves 0 of 10 items"):
        random_subsets(10, 2, fraction=0.01, seed=0)
    with pytest.raises(ValueError, match="fraction=0.99 leaves 10 of 10 items"):
        random_subsets(10, 2, fraction=0.99, seed=0)


@pytest.mark.parametrize("num_removed", [0, 10, 11])
def test_removing_nothing_or_everything_is_refused(num_removed):
    with pytest.raises(ValueError, match=f"num_removed={num_removed} leaves"):
        leave_out(10, 2, num_removed=num_removed, seed=0)


def test_more_subsets_than_exist_are_refused():
    with pytest.raises(ValueError, match="only 8 distinct subsets of 7 out of 8 items exist"):
        leave_out(8, 9, num_removed=1, seed=0)


@pytest.mark.parametrize(("num_items", "num_subsets"), [(1, 3), (0, 3), (5, 0)])
def test_too_few_items_or_subsets_are_refused(num_items, num_subsets):
    with pytest.raises(ValueError, match="expected at least 2 items and 1 subset"):
        random_subsets(num_items, num_subsets, seed=0)
