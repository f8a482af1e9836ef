import numpy as np
import pytest

from bif.evaluate.removal import helpfulness, removal_curve, removal_masks

SCORES = np.array([[-3.0, 1.0, -1.0, 0.0], [2.0, -5.0, 4.0, -6.0]])


def case(seed=0, num_seeds=3, num_sizes=2, num_random=4, num_queries=5):
    """Outcomes without the top [S, K, Q], without random items [S, K, R, Q], with all [S, Q]."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(num_seeds, num_sizes, num_queries)) + 1,
        rng.normal(size=(num_seeds, num_sizes, num_random, num_queries)),
        rng.normal(size=(2, num_queries)),
    )


def removed(masks):
    return [np.flatnonzero(~mask).tolist() for mask in masks]


def test_a_loss_loses_its_most_negative_items_and_a_margin_its_most_positive():
    of_loss = removal_masks(SCORES, [1, 2], better="lower", control_seed=0, num_random=1)
    of_margin = removal_masks(SCORES, [1, 2], better="higher", control_seed=0, num_random=1)
    assert removed(of_loss.masks[0, :2]) == [[0], [3]]
    assert removed(of_loss.masks[1, :2]) == [[0, 2], [1, 3]]
    assert removed(of_margin.masks[0, :2]) == [[1], [2]]
    assert removed(of_margin.masks[1, :2]) == [[1, 3], [0, 2]]


def test_ties_go_in_the_order_of_the_items():
    masks = removal_masks(np.zeros(5), [2], better="lower", control_seed=0, num_random=1).masks
    assert removed(masks[0, :1]) == [[0, 1]]


def test_masks_of_a_size_lack_that_many_items_and_larger_sizes_lack_them_too():
    found = removal_masks(SCORES, [1, 3], better="lower", control_seed=3, num_random=6)
    assert found.masks.shape == (2, 8, 4) and found.num_rankings == 2 and found.sizes == (1, 3)
    assert (found.masks.sum(axis=2) == [[3] * 8, [1] * 8]).all()
    assert not (found.masks[1] & ~found.masks[0]).any()


def test_controls_depend_on_seed_and_index_alone():
    few = removal_masks(SCORES, [2], better="lower", control_seed=3, num_random=2).masks[0, 2:]
    more = removal_masks(SCORES[:1], [2], better="higher", control_seed=3, num_random=9).masks
    other = removal_masks(SCORES, [2], better="lower", control_seed=4, num_random=9).masks
    assert np.array_equal(few, more[0, 1:3])
    assert not np.array_equal(other[0, 2:], more[0, 1:])


def test_controls_remove_every_item_equally_often():
    masks = removal_masks(np.zeros(10), [3], better="lower", control_seed=0, num_random=2000).masks
    times = (~masks[0, 1:]).sum(axis=0)
    # hypergeometric: mean 600 of 2000, variance 2000 * .3 * .7
    assert np.abs(times - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_split_gives_each_query_its_own_removals_and_all_controls():
    found = removal_masks(SCORES, [1, 2], better="lower", control_seed=0, num_random=3)
    outcomes = np.arange(2 * 4 * 5 * 2, dtype=float).reshape(2, 4, 5, 2)  # K, S, P + R, Q
    top, random = found.split(outcomes)
    assert top.shape == (4, 2, 2) and random.shape == (4, 2, 3, 2)
    for s in range(4):
        for k in range(2):
            assert top[s, k].tolist() == [outcomes[k, s, 0, 0], outcomes[k, s, 1, 1]]
            assert np.array_equal(random[s, k], outcomes[k, s, 2:])


def test_one_ranking_serves_all_queries():
    found = removal_masks(SCORES[0], [1], better="lower", control_seed=0, num_random=1)
    outcomes = np.arange(6.0).reshape(1, 1, 2, 3)
    top, random = found.split(outcomes)
    assert top.tolist() == [[[0.0, 1.0, 2.0]]] and random.tolist() == [[[[3.0, 4.0, 5.0]]]]


def test_split_refuses_outcomes_of_other_masks_or_queries():
    found = removal_masks(SCORES, [1, 2], better="lower", control_seed=0, num_random=3)
    for shape in [(2, 4, 5, 3), (2, 4, 4, 2), (3, 4, 5, 2), (4, 5, 2)]:
        with pytest.raises(ValueError, match=r"outcomes have shape .*; expected \[2, S, 5, 2\]"):
            found.split(np.zeros(shape))


def test_changes_are_means_over_seeds_queries_and_controls_less_the_baseline():
    top, random, baseline = case()
    curve = removal_curve(top, random, baseline, num_bootstrap=3)
    start = baseline.mean()
    assert curve.top.mean == pytest.approx(top.mean(axis=(0, 2)) - start, abs=1e-12)
    assert curve.random.mean == pytest.approx(random.mean(axis=(0, 2, 3)) - start, abs=1e-12)
    assert curve.difference.mean == pytest.approx(curve.top.mean - curve.random.mean, abs=1e-12)
    assert curve.per_query.shape == (5, 2)
    assert curve.per_query.mean(axis=0) == pytest.approx(curve.difference.mean, abs=1e-12)


def test_intervals_equal_resampling_queries_and_controls_by_hand():
    top, random, baseline = case()
    curve = removal_curve(top, random, baseline, num_bootstrap=40, confidence=0.8, seed=7)
    rng = np.random.default_rng(7)
    queries = rng.multinomial(5, np.full(5, 1 / 5), 40)
    controls = rng.multinomial(4, np.full(4, 1 / 4), 40)
    resampled = []
    for q, r in zip(queries, controls, strict=True):
        q, r = np.repeat(np.arange(5), q), np.repeat(np.arange(4), r)
        gone = top[:, :, q].mean(axis=(0, 2)) - baseline[:, q].mean()
        control = random[:, :, r][:, :, :, q].mean(axis=(0, 2, 3)) - baseline[:, q].mean()
        resampled.append((gone, control, gone - control))
    for found, values in zip(
        (curve.top, curve.random, curve.difference), np.swapaxes(resampled, 0, 1), strict=True
    ):
        expected = np.quantile(values, [0.1, 0.9], axis=0) + found.mean - values.mean(axis=0)
        assert np.abs(np.array([found.ci_low, found.ci_high]) - expected).max() < 1e-12


def test_a_common_shift_of_all_outcomes_changes_nothing():
    top, random, baseline = case()
    plain, shifted = (
        removal_curve(top + c, random + c, baseline + c).difference for c in (0.0, 100.0)
    )
    # each of the numbers near 100 is exact to 100 eps, and so are their means
    assert np.abs(plain.ci_low - shifted.ci_low).max() < 100 * 100 * np.finfo(float).eps


def test_helpfulness_flips_what_should_be_low_and_refuses_what_has_no_direction():
    assert np.array_equal(helpfulness(SCORES, "lower"), -SCORES)
    assert np.array_equal(helpfulness(SCORES[0], "higher"), SCORES[:1])
    with pytest.raises(ValueError, match="better is None: expected one of lower"):
        helpfulness(SCORES, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scores have shape \(\)"):
        helpfulness(1.0, "lower")
    with pytest.raises(ValueError, match="scores hold 1 NaN"):
        helpfulness([1.0, np.nan], "lower")


@pytest.mark.parametrize("sizes", [[], [0], [2, 2], [3, 1], [4]])
def test_sizes_that_do_not_rise_or_leave_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes are .*; expected rising numbers from 1 to 3"):
        removal_masks(SCORES, sizes, better="lower", control_seed=0, num_random=1)


def test_a_curve_without_controls_is_refused():
    with pytest.raises(ValueError, match="num_random is 0"):
        removal_masks(SCORES, [1], better="lower", control_seed=0, num_random=0)


def test_outcomes_that_do_not_fit_or_are_not_finite_are_refused():
    top, random, baseline = case()
    for wrong in [(top[0], random, baseline), (top, random[:, :1], baseline)]:
        with pytest.raises(ValueError, match=r"expected \[S, K, Q\], \[S, K, R, Q\] and \[S, Q\]"):
            removal_curve(*wrong)
    with pytest.raises(ValueError, match=r"baseline \(2, 4\)"):
        removal_curve(top, random, baseline[:, 1:])
    random[0, 1, 2, 3] = np.inf
    with pytest.raises(ValueError, match=r"random hold 1 NaN or infinite .* at \(0, 1, 2, 3\)"):
        removal_curve(top, random, baseline)


def test_settings_of_the_bootstrap_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="confidence is 95"):
        removal_curve(*case(), confidence=95)
    with pytest.raises(ValueError, match="num_bootstrap is 0"):
        removal_curve(*case(), num_bootstrap=0)
