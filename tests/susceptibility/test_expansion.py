"""First and second order against integrals, exact algebra and the draws themselves."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import bif
from bif.estimate import estimate_covariance
from bif.susceptibility import (
    Shifts,
    group_shifts,
    predicted_change,
    susceptibilities,
    weight_shifts,
)
from one_weight_problems import ITEMS, NBETA, QUERIES, Line, run_of, values
from small_problems import TINY, classification, labelled, normal

N = len(ITEMS)
ONES = torch.ones(N, dtype=torch.float64)
TILT = {"tilt": [1.0, -1.0, 0.5, 0.0, -0.5, 2.0]}


@pytest.fixture(scope="module")
def exact() -> bif.Run:
    """Draws that integrate: 40,000 quantiles of the posterior, in one chain."""
    return run_of(Line(ONES).quantiles(40_000)[None])


@pytest.fixture(scope="module")
def noisy() -> bif.Run:
    """Four chains of 50 draws of anything."""
    return run_of(0.3 * normal(4, 50, seed=3))


def changed(weights: Tensor) -> Tensor:
    """E[phi] at weights of the items less that at 1, by integration, `[Q]`."""
    return Line(weights).mean(QUERIES) - Line(ONES).mean(QUERIES)


def test_the_susceptibility_to_one_item_is_its_influence(noisy: bif.Run):
    each = {str(i): {str(i): 1.0} for i in range(N)}
    found = susceptibilities(noisy, weight_shifts(noisy, each, total_weight="added"))
    covariance = estimate_covariance(noisy.traces)
    np.testing.assert_allclose(found["susceptibility"][0], -covariance.value, rtol=1e-9)
    np.testing.assert_allclose(
        found["susceptibility_error"][0], covariance.standard_error, rtol=1e-9
    )
    np.testing.assert_allclose(found["derivative"], NBETA / N * found["susceptibility"], rtol=1e-12)


def test_with_the_mass_preserved_it_is_that_to_the_loss_less_the_mean_loss(noisy: bif.Run):
    found = susceptibilities(noisy, weight_shifts(noisy, {"third": {"2": 1.0}}))
    block = noisy.traces.blocks[0]
    away = block.train[..., 2:3] - block.train.mean(dim=2, keepdim=True)
    expected = estimate_covariance(bif.LossTraces.from_arrays(away, block.query))
    np.testing.assert_allclose(found["susceptibility"][0], -expected.value, rtol=1e-9)
    np.testing.assert_allclose(found["susceptibility_error"][0], expected.standard_error, rtol=1e-9)


def test_a_groups_susceptibility_is_the_sum_of_influences(noisy: bif.Run):
    groups = {"a": [0, 3], "b": [1, 2, 4]}
    found = susceptibilities(noisy, group_shifts(noisy, groups, total_weight="added"))
    summed = bif.Influence(noisy.influence.dataset, noisy.traces).sum_over(groups)
    expected = estimate_covariance(summed.traces or noisy.traces)
    np.testing.assert_allclose(found["susceptibility"][0], -expected.value, rtol=1e-9)


def test_the_second_derivative_is_that_of_theory_with_its_normalisation_term(noisy: bif.Run):
    """`(nbeta/n)² κ₃(phi, l_i - L, l_j - L) + (nbeta/n²) Cov(phi, l_i + l_j - 2 L)`, summed."""
    w = torch.tensor(TILT["tilt"], dtype=torch.float64)
    found = susceptibilities(noisy, weight_shifts(noisy, TILT), num_groups=1)
    x = noisy.traces.blocks[0].train.flatten(0, 1)
    phi = noisy.traces.blocks[0].query.flatten(0, 1)
    draws = len(x)
    phi, away = phi - phi.mean(dim=0), x - x.mean(dim=1, keepdim=True)
    away = away - away.mean(dim=0)
    cubes = torch.einsum("dq,di,dj->qij", phi, away, away) * draws / ((draws - 1) * (draws - 2))
    cross = torch.einsum("dq,di->qi", phi, away) / (draws - 1)
    second = (NBETA / N) ** 2 * cubes + NBETA / N**2 * (cross[:, :, None] + cross[:, None, :])
    expected = torch.einsum("qij,i,j->q", second, w, w)
    np.testing.assert_allclose(found["second_derivative"][0, :, 0], expected, rtol=1e-9)
    assert found["second_derivative_error"].isnull().all()  # of one group of chains
    without = torch.einsum("qij,i,j->q", (NBETA / N) ** 2 * cubes, w, w)  # mutant
    assert (without / expected - 1).abs().max() > 1e-3


def test_the_series_is_that_of_the_reweighted_draws(noisy: bif.Run):
    """Both are of the same draws, so that their derivatives agree but for D - 1 and D - 2."""
    shifts, h = weight_shifts(noisy, TILT), 1e-3
    sizes = [-h, 0.0, h]
    found = predicted_change(noisy, shifts, sizes, num_groups=1)
    derivative = susceptibilities(noisy, shifts, num_groups=1)
    draws = noisy.traces.total_draws
    low, middle, high = found["reweighted"].values[0, :, 0].T
    # Central differences are off by h² times a third derivative, relative to values of order 1.
    np.testing.assert_allclose(
        (high - low) / (2 * h), derivative["derivative"][0, :, 0] * (draws - 1) / draws, rtol=1e-4
    )
    first, third = derivative["derivative"], derivative["second_derivative"]
    gained = float(shifts.weight_gained[0])
    cumulant = third + 2 * gained * first  # without the normalisation term
    biased = cumulant * ((draws - 1) * (draws - 2) / draws**2) - (
        2 * gained * first * (draws - 1) / draws
    )
    np.testing.assert_allclose((high - 2 * middle + low) / h**2, biased[0, :, 0], rtol=1e-3)
    np.testing.assert_allclose(middle, 0, atol=1e-14)
    assert found["effective_draws"][0, 1] == pytest.approx(draws)


@pytest.mark.parametrize("total_weight", ["preserved", "added"])
def test_what_is_left_shrinks_with_the_square_and_the_cube_of_the_shift(
    exact: bif.Run, total_weight
):
    w = torch.tensor(TILT["tilt"], dtype=torch.float64)
    sizes = [0.02, 0.04, 0.1]
    found = predicted_change(exact, weight_shifts(exact, TILT, total_weight=total_weight), sizes)
    rhos = [ONES + t * w for t in sizes]
    truth = [changed(rho * N / rho.sum() if total_weight == "preserved" else rho) for rho in rhos]
    moved = found["reweighted"].values[0, :, 0]
    np.testing.assert_allclose(moved, torch.stack(truth, dim=1), rtol=2e-3)
    # Held against the draws themselves, whose cumulants divide by D.
    D = exact.traces.total_draws
    linear = found["first"].values[0, :, 0] * (D - 1) / D
    square = (found["second"] - found["first"]).values[0, :, 0] * (D - 1) * (D - 2) / D**2
    first, second, mutant = (
        np.abs(linear + factor * square - moved) for factor in (0.0, 1.0, 2.0)
    )  # the mutant is without its ½
    # The remainder is c t^(k+1) (1 + O(t)): its exponent is known to a few times the shift.
    for gap, power in ((first, 2), (second, 3), (mutant, 2)):
        assert np.log2(gap[:, 1] / gap[:, 0]) == pytest.approx(power, abs=0.1)
    assert (second < first / 3).all()


def test_the_normalisation_is_taken_into_account_to_all_orders(exact: bif.Run):
    """Removing two of the six items is one and a half times their share's step."""
    shifts = group_shifts(exact, {"two": [1, 4]})
    np.testing.assert_allclose(shifts.steps(torch.tensor([-1.0, 1.0]).double()), [[-1.5, 0.75]])
    found = predicted_change(exact, shifts, [-1.0, 1.0])
    rho = ONES.clone()
    rho[[1, 4]] = 0
    truth = torch.stack([changed(rho * 1.5), changed((2 * ONES - rho) * N / 8)], dim=1).numpy()
    np.testing.assert_allclose(found["reweighted"].values[0, :, 0], truth, rtol=5e-3)
    away = np.abs(found["second"].values[0, :, 0] - truth)
    assert (away < np.abs(found["first"].values[0, :, 0] - truth)).all()


def test_weights_at_a_size_are_those_of_training(noisy: bif.Run):
    shifts = group_shifts(noisy, {"two": [1, 4], "one": [0]})
    at = shifts.weights_at(-1.0)
    np.testing.assert_allclose(at[0], [1.5, 0, 1.5, 1.5, 0, 1.5])
    np.testing.assert_allclose(shifts.weights_at(0.5).sum(dim=1), 6)
    added = group_shifts(noisy, {"two": [1, 4]}, total_weight="added").weights_at(0.5)
    np.testing.assert_allclose(added[0], [1, 1.5, 1, 1, 1.5, 1])
    with pytest.raises(ValueError, match="gives an item the weight"):
        shifts.weights_at(-1.5)


def test_errors_are_the_spread_over_runs():
    def of(seed: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.random.default_rng(seed).random((8, 200))
        w = torch.from_numpy(np.quantile(pool, places))
        run = bif.Run(base.influence, traces_of(w), base.diagnostics, base.summary, base.manifest)
        found = predicted_change(run, shifts, [0.3])
        names = ("first", "second", "reweighted")
        return tuple(
            np.stack([found[f"{n}{end}"].values[0, :, 0, 0] for n in names])
            for end in ("", "_error")
        )  # type: ignore[return-value]

    base = run_of(0.3 * normal(4, 50, seed=3))
    shifts, pool = weight_shifts(base, TILT), Line(ONES).quantiles(4000).numpy()
    change, error = (np.stack(x) for x in zip(*(of(seed) for seed in range(120)), strict=True))
    np.testing.assert_allclose(
        np.sqrt((error**2).mean(axis=0)), change.std(axis=0, ddof=1), rtol=0.25
    )


def traces_of(w: Tensor) -> bif.LossTraces:
    train, query = (values(x, w.flatten()).T.reshape(*w.shape, -1) for x in (ITEMS, QUERIES))
    return bif.LossTraces.from_arrays(train, query)


def test_means_of_queries_are_observables(noisy: bif.Run):
    shifts = weight_shifts(noisy, TILT)
    each = predicted_change(noisy, shifts, [0.2])
    mean = predicted_change(noisy, shifts, [0.2], queries={"all": [0, 1]})
    for name in ("first", "second", "reweighted", "mean"):
        np.testing.assert_allclose(mean[name].sel(query="all"), each[name].mean("query"), rtol=1e-9)
    assert mean["mean"].values == pytest.approx(noisy.traces.blocks[0].query.mean().item())


def test_weights_of_training_and_candidates_are_taken_into_account():
    x, y = labelled(20, seed=1)
    rho = torch.linspace(0.5, 1.5, 20).double()
    problem = classification(
        train=(x, y), candidates={"new": labelled(3, seed=9)}, train_weights=rho
    )
    run = bif.attribute(problem, TINY)
    with pytest.raises(ValueError, match="weighted its train items"):
        weight_shifts(run, {"a": {"3": 1.0}})
    shifts = weight_shifts(run, {"a": {"new/1": 2.0}}, train_weights=rho)
    assert shifts.trained.weights.tolist() == [*rho.tolist(), 0, 0, 0]
    # d = w - (W/S) rho: what is new takes its weight from what was trained on, by its weight
    expected = torch.zeros(23).double()
    expected[21] = 2.0
    expected[:20] -= 2.0 / 20 * rho
    np.testing.assert_allclose(shifts.directions[0], expected, atol=1e-15)
    with pytest.raises(
        ValueError, match="at size -0.1 the shift 'a' gives an item the weight -0.2"
    ):
        predicted_change(run, shifts, [-0.1])
    with pytest.raises(ValueError, match="train_weights must be 20 finite numbers"):
        weight_shifts(run, {"a": {"3": 1.0}}, train_weights=[1.0])


def test_groups_are_named_by_the_items_texts():
    x, y = labelled(20, seed=1)
    items = bif.Items((x, y), labels=[str(int(label)) for label in y])
    run = bif.attribute(classification(train=items), TINY)
    shifts = group_shifts(run)
    assert shifts.names == ("0", "1", "2")
    np.testing.assert_array_equal(shifts.weights[1], (y == 1).double())
    found = susceptibilities(run, shifts)
    assert found["susceptibility"].sizes == {"observable": 2, "query": 5, "shift": 3}
    # The classes' shifts add up to that of everything, which changes nothing.
    np.testing.assert_allclose(found["susceptibility"].sum("shift"), 0, atol=1e-12)
    assert found["through"].values.tolist() == ["", ""]


def made(run: bif.Run, **weights) -> Shifts:
    return weight_shifts(run, weights)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: made(r), ValueError, "no shift was given"),
        (lambda r: made(r, a=[1.0]), ValueError, r"shape \(1,\): expected 6, one a train column"),
        (lambda r: made(r, a={"x": 1.0}), KeyError, "'a' weights 'x', and there is no such"),
        (lambda r: made(r, a=[np.nan] * 6), ValueError, "weights of 'a' are NaN or infinite"),
        (lambda r: made(r, a=[0.0] * 6), ValueError, "'a' moves no item"),
        (lambda r: group_shifts(r, {"g": []}), ValueError, "'g' moves no item"),
        (lambda r: group_shifts(r, {"g": range(6)}), ValueError, "'g' weights all train items"),
        (lambda r: group_shifts(r, {"g": [6]}), ValueError, "position 6, and there are 6 train"),
        (lambda r: group_shifts(r, "label"), KeyError, "train items have no 'label'"),
        (lambda r: predicted_change(r, made(r, a={"0": 1}), []), ValueError, "at least one, got"),
        (
            lambda r: predicted_change(r, made(r, a={"0": 1}), [-1.5]), ValueError,
            "at size -1.5 the shift 'a' gives an item the weight -0.5",
        ),
        (
            lambda r: predicted_change(
                r, weight_shifts(r, TILT), [0.1], queries={"q": []}
            ), ValueError, "group of queries 'q' has positions",
        ),
        (
            lambda r: group_shifts(r, {"g": range(6)}, total_weight=cast(Any, "kept")), ValueError,
            "total_weight is .kept.: expected one of preserved, added",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(noisy: bif.Run, call, error, message):
    with pytest.raises(error, match=message):
        call(noisy)


def test_shifts_of_another_run_and_runs_without_traces_are_refused(noisy: bif.Run):
    run = bif.attribute(classification(), TINY)
    with pytest.raises(ValueError, match="shifts are of 6 other train columns than the run's 20"):
        susceptibilities(run, weight_shifts(noisy, TILT))
    sums = bif.attribute(classification(), TINY, keep="sums")
    with pytest.raises(ValueError, match="the run kept sums alone"):
        weight_shifts(sums, {"a": {"0": 1.0}})
    solved = bif.attribute(classification(), bif.Settings(estimator="response"))
    with pytest.raises(ValueError, match="the run was solved"):
        weight_shifts(solved, {"a": {"0": 1.0}})
