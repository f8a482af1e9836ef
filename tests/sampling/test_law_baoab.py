"""Law of BAOAB on quadratics: positions are exact at any stable step and friction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from bif import tensors
from bif.samplers import BAOAB, BAOABState
from bif.types import Noise, Params, Sampler
from law_checks import (
    OFF_LAW,
    Scaled,
    assert_mean,
    baoab_step,
    quadratic_chains,
    steps_to_forget,
)


def friction_keeping(kept: float, step_size: float) -> float:
    """The friction at which the share `kept` of the velocity survives a step."""
    return -log(kept) / step_size


def baoab_positions(
    sampler: Sampler[Any],
    curvatures: tuple[float, ...],
    *,
    step_size: float,
    kept: float,
    gradient_noise: float = 0.0,
    num_draws: int = 800,
) -> Tensor:
    radius = max(baoab_step(k, step_size, kept).spectral_radius() for k in curvatures)
    positions, _ = quadratic_chains(
        sampler,
        curvatures,
        num_chains=256,
        num_draws=num_draws,
        burn_in=steps_to_forget(radius),
        gradient_noise_K=[gradient_noise] * len(curvatures),
    )
    return positions


@dataclass(frozen=True)
class MissingHalfDrift(BAOAB):
    """Forgets the second half drift."""

    def step(self, state: BAOABState, gradient: Params, noise: Noise) -> BAOABState:
        h, c = self.step_size, self.velocity_kept
        velocity = tensors.add_(state.velocity, gradient, -h)
        params = tensors.add_(state.params, velocity, h / 2)
        tensors.add_(tensors.mul_(velocity, c), noise.normal(velocity), sqrt(1 - c * c))
        return BAOABState(params, velocity)


@dataclass(frozen=True)
class SemiImplicitEuler(BAOAB):
    """Refreshes before the whole drift: the usual SGHMC order, biased at finite steps."""

    def step(self, state: BAOABState, gradient: Params, noise: Noise) -> BAOABState:
        h, c = self.step_size, self.velocity_kept
        velocity = tensors.add_(tensors.mul_(state.velocity, c), gradient, -h)
        tensors.add_(velocity, noise.normal(velocity), sqrt(1 - c * c))
        return BAOABState(tensors.add_(state.params, velocity, h), velocity)


@pytest.mark.parametrize(
    ("step_size", "kept"), [(0.5, 0.6), (1.0, 0.0), (1.0, 0.5), (1.0, 0.9), (2.0, 0.3)]
)
def test_baoab_variance_is_exact_for_any_stable_step_and_friction(step_size: float, kept: float):
    # The last curvature is at 95 % of the stability limit h²k = 4.
    curvatures = (0.2 / step_size**2, 1.0 / step_size**2, 3.8 / step_size**2)
    # 800: h * friction at which nothing of the velocity is kept, exp(-800) = 0.
    friction = friction_keeping(kept, step_size) if kept else 800 / step_size
    positions = baoab_positions(
        BAOAB(step_size, friction), curvatures, step_size=step_size, kept=kept, num_draws=1000
    )
    assert_mean(positions**2, [1 / k for k in curvatures])


REFERENCE = BAOAB(1.0, friction_keeping(0.5, 1.0))


def check_baoab_variance(sampler: Sampler[Any], expected: float = 1.0) -> None:
    positions = baoab_positions(sampler, (1.0,), step_size=1.0, kept=0.5)
    assert_mean(positions**2, [expected])


def check_baoab_autocorrelation(sampler: Sampler[Any]) -> None:
    step_size, kept = 1.0, 0.5
    curvatures = (0.4, 1.0, 3.0)
    positions = baoab_positions(sampler, curvatures, step_size=step_size, kept=kept)
    k = torch.tensor(curvatures, dtype=torch.float64)
    first = 1 - (1 + kept) * step_size**2 * k / 4
    second = (1 + kept) * (1 - step_size**2 * k / 2) * first - kept
    third = (1 + kept) * (1 - step_size**2 * k / 2) * second - kept * first
    for lag, expected in ((1, first), (2, second), (3, third)):
        # The variance is exactly 1/k, so k x_t x_{t+lag} has the autocorrelation as its mean.
        products = k * positions[:, lag:] * positions[:, :-lag]
        assert_mean(products, expected)


def test_baoab_at_the_reference_point_has_unit_variance():
    check_baoab_variance(REFERENCE)


@pytest.mark.parametrize(
    ("mutant", "variance"),
    [
        pytest.param(Scaled(REFERENCE, noise=sqrt(0.5)), 0.5, id="halved noise"),
        pytest.param(Scaled(REFERENCE, gradient=0.5), 2.0, id="half kick"),
        pytest.param(MissingHalfDrift(1.0, REFERENCE.friction), 0.45, id="missing half drift"),
        pytest.param(SemiImplicitEuler(1.0, REFERENCE.friction), 1.125, id="other splitting"),
    ],
)
def test_baoab_variance_rejects_mutants_whose_variance_is_known(
    mutant: Sampler[Any], variance: float
):
    check_baoab_variance(mutant, variance)
    with OFF_LAW:
        check_baoab_variance(mutant)


def test_baoab_variance_rejects_a_flipped_sign_of_the_gradient():
    with pytest.raises(AssertionError):
        check_baoab_variance(Scaled(REFERENCE, gradient=-1.0))


def test_baoab_autocorrelation_follows_its_recursion():
    check_baoab_autocorrelation(REFERENCE)


def test_doubled_friction_is_seen_in_the_autocorrelation_only():
    doubled = replace(REFERENCE, friction=2 * REFERENCE.friction)
    check_baoab_variance(doubled)
    with OFF_LAW:
        check_baoab_autocorrelation(doubled)


def check_baoab_gradient_noise(sampler: Sampler[Any], *, step_size: float, kept: float) -> None:
    noise, curvatures = 0.8, (0.3, 1.0, 2.5)
    positions = baoab_positions(
        sampler, curvatures, step_size=step_size, kept=kept, gradient_noise=noise
    )
    h2 = step_size**2
    expected = [
        (1 + h2 * noise**2 / (4 - h2 * k) * (1 + kept) / (1 - kept)) / k for k in curvatures
    ]
    assert_mean(positions**2, expected)


@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_low_friction_multiplies_gradient_noise_as_derived(kept: float):
    sampler = BAOAB(1.0, friction_keeping(kept, 1.0))
    check_baoab_gradient_noise(sampler, step_size=1.0, kept=kept)
    with OFF_LAW:
        doubled = replace(sampler, friction=2 * sampler.friction)
        check_baoab_gradient_noise(doubled, step_size=1.0, kept=kept)


def test_the_linear_reference_gives_the_closed_forms_of_baoab():
    for k, h, c, s in ((1.0, 1.0, 0.5, 0.0), (0.3, 1.2, 0.8, 0.7), (2.5, 0.6, 0.2, 1.5)):
        expected = (1 + h**2 * s**2 / (4 - h**2 * k) * (1 + c) / (1 - c)) / k
        step = baoab_step(k, h, c, s)
        assert abs(step.stationary()[0, 0] - expected) < 1e-10
        if s == 0:
            first = (step.matrix @ step.stationary())[0, 0] / step.stationary()[0, 0]
            assert abs(first - (1 - (1 + c) * h**2 * k / 4)) < 1e-10


def test_baoab_is_stable_below_squared_step_times_curvature_four_and_diverges_above():
    def largest(curvature: float) -> float:
        positions, _ = quadratic_chains(
            BAOAB(1.0, 0.7), [curvature], num_chains=32, num_draws=1, burn_in=300
        )
        return float(positions.abs().max())

    # At 3.9 the standard deviation is 0.5.
    assert largest(3.9) < 20
    assert largest(4.2) > 1e6
