"""Learning coefficients against integrals at the same nbeta and gamma, and against known limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

import bif
import token_problems
from bif.susceptibility import learning_coefficient
from bif.susceptibility.known_coefficients import (
    deep_linear_network,
    normal_crossing,
    reduced_rank_regression,
)
from exact_problems import (
    CENTER,
    SAMPLER_MUTANTS,
    TRAIN,
    GaussianPosterior,
    mutate_baoab,
    quadratic_problem,
    settings_for,
)
from law_checks import STANDARD_ERRORS
from one_weight_problems import ITEMS, NBETA, Line, run_of
from singular_problems import (
    crossing_problem,
    crossing_reference,
    linear_network,
    network_problem,
    settings,
    three_layer_reference,
    two_layer_reference,
)
from small_problems import TINY, classification, normal

ONES = torch.ones(len(ITEMS), dtype=torch.float64)


def assert_coefficient(run: bif.Run, expected: float) -> None:
    """Within five standard errors, of which one is at most 5 %, from 64 groups of chains.

    Gate: 5,000 effective draws of the mean loss.
    """
    found = learning_coefficient(run, num_groups=64)
    assert found.effective_draws > 5000
    assert found.standard_error < 0.05 * expected
    gap = abs(found.value - expected)
    assert gap < STANDARD_ERRORS * found.standard_error, f"off by {gap / found.standard_error:.1f}"


OFF = pytest.raises(AssertionError, match="off by")

# --- The formula ----------------------------------------------------------------------------------


def test_it_is_nbeta_times_the_mean_rise_of_the_loss():
    run = run_of(Line(ONES).quantiles(40_000)[None])
    found = learning_coefficient(run)
    line = Line(ONES)
    assert found.value == pytest.approx(NBETA * float(line.mean(ITEMS).mean()), rel=1e-3)
    assert found.center_loss == 0 and np.isnan(found.standard_error) and np.isnan(found.low)


def test_its_error_is_that_of_the_chains_means():
    w = 0.3 * normal(8, 50, seed=3)
    found = learning_coefficient(run_of(w))
    means = run_of(w).traces.blocks[0].train.mean(dim=(1, 2))
    assert found.standard_error == pytest.approx(float(NBETA * means.std() / 8**0.5))
    assert found.high - found.value == pytest.approx(2.3646 * found.standard_error, rel=1e-4)
    assert str(found).endswith("at nbeta 12, gamma 0.5, NOT TRUSTED")
    assert found.as_dict()["draws"] == 400


def test_where_losses_are_quadratic_gamma_hides_directions_flatter_than_the_damping():
    """`½ Σ nbeta·h / (nbeta·h + gamma)`, from draws of the Gaussian itself."""
    h, gamma, draws = torch.tensor([4.0, 1.0, 0.01]).double(), 1.0, 200_000
    w = normal(4, draws // 4, 3, seed=8) / (NBETA * h + gamma).sqrt()
    base = run_of(0.3 * normal(4, 50, seed=3))
    losses = (0.5 * w.square() @ h)[..., None].expand(-1, -1, len(ITEMS))
    dataset = base.influence.dataset.assign_attrs(gamma=gamma)
    traces = bif.LossTraces.from_arrays(losses, losses[..., :2])
    run = replace(base, traces=traces, influence=bif.Influence(dataset, traces))
    found = learning_coefficient(run)
    expected = float(0.5 * (NBETA * h / (NBETA * h + gamma)).sum())
    # L is a sum of three χ², whose variance is at most 3/2 a draw in these units.
    assert found.value == pytest.approx(expected, abs=STANDARD_ERRORS * (1.5 / draws) ** 0.5)
    assert expected < 1.05 < 1.5  # of three weights: the flattest does not count


def test_weights_of_training_enter_the_mean_loss():
    rho = torch.linspace(0.5, 1.5, 20).double()
    run = bif.attribute(classification(train_weights=rho), TINY)
    found = learning_coefficient(run, train_weights=rho)
    block = run.traces.blocks[0].train.double()
    assert found.mean_loss == pytest.approx(float((block @ rho).mean() / 20))
    with pytest.raises(ValueError, match="weighted its train items"):
        learning_coefficient(run)


def test_what_has_no_coefficient_is_refused():
    ball = bif.attribute(classification(), replace(TINY, nbeta=0.0))
    with pytest.raises(ValueError, match="nbeta is 0"):
        learning_coefficient(ball)
    tokens = bif.attribute(token_problems.problem("train"), token_problems.TINY)
    with pytest.raises(ValueError, match="mean loss is of items, and the run's train columns are"):
        learning_coefficient(tokens)
    solved = bif.attribute(classification(), bif.Settings(estimator="response"))
    with pytest.raises(ValueError, match="the run was solved"):
        learning_coefficient(solved)


# --- A center that is no minimum ------------------------------------------------------------------


def test_a_gradient_at_the_center_is_told_with_what_it_takes_from_the_value():
    """Of quadratic losses, whose Gaussian is known: with w* off the minimum, and at it."""
    nbeta, gamma = 40.0, 4.0
    lowest = GaussianPosterior.of(TRAIN, CENTER, nbeta=1.0, gamma=0.0).mean
    for center, leans in ((CENTER, True), (lowest, False)):
        posterior = GaussianPosterior.of(TRAIN, center, nbeta=nbeta, gamma=gamma)
        precision = torch.linalg.inv(posterior.covariance)
        asked = replace(settings_for(precision, nbeta=nbeta, gamma=gamma), draws=15)
        found = learning_coefficient(bif.attribute(quadratic_problem(center), asked))
        expected = posterior.expectation(TRAIN).mean() - half_squares(center)
        assert abs(found.value - nbeta * expected) < STANDARD_ERRORS * found.standard_error
        away, slope = posterior.mean - center, TRAIN.gradient(center).mean(dim=0)
        downhill = float(nbeta * slope @ away)
        assert abs(found.downhill - downhill) <= STANDARD_ERRORS * found.downhill_error + 1e-9
        bend = nbeta / 2 * away @ TRAIN.hessian.mean(dim=0) @ away
        taken = downhill + float(bend)  # what the gradient takes from the value
        assert 2 * taken <= downhill + 1e-9 and taken >= downhill - 1e-9
        assert found.leans_downhill is leans and found.as_dict()["leans_downhill"] is leans
        assert ("TOO LOW by" in str(found)) is leans
        mutant = replace(found, downhill=-found.downhill)
        assert not mutant.leans_downhill


def half_squares(center: torch.Tensor) -> torch.Tensor:
    """The mean loss at the center."""
    away = center - TRAIN.minimum
    return 0.5 * (away * TRAIN.gradient(center)).sum(dim=1).mean()


def test_a_gradient_that_weight_decay_balances_is_no_slope_of_the_draws():
    """At the minimum of the loss with its decay nothing pulls, though ∇L(w*) is not 0."""
    decay = 0.5
    lowest = GaussianPosterior.of(TRAIN, torch.zeros(3).double(), nbeta=1.0, gamma=decay).mean
    posterior = GaussianPosterior.of(TRAIN, lowest, nbeta=40.0, gamma=40.0 * decay + 4.0)
    asked = settings_for(torch.linalg.inv(posterior.covariance), nbeta=40.0, gamma=4.0)
    run = bif.attribute(quadratic_problem(lowest), replace(asked, weight_decay=decay, draws=15))
    assert not learning_coefficient(run).leans_downhill


# --- Known values ---------------------------------------------------------------------------------


def test_two_published_formulas_agree_on_all_small_networks():
    for M, H, N in product(range(1, 7), repeat=3):
        for rank in range(min(M, H, N) + 1):
            assert reduced_rank_regression(M, H, N, rank) == deep_linear_network([M, H, N], rank)


def test_known_values_of_regular_and_crossing_networks():
    assert deep_linear_network([3, 4], 0) == (6.0, 1)  # one layer is regular: half its weights
    for depth in range(1, 6):  # scalars: w_1² … w_K²
        assert deep_linear_network([1] * (depth + 1), 0) == normal_crossing([1] * depth)
    assert deep_linear_network([1, 1, 1, 1], 1) == (0.5, 1)
    # A hidden layer wider than all maps need: as if the map itself were the weights.
    assert reduced_rank_regression(2, 9, 3, 1) == (3.0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_crossing([0, 0]), "one above 0"),
        (lambda: normal_crossing([]), "one above 0"),
        (lambda: reduced_rank_regression(2, 1, 2, 2), "rank 2: expected widths of at least 1"),
        (lambda: deep_linear_network([2], 0), "inputs and outputs at least"),
        (lambda: deep_linear_network([2, 0], 0), "widths of at least 1"),
    ],
)
def test_sizes_that_no_network_has_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_crossings_coefficient_tends_to_the_known_one():
    """`λ - nbeta·E[L]` falls as nbeta^(-1/2), the next power, for w⁴; nothing is sampled."""
    limit, _ = normal_crossing([2])
    gaps = [limit - crossing_reference([2], nbeta=x, gamma=1.0) for x in (1e3, 4e3)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


# --- Sampled: the reference has the same nbeta and gamma ------------------------------------------


def quartic(seed: int = 0) -> bif.Run:
    """w⁴ in one dimension: λ = ¼."""
    asked = settings(nbeta=1000.0, gamma=1.0, step_size=0.05, thin=20)
    return bif.attribute(crossing_problem([2]), replace(asked, draws=30, seed=seed))


def test_a_quartic_weight_counts_a_quarter(unchecked: None, no_page: None):
    expected = crossing_reference([2], nbeta=1000.0, gamma=1.0)
    assert expected == pytest.approx(normal_crossing([2])[0], rel=0.02)
    assert_coefficient(quartic(), expected)


@pytest.mark.slow
@SAMPLER_MUTANTS
def test_a_sampler_that_is_wrong_has_another_coefficient(monkeypatch, mutation):
    mutate_baoab(monkeypatch, **mutation)
    with OFF:
        assert_coefficient(quartic(), crossing_reference([2], nbeta=1000.0, gamma=1.0))


@pytest.mark.slow
def test_two_weights_that_cross_have_that_of_their_integral():
    """w₁² w₂²: λ = ½, from far below, as the multiplicity is two."""
    expected = crossing_reference([1, 1], nbeta=300.0, gamma=1.0)
    assert expected == pytest.approx(0.374, abs=5e-4)  # as the docs say
    run = bif.attribute(
        crossing_problem([1, 1]), settings(nbeta=300.0, gamma=1.0, step_size=0.02, thin=60)
    )
    assert_coefficient(run, expected)
    with OFF:  # mutant: the limit of much data in its place
        assert_coefficient(run, normal_crossing([1, 1])[0])


def rank_one() -> nn.Sequential:
    """Two layers of two units each, of which one maps nothing: A has rank 1, and so does B."""
    model = linear_network([2, 2, 2], scale=0.0)
    with torch.no_grad():
        first, second = (cast(nn.Linear, layer).weight for layer in model)
        first[0] = torch.tensor([1.0, 0.5])
        second[:, 0] = torch.tensor([0.8, -0.4])
    return model


@pytest.mark.slow
def test_reduced_rank_regression_has_that_of_its_integral():
    """λ = 2 of 8 weights; half of them are 4."""
    assert reduced_rank_regression(2, 2, 2, 1) == (2.0, 2)
    at = {"nbeta": 60.0, "gamma": 4.0}
    expected = two_layer_reference(rank_one(), **at)
    assert expected == pytest.approx(1.63, abs=5e-3)  # as the docs say
    run = bif.attribute(network_problem(rank_one()), settings(**at, step_size=0.04, thin=25))
    assert_coefficient(run, expected)
    with OFF:
        assert_coefficient(run, reduced_rank_regression(2, 2, 2, 1)[0])


@pytest.mark.slow
def test_a_deep_linear_network_has_that_of_its_integral():
    """Widths 2, 1, 1, 2 around 0: λ = ½ of 5 weights."""
    assert deep_linear_network([2, 1, 1, 2], 0) == (0.5, 1)
    at = {"nbeta": 300.0, "gamma": 4.0}
    expected = three_layer_reference(2, **at)
    model = linear_network([2, 1, 1, 2], scale=0.0)
    run = bif.attribute(network_problem(model), settings(**at, step_size=0.04, thin=25))
    assert_coefficient(run, expected)
    with OFF:
        assert_coefficient(run, deep_linear_network([2, 1, 1, 2], 0)[0])
