"""One dimension by hand, and identities that tie covariances to responses."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif.samplers import BAOAB
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import StackedOracle
from bif.sampling.rng import BlockNoise
from exact_problems import (
    CENTER,
    CHAINS,
    QUERIES,
    SAMPLER_MUTANTS,
    TRAIN,
    GaussianPosterior,
    Point,
    assert_influence,
    case_9_problem,
    mutate_baoab,
    quadratic_answer,
    quadratic_loss,
    quadratic_run,
    settings_for,
)
from law_checks import OFF_LAW, STANDARD_ERRORS, Scaled, assert_mean

# --- Case 9: one dimension, by hand ---------------------------------------------------------------


BY_HAND = -torch.tensor([[[0.03125, -0.21875, 0.28125]]], dtype=torch.float64)


def case_9(*, nbeta: float = 2.0, gamma: float = 2.0, item_2_weight: float = 1.0) -> bif.Run:
    problem = case_9_problem(train_weights=[1.0, 1.0, item_2_weight])
    settings = settings_for(4 * torch.eye(1).double(), nbeta=2.0, gamma=2.0)
    return bif.attribute(problem, replace(settings, nbeta=nbeta, gamma=gamma))


@pytest.fixture(scope="module")
def case_9_run() -> bif.Run:
    return case_9()


def test_case_9_has_the_numbers_found_by_hand(case_9_run: bif.Run):
    run = case_9_run
    assert_influence(run, BY_HAND, precision=0.03)
    # A quarter is the variance of the weight: of the loss of candidate 0, ½ Var(w)² = 1/32.
    np.testing.assert_allclose(BY_HAND[0, 0, 0], -0.5 * 0.25**2)
    with OFF_LAW:
        assert_influence(run, -BY_HAND, precision=0.03)
    ranking = run.influence.top(0, k=1)
    assert (ranking.helpful[0].train_id, ranking.harmful[0].train_id) == ("2", "1")


@SAMPLER_MUTANTS
def test_case_9_rejects_a_mutated_sampler(
    mutation: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    mutate_baoab(monkeypatch, **mutation)
    run = case_9()
    with OFF_LAW:
        assert_influence(run, BY_HAND, precision=0.1)


@pytest.mark.parametrize("wrong", [{"gamma": 1.0}, {"nbeta": 3.0}], ids=["gamma", "nbeta"])
def test_case_9_rejects_a_wrong(wrong: dict[str, float]):
    run = case_9(**wrong)
    with OFF_LAW:
        assert_influence(run, BY_HAND, precision=0.1)


def test_case_9_perturbing_the_mean_loss_moves_the_query_at_the_rate_found_by_hand(
    case_9_run: bif.Run,
):
    delta = 0.1

    def expected_loss(shift: float) -> float:
        # U = 2 (w²/2 + shift (w - 1)²/2) + w²: precision 4 + 2 shift.
        precision = 4 + 2 * shift
        return 0.5 * (1 / precision + (2 * shift / precision - 1) ** 2)

    # Item 2 is (w - 1)²/2: weight 1 + 3 delta adds delta (w - 1)²/2 to the mean loss.
    runs = [case_9(item_2_weight=1 + 3 * shift) for shift in (delta, -delta)]
    difference = runs[0].traces.blocks[0].query - runs[1].traces.blocks[0].query
    exact = (expected_loss(delta) - expected_loss(-delta)) / (2 * delta)
    assert abs(exact + 0.5625) < 0.01
    assert_mean(difference / (2 * delta), [exact], min_ess=10_000)
    with OFF_LAW:
        assert_mean(difference / (2 * delta), [-exact], min_ess=10_000)
    # The library's derivative is per item weight, a third of the rate for the mean loss.
    dataset = case_9_run.influence.dataset
    rate = 3 * float(dataset["derivative"].values[0, 0, 2])
    error = 2 * float(dataset["standard_error"].values[0, 0, 2])
    assert error < 0.03 * 0.5625
    assert abs(rate + 0.5625) < STANDARD_ERRORS * error


@pytest.fixture(scope="module")
def hot_run() -> bif.Run:
    return quadratic_run(nbeta=1.0, gamma=2.0)


# --- Identities that need no answer ---------------------------------------------------------------


def check_virial(sampler: Any) -> None:
    mask = torch.tensor([True, False, True])
    posterior = bif.LocalPosterior({"w": CENTER}, 5.0, 2.0, movable={"w": mask})
    oracle = StackedOracle(Point(CENTER), quadratic_loss)
    gradient = FullGradient(
        oracle,
        bif.Items(TRAIN.batch),
        chunk_size=5,
        train_weights=torch.ones(5, dtype=torch.float64),
    )
    values = []
    for draw in bif.run_chains(
        sampler,
        posterior,
        gradient=gradient,
        params={"w": CENTER.expand(256, 3).clone()},
        noise=BlockNoise(torch.Generator().manual_seed(0), posterior.masks),
        num_draws=200,
        burn_in=60,
        thin=5,
    ):
        force = posterior.potential_gradient_(gradient(draw.params, 0).gradient, draw.params)
        values.append((posterior.displacement(draw.params)["w"] * force["w"]).sum(dim=1))
    assert_mean(torch.stack(values, dim=1), posterior.num_moving, min_ess=20_000)


def test_the_virial_counts_the_moving_weights():
    # Curvatures of U are between gamma = 2 and about 2 + 5 * 6.
    sampler = BAOAB(0.2, 4.0)
    check_virial(sampler)
    for mutant in (Scaled(sampler, noise=sqrt(0.5)), Scaled(sampler, gradient=0.5)):
        with OFF_LAW:
            check_virial(mutant)


def test_the_response_to_nbeta_is_minus_the_covariance_with_the_mean_loss(
    hot_run: bif.Run,
):
    nbeta, gamma, delta = 1.0, 2.0, 0.1
    posterior = [
        GaussianPosterior.of(TRAIN, CENTER, nbeta=b, gamma=gamma)
        for b in (nbeta + delta, nbeta - delta)
    ]
    exact = (posterior[0].expectation(QUERIES) - posterior[1].expectation(QUERIES)) / (2 * delta)
    runs = [
        quadratic_run(nbeta=nbeta, gamma=gamma, sampled_nbeta=b)
        for b in (nbeta + delta, nbeta - delta)
    ]
    # Both runs share their random numbers, so their difference is far less noisy than either.
    response = (runs[0].traces.blocks[0].query - runs[1].traces.blocks[0].query) / (2 * delta)
    assert_mean(response, exact, min_ess=5_000)

    total = hot_run.influence.sum_over({"all": range(5)}).dataset
    fluctuation = torch.as_tensor(total["influence"].values[0, :, 0]).double() / 5
    error = torch.as_tensor(total["standard_error"].values[0, :, 0]).double() / 5
    answer = quadratic_answer(nbeta=nbeta, gamma=gamma)[0].mean(dim=1)
    # The difference over a finite delta is off the derivative by a known amount.
    slack = (exact - answer).abs()
    assert (slack < 0.01 * answer.abs()).all()
    assert (error < 0.05 * answer.abs()).all()
    response_error = response.mean(dim=1).std(dim=0) / CHAINS**0.5
    tolerance = STANDARD_ERRORS * (error**2 + response_error**2).sqrt() + slack
    measured = response.mean(dim=(0, 1))
    assert ((fluctuation - measured).abs() <= tolerance).all()
    with pytest.raises(AssertionError):
        assert ((-fluctuation - measured).abs() <= tolerance).all()
