"""Third cumulants of pairs and groups against dense sums and integrals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif.susceptibility import group_additivity, predicted_change, third_cumulants, weight_shifts
from one_weight_problems import ITEMS, NBETA, QUERIES, Line, run_of, values
from small_problems import normal

N = len(ITEMS)
ONES = torch.ones(N, dtype=torch.float64)


@pytest.fixture(scope="module")
def exact() -> bif.Run:
    """Draws that integrate: 400,000 quantiles of the posterior, in one chain."""
    return run_of(Line(ONES).quantiles(400_000)[None])


@pytest.fixture(scope="module")
def noisy() -> bif.Run:
    return run_of(0.3 * normal(4, 50, seed=3))


def integrated(query: int, i: int, j: int) -> float:
    """`κ₃(phi, l_i, l_j)` of the posterior, by integration."""
    line = Line(ONES)
    parts = [values(c[None], line.grid)[0] for c in (QUERIES[query], ITEMS[i], ITEMS[j])]
    centred = [part - part @ line.density for part in parts]
    return float((centred[0] * centred[1] * centred[2]) @ line.density)


def test_cumulants_of_pairs_are_integrals(exact: bif.Run):
    found = third_cumulants(exact, [("0", "0"), ("1", 4), (4, "1")])
    expected = [[integrated(q, *pair) for pair in ((0, 0), (1, 4), (4, 1))] for q in range(2)]
    # The outermost of D quantiles stands for a tail that powers of six weigh by z⁶/(15 D): 2e-3.
    np.testing.assert_allclose(found["third_cumulant"], expected, rtol=2e-3)
    np.testing.assert_allclose(
        found["second_derivative"], (NBETA / N) ** 2 * found["third_cumulant"], rtol=1e-12
    )
    assert found["first"].values.tolist() == ["0", "1", "4"]
    assert found["third_cumulant_error"].isnull().all()  # of one chain


def test_the_second_derivative_is_that_of_the_posteriors_mean(exact: bif.Run):
    """By central differences of integrals: off by h² times a fourth derivative of order 1."""
    h = 1e-2

    def mean(first: float, second: float) -> torch.Tensor:
        rho = ONES.clone()
        rho[1] += first
        rho[4] += second
        return Line(rho).mean(QUERIES)

    mixed = (mean(h, h) - mean(h, -h) - mean(-h, h) + mean(-h, -h)) / (4 * h**2)
    found = third_cumulants(exact, [(1, 4)])["second_derivative"].values[:, 0]
    np.testing.assert_allclose(found, mixed, rtol=5e-3)
    with pytest.raises(AssertionError):  # mutant: nbeta/n once
        np.testing.assert_allclose(found / (NBETA / N), mixed, rtol=5e-3)


def test_together_is_the_second_order_of_the_groups_shift(noisy: bif.Run):
    groups = {"a": [0, 3, 5], "one": [2]}
    found = group_additivity(noisy, groups, size=-0.5)
    members = {n: {str(i): 1.0 for i in places} for n, places in groups.items()}
    shift = predicted_change(noisy, weight_shifts(noisy, members, total_weight="added"), [-0.5])
    for mine, theirs in (("first", "first"), ("together", "second")):
        for end in ("", "_error"):
            np.testing.assert_allclose(
                found[mine + end], shift[theirs + end][0, :, :, 0], rtol=1e-8, atol=1e-15
            )
    np.testing.assert_allclose(found["interaction"].sel(group="one"), 0, atol=1e-12)
    assert found["count"].values.tolist() == [3, 1]


def test_the_sum_of_each_is_that_of_items_one_by_one(noisy: bif.Run):
    found = group_additivity(noisy, {"a": [0, 3, 5]}, size=-0.5)
    each = weight_shifts(noisy, {k: {k: 1.0} for k in ("0", "3", "5")}, total_weight="added")
    alone = predicted_change(noisy, each, [-0.5])["second"][0, :, :, 0].sum("shift")
    np.testing.assert_allclose(found["sum_of_each"].sel(group="a"), alone, rtol=1e-9)


def test_the_interaction_is_that_of_all_pairs(noisy: bif.Run):
    found = group_additivity(noisy, {"a": [0, 3, 5]}, size=-0.5)
    pairs = third_cumulants(noisy, [(0, 3), (0, 5), (3, 5)])
    np.testing.assert_allclose(
        found["interaction"].sel(group="a"), 0.25 * pairs["second_derivative"].sum("pair"),
        rtol=1e-9,
    )  # fmt: skip


def test_removing_two_items_together_is_not_the_sum_of_each(exact: bif.Run):
    """The interaction has the sign and about the size that integration gives."""
    found = group_additivity(exact, {"two": [1, 4]}, size=-0.2)

    def moved(*items: int) -> np.ndarray:
        rho = ONES.clone()
        rho[list(items)] -= 0.2
        return (Line(rho).mean(QUERIES) - Line(ONES).mean(QUERIES)).numpy()

    truth = moved(1, 4) - moved(1) - moved(4)
    # The remainder is of third order: about nbeta/n · .2 = .4 of the second.
    np.testing.assert_allclose(found["interaction"].sel(group="two"), truth, rtol=0.4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: third_cumulants(r, []), ValueError, "no pair was given"),
        (lambda r: third_cumulants(r, [("x", 0)]), KeyError, "no train item 'x'"),
        (lambda r: third_cumulants(r, [(0, 6)]), KeyError, "position 6: there are 6"),
        (lambda r: third_cumulants(r, [(0, 1)], observable="x"), KeyError, "no observable 'x'"),
        (lambda r: group_additivity(r, {"a": [0]}, size=np.nan), ValueError, "size is nan"),
        (lambda r: group_additivity(r, {"a": []}), ValueError, "'a' moves no item"),
    ],
)
def test_what_cannot_be_is_refused(noisy: bif.Run, call: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        call(noisy)


def test_a_run_of_tokens_has_no_mean_loss_of_items():
    import token_problems

    run = bif.attribute(token_problems.problem("train"), token_problems.TINY)
    with pytest.raises(ValueError, match="run's columns are tokens: use total_weight='added'"):
        weight_shifts(run, {"a": {str(run.influence.dataset["train_id"].values[0]): 1.0}})
