"""Steering against closed forms, the conditions of its programme, and its noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.susceptibility import Steering, predicted_change, steer, weight_shifts
from bif.susceptibility.least_change import Constraints
from bif.susceptibility.slopes import Slopes
from bif.types import Batch
from exact_problems import Point
from one_weight_problems import QUERIES as POLYNOMIALS
from one_weight_problems import Line, run_of
from small_problems import TINY, classification, labelled, normal

N, WIDTH, NBETA, GAMMA = 30, 12, 30.0, 2.0
ITEMS, QUERIES = normal(N, WIDTH, seed=1), normal(4, WIDTH, seed=2)
QUERY = POLYNOMIALS[1:]
GROUPS = {"a": [0, 1], "b": [2], "c": [3]}


def linear(model: nn.Module, batch: Batch) -> Tensor:
    return cast(Tensor, batch) @ cast(Tensor, model.w)


def linear_problem(items: Tensor = ITEMS, queries: Tensor = QUERIES) -> bif.Problem:
    """Linear losses, whose posterior is a Gaussian of a mean that is linear in the weights."""
    return bif.Problem(
        Point(torch.zeros(items.shape[1]).double()), linear, train=items, queries=queries,
        observables=[bif.Observable("loss", linear, "lower")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def solved() -> bif.Run:
    settings = bif.Settings(
        estimator="response", solver_curvature="hessian", nbeta=NBETA, gamma=GAMMA
    )
    run = bif.attribute(linear_problem(), settings)
    dataset, exact = run.influence.dataset, (-(NBETA / N) / GAMMA * QUERIES @ ITEMS.T).numpy()
    np.testing.assert_allclose(dataset["derivative"][0], exact, rtol=1e-5, atol=1e-7)  # float32
    dataset = dataset.assign(derivative=(dataset["derivative"].dims, exact[None]))
    return replace(run, influence=bif.Influence(dataset))


@pytest.fixture(scope="module")
def sampled() -> bif.Run:
    return draw(0)


def draw(seed: int, items: Tensor = ITEMS, chains: int = 8, draws: int = 40) -> bif.Run:
    """A run with independent draws of the posterior of linear losses."""
    run = bif.attribute(
        linear_problem(items), replace(TINY, nbeta=NBETA, gamma=GAMMA, chains=chains)
    )
    w = normal(chains, draws, items.shape[1], seed=100 + seed) / GAMMA**0.5
    traces = bif.LossTraces.from_arrays(w @ items.T, w @ QUERIES.T)
    return replace(run, traces=traces, influence=bif.Influence(run.influence.dataset, traces))


def achieved(weights: np.ndarray, items: Tensor = ITEMS) -> np.ndarray:
    """What the weights make of the queries' expectations, in closed form, `[Q]`."""
    moved = -(NBETA / len(items)) / GAMMA * items.T @ torch.from_numpy(weights - 1)
    return (QUERIES @ moved).numpy()


@pytest.mark.parametrize("weights", ["clipped", "free"])
@pytest.mark.parametrize("change", [-30.0, 0.3])
def test_where_the_response_is_linear_what_was_intended_is_achieved(
    solved: bif.Run, weights, change
):
    found = steer(solved, "a", change=change, queries=GROUPS, hold=["c"], weights=weights)
    moved = achieved(found.weights)
    assert found.is_reached and found.intended == change
    assert moved[:2].mean() == pytest.approx(change, abs=1e-9)
    assert moved[3] == pytest.approx(0, abs=1e-9)
    assert found.weights.sum() == pytest.approx(N, abs=1e-9)
    assert (found.weights.min() >= 0) == (weights == "clipped" or change > 0)
    predicted = found.dataset["predicted"].sel(observable="loss")
    np.testing.assert_allclose(predicted, [change, moved[2], 0], atol=1e-9)
    flipped = achieved(2 - found.weights)  # mutant: the sign of the derivatives
    assert abs(flipped[:2].mean() - change) > abs(change)


def test_the_change_is_the_least_that_does_it(solved: bif.Run):
    """`delta = Pᵀ (P Pᵀ)⁻¹ change` with P the derivatives less their mean."""
    found = steer(solved, "b", change=0.2, queries=GROUPS)
    slope = (-(NBETA / N) / GAMMA * ITEMS @ QUERIES[2]).numpy()
    slope = slope - slope.mean()
    np.testing.assert_allclose(found.weights - 1, 0.2 * slope / (slope @ slope), atol=1e-10)
    assert found.size == pytest.approx(0.2 / np.linalg.norm(slope), rel=1e-9)
    assert found.share_moved == pytest.approx(np.abs(found.weights - 1).sum() / (2 * N))


def test_costs_groups_and_added_weight_change_what_moves(solved: bif.Run):
    def of(**given: Any) -> np.ndarray:
        return steer(solved, "b", change=0.2, queries=GROUPS, **given).weights - 1

    slope = (-(NBETA / N) / GAMMA * ITEMS @ QUERIES[2]).numpy()
    added = of(total_weight="added", weights="free")
    np.testing.assert_allclose(added, 0.2 * slope / (slope @ slope), atol=1e-10)
    cost = np.linspace(0.5, 2, N)
    costly = of(total_weight="added", weights="free", cost=cost)
    np.testing.assert_allclose(costly, 0.2 * (slope / cost) / (slope**2 / cost).sum(), atol=1e-10)
    still = of(cost={"3": np.inf, "7": np.inf})
    assert still[[3, 7]].tolist() == [0, 0] and still.sum() == pytest.approx(0, abs=1e-10)
    blocks = {"x": range(10), "y": range(10, 15)}
    moved = of(groups=blocks)
    assert np.ptp(moved[:10]) == 0 and np.ptp(moved[10:15]) == 0 and not moved[15:].any()
    assert 10 * moved[0] == pytest.approx(-5 * moved[10])


def test_a_difference_of_two_groups_is_a_target(solved: bif.Run):
    found = steer(solved, {"a": 1.0, "b": -1.0}, change=0.5, queries=GROUPS)
    moved = achieved(found.weights)
    assert moved[:2].mean() - moved[2] == pytest.approx(0.5, abs=1e-9)
    assert "loss of +1·a -1·b is to move by +0.5" in repr(found)


def test_what_is_held_moves_at_most_by_the_tolerance(solved: bif.Run):
    size, far = [], []
    for tolerance in (0.0, 0.1, 10.0):
        found = steer(solved, "a", change=1.0, queries=GROUPS, hold=["c"], tolerance=tolerance)
        size.append(found.size)
        far.append(abs(achieved(found.weights)[3]))
    assert far[0] == pytest.approx(0, abs=1e-9) and far[1] == pytest.approx(0.1, abs=1e-8)
    assert size[0] > size[1] > size[2]
    assert far[2] == pytest.approx(
        abs(achieved(steer(solved, "a", change=1.0, queries=GROUPS).weights)[3]), abs=1e-8
    )


def test_out_of_reach_the_nearest_change_is_intended_and_said(solved: bif.Run):
    """With weights of at least 0 and the same sum, all weight on one item is the most."""
    slope = (-(NBETA / N) / GAMMA * ITEMS @ QUERIES[2]).numpy()
    least = N * slope.min() - slope.sum()
    found = steer(solved, "b", change=2 * least, queries=GROUPS)
    assert found.intended == pytest.approx(least, rel=1e-9) and not found.is_reached
    assert found.reachable == pytest.approx((least, N * slope.max() - slope.sum()), rel=1e-9)
    assert achieved(found.weights)[2] == pytest.approx(least, rel=1e-9)
    assert "the nearest to" in repr(found) and "that can be reached" in repr(found)
    free = steer(solved, "b", change=2 * least, queries=GROUPS, weights="free")
    assert free.is_reached and np.isinf(free.reachable).all() and free.weights.min() < 0


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_clipped_weights_meet_the_conditions_of_karush_kuhn_and_tucker(share: float):
    rng = np.random.default_rng(3)
    rows, cost = rng.standard_normal((3, 200)), rng.uniform(0.5, 2, 200)
    rows[2] = 1
    given = Constraints(rows, np.zeros(3), cost, -rng.uniform(0, 1, 200))
    low, _, at_low, _ = given.reach(0)
    assert rows[0] @ at_low == pytest.approx(low)
    goal = np.asarray([share * low, 0.0, 0.0])
    x = given.least(goal)
    np.testing.assert_allclose(rows @ x, goal, atol=1e-8 * np.abs(low))
    assert (x >= given.lower).all()
    free = x > given.lower + 1e-12
    assert 3 <= free.sum() and (share < 0.1 or not free.all())
    multipliers = np.linalg.lstsq(rows[:, free].T, (cost * x)[free], rcond=None)[0]
    pull = rows.T @ multipliers - cost * x
    np.testing.assert_allclose(pull[free], 0, atol=1e-7)  # stationary
    assert (pull[~free] <= 1e-7).all()  # what is at its bound is pushed against it
    cut = Constraints(rows, np.zeros(3), cost, np.full(200, -np.inf)).least(goal)
    cut = np.maximum(cut, given.lower)  # mutant: cutting the free solution misses the goal
    assert share < 0.1 or np.abs(rows @ cut - goal).max() > 1e-3


def test_what_is_predicted_is_not_what_the_noise_was_fitted_to():
    """Many items and few draws: the derivatives promise too much, and the prediction does not."""
    items, change = normal(200, WIDTH * 4, seed=5), 0.5
    wide = torch.cat([QUERIES, torch.zeros(4, WIDTH * 3).double()], dim=1)
    run = bif.attribute(
        linear_problem(items, wide), replace(TINY, nbeta=200.0, gamma=GAMMA, chains=8)
    )
    predicted, error, true, promised = [], [], [], []
    for seed in range(24):
        w = normal(8, 40, items.shape[1], seed=200 + seed) / GAMMA**0.5
        traces = bif.LossTraces.from_arrays(w @ items.T, w @ wide.T)
        given = replace(run, traces=traces, influence=bif.Influence(run.influence.dataset, traces))
        found = steer(given, "b", change=change, queries=GROUPS, weights="free")
        row = found.dataset.sel(observable="loss", query="b")
        predicted.append(float(row["predicted"]))
        error.append(float(row["predicted_error"]))
        delta = torch.from_numpy(found.weights - 1)
        true.append(float(-(1 / GAMMA) * wide[2] @ items.T @ delta))
        fitted, _ = Slopes.of(given, GROUPS, 8).change(delta.numpy(), np.eye(3))
        promised.append(fitted[1])
    gap = np.asarray(predicted) - true
    spread = gap.std(ddof=1) / len(gap) ** 0.5
    assert abs(gap.mean()) < 5 * spread
    assert np.mean(promised) - np.mean(true) > 5 * spread  # mutant: the same chains judge
    # Errors are those of seven degrees of freedom, less what the two halves share.
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(gap.std(ddof=1), rel=0.35)
    # Shrinking makes the change the one that was asked for, up to the noise of the shrinkage.
    assert np.mean(true) == pytest.approx(change, rel=0.15)


def test_the_second_order_is_that_of_the_shift_by_the_same_weights(sampled: bif.Run):
    found = steer(sampled, "a", change=0.3, queries=GROUPS)
    shifts = weight_shifts(sampled, {"it": found.weights - 1})
    series = predicted_change(sampled, shifts, [1.0], queries=GROUPS).squeeze(["shift", "size"])
    bent = found.dataset["second"] - found.dataset["predicted"]
    np.testing.assert_allclose(bent, series["second"] - series["first"], atol=1e-12)
    assert (found.dataset["second_error"] > found.dataset["predicted_error"]).all()
    assert 0 < found.dataset.attrs["effective_draws"] < 8 * 40


@pytest.fixture(scope="module")
def curved() -> bif.Run:
    """One weight and losses of fourth order; eight chains, each of which integrates."""
    return run_of(Line(torch.ones(6).double()).quantiles(16_000).view(-1, 8).T.contiguous())


@pytest.mark.parametrize("change", [-0.02, 0.02])
def test_to_second_order_more_of_what_was_intended_is_achieved(curved: bif.Run, change: float):
    """By integration, with the weights that are found."""

    def away(order: Any) -> float:
        found = steer(curved, "1", change=change, weights="free", order=order)
        assert found.is_reached
        truth = Line(torch.from_numpy(found.weights)).mean(QUERY) - now
        return abs(float(truth[0]) - change)

    now = Line(torch.ones(6).double()).mean(QUERY)
    assert away("second") < away("first") / 3
    assert away("second") < 0.1 * abs(change)


def test_beyond_the_second_orders_extremum_the_nearest_is_intended(curved: bif.Run):
    found = steer(curved, "1", change=-5.0, weights="free", order="second")
    assert not found.is_reached and -5 < found.intended < 0
    second = float(found.dataset["second"].sel(observable="loss", query="1"))
    assert second == pytest.approx(found.intended, rel=1e-9)
    larger = steer(curved, "1", change=1.2 * found.dataset.attrs["predicted"], weights="free")
    assert float(larger.dataset["second"].sel(observable="loss", query="1")) > second


def test_a_run_without_traces_promises_what_it_was_fitted_to(sampled: bif.Run):
    kept = sampled.manifest.with_entries(keep="sums")
    found = steer(replace(sampled, manifest=kept), "a", change=0.3, queries=GROUPS)
    assert float(found.dataset["predicted"].sel(observable="loss", query="a")) == pytest.approx(0.3)
    assert found.dataset["predicted_error"].isnull().all()
    assert not found.dataset.attrs["cross_fitted"]


def of(run: bif.Run, target: Any = "a", **given: Any) -> Steering:
    return steer(run, target, **{"change": 0.1, "queries": GROUPS, **given})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: of(r, "z"), KeyError, "there are no queries 'z': there are a, b, c"),
        (lambda r: of(r, {}), ValueError, "the target is empty"),
        (lambda r: of(r, {"a": 0.0}), ValueError, "the target is empty"),
        (lambda r: of(r, {"a": np.nan}), ValueError, "factor of 'a' is not finite"),
        (lambda r: of(r, change=0), ValueError, "change is 0, which the weights as they are make"),
        (lambda r: of(r, change=np.nan), ValueError, "change is nan: expected a finite number"),
        (lambda r: of(r, tolerance=-1), ValueError, "tolerance is -1"),
        (lambda r: of(r, hold=["a"]), ValueError, "'a' is to move and to be held"),
        (lambda r: of(r, hold="c"), TypeError, "expected names of groups of queries"),
        (lambda r: of(r, hold=["z"]), KeyError, "there are no queries 'z'"),
        (lambda r: of(r, queries={"a": []}), ValueError, "group of queries 'a' has positions"),
        (lambda r: of(r, observable="size"), KeyError, "size"),
        (lambda r: of(r, weights="cut"), ValueError, "weights"),
        (lambda r: of(r, order="third"), ValueError, "order"),
        (lambda r: of(r, order="second"), ValueError, "order='second' needs the traces"),
        (lambda r: of(r, cost=[np.inf] * N), ValueError, "0 of the items or groups may move"),
        (lambda r: of(r, cost=[np.inf] * (N - 1) + [1]), ValueError, "at least 2 have to"),
        (lambda r: of(r, cost=[0.0] * N), ValueError, "cost has 0 or NaN"),
        (lambda r: of(r, cost=[1.0]), ValueError, r"cost has weights of shape \(1,\)"),
        (lambda r: of(r, cost={"x": 1.0}), KeyError, "there is no such train item"),
        (lambda r: of(r, groups={"x": [0, 1], "y": [1]}), ValueError, "item 1 is in the groups"),
        (lambda r: of(r, groups={"x": [0], "y": []}), ValueError, "items 'y' is empty"),
        (lambda r: of(r, groups={"x": [0], "y": [N]}), ValueError, "position 30, and there are 30"),
        (lambda r: of(r, {"a": 1}, queries={"a": [0], "b": [0]}, hold=["b"]), ValueError,
         "no change of the weights moves the target up, with the others held"),
    ],
)  # fmt: skip
def test_what_cannot_be_steered_is_refused(solved: bif.Run, call: Any, error: type, message: str):
    with pytest.raises(error, match=message):
        call(solved)


def test_derivatives_that_are_noise_and_few_chains_are_refused(sampled: bif.Run):
    block = sampled.traces.blocks[0]
    noise = bif.LossTraces.from_arrays(block.train, normal(8, 40, 4, seed=9))
    with pytest.raises(ValueError, match="the derivatives of the target are noise"):
        of(replace(sampled, traces=noise))
    few = bif.LossTraces.from_arrays(block.train[:3], block.query[:3])
    with pytest.raises(ValueError, match="there are 3 groups of chains"):
        of(replace(sampled, traces=few))


def test_weights_of_training_are_the_bounds():
    rho = torch.linspace(0.1, 1.9, 20).double()
    problem = classification(train=labelled(20, seed=1), train_weights=rho)
    run = bif.attribute(problem, bif.Settings(estimator="response", nbeta=20.0, gamma=5.0))
    with pytest.raises(ValueError, match="weighted its train items"):
        steer(run, "0", change=-0.05)
    found = steer(run, "0", change=-1e6, train_weights=rho)
    assert not found.is_reached and found.weights.min() == pytest.approx(0, abs=1e-9)
    assert found.weights.sum() == pytest.approx(20)
    np.testing.assert_allclose(found.dataset["trained_weight"], rho)
