"""Law of SGLD on quadratics, against the stationary law of the discretised rule."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch

from bif.samplers import SGLD
from bif.types import Sampler
from law_checks import (
    OFF_LAW,
    Scaled,
    assert_mean,
    quadratic_chains,
    sgld_variance,
    steps_to_forget,
)

CURVATURES = (0.3, 1.0, 2.5)


def check_sgld(
    sampler: Sampler[Any],
    *,
    step_size: float = 1.0,
    gradient_noise: float = 0.0,
    curvature_noise: float = 0.0,
    assumed_curvature_noise: float | None = None,
) -> None:
    positions, _ = quadratic_chains(
        sampler,
        CURVATURES,
        num_chains=256,
        num_draws=1600,
        burn_in=steps_to_forget(max(abs(1 - step_size * k / 2) for k in CURVATURES)),
        gradient_noise_K=[gradient_noise] * len(CURVATURES),
        curvature_noise=curvature_noise,
    )
    assumed = curvature_noise if assumed_curvature_noise is None else assumed_curvature_noise
    expected = [sgld_variance(step_size, k, gradient_noise, assumed) for k in CURVATURES]
    assert_mean(positions**2, expected)


def test_sgld_reference_without_noise_is_the_closed_form():
    for k in CURVATURES:
        assert abs(sgld_variance(0.8, k) - 1 / (k * (1 - 0.8 * k / 4))) < 1e-12


def test_sgld_variance_is_that_of_the_discretised_law():
    check_sgld(SGLD(1.0))


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(Scaled(SGLD(1.0), noise=sqrt(0.5)), id="halved noise"),
        pytest.param(Scaled(SGLD(1.0), gradient=0.5), id="half drift"),
        pytest.param(SGLD(0.8), id="smaller step, closer to the exact posterior"),
    ],
)
def test_the_variance_of_sgld_rejects_each_mutant(mutant: Sampler[Any]):
    with OFF_LAW:
        check_sgld(mutant)


def test_sgld_variance_rejects_a_flipped_sign_of_the_gradient():
    with pytest.raises(AssertionError):
        check_sgld(Scaled(SGLD(1.0), gradient=-1.0))


def test_sgld_gradient_noise_widens_the_variance_as_derived():
    check_sgld(SGLD(1.0), gradient_noise=1.5)
    with OFF_LAW:
        check_sgld(Scaled(SGLD(1.0), noise=sqrt(0.5)), gradient_noise=1.5)


def test_sgld_curvature_noise_comes_off_the_denominator():
    check_sgld(SGLD(1.0), curvature_noise=0.4)
    with OFF_LAW:
        check_sgld(SGLD(1.0), curvature_noise=0.4, assumed_curvature_noise=0.0)


def check_sgld_relaxation(sampler: Sampler[Any]) -> None:
    start, steps, k = 3.0, 6, torch.tensor(CURVATURES, dtype=torch.float64)
    positions, _ = quadratic_chains(
        sampler, CURVATURES, num_chains=20_000, num_draws=steps, burn_in=0, start=start
    )
    shrink_DK = (1 - k / 2) ** torch.arange(steps).unsqueeze(1)
    # Steps are not averaged over: each is a coordinate of its own, with 20,000 independent draws.
    moved = positions[:, 1:].flatten(1).unsqueeze(1)
    assert_mean(moved, (start * shrink_DK)[1:].flatten(), min_ess=10_000)


def test_sgld_mean_relaxes_by_one_minus_half_step_times_curvature():
    check_sgld_relaxation(SGLD(1.0))


@pytest.mark.parametrize("factor", [-1.0, 0.5])
def test_sgld_relaxation_rejects_a_wrong_drift(factor: float):
    with OFF_LAW:
        check_sgld_relaxation(Scaled(SGLD(1.0), gradient=factor))


def test_sgld_is_stable_below_step_times_curvature_four_and_diverges_above():
    def largest(curvature: float) -> float:
        positions, _ = quadratic_chains(
            SGLD(1.0), [curvature], num_chains=32, num_draws=1, burn_in=300
        )
        return float(positions.abs().max())

    # At 3.9 the standard deviation is 3.2; 32 draws stay below 6 of them.
    assert largest(3.9) < 20
    assert largest(4.2) > 1e6
