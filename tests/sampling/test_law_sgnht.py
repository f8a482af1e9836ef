"""Law of SGNHT on quadratics, at the friction that balances its thermostat."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from bif.samplers import SGNHT, SGNHTState
from bif.sampling.rng import BlockNoise
from bif.types import Noise, Params, Sampler
from law_checks import (
    MIN_ESS,
    OFF_LAW,
    LinearStep,
    Scaled,
    assert_mean,
    baoab_step,
    quadratic_chains,
)

CURVATURES = (0.3, 1.0, 2.5)
STEP_SIZE, DIFFUSION = 0.5, 1.0
PER_GROUP = 300
# Finite d: the friction fluctuates with variance 1 / (mass * d) around its mean (the law
# exp(-mass * d * (friction - mean)² / 2) of the extended system), and a quantity that is smooth
# in the friction moves in second order: relatively by at most about variance / friction².
NUM_MOVING = PER_GROUP * len(CURVATURES)
FLUCTUATION = 1 / (NUM_MOVING * DIFFUSION**2)


def thermostat_step(curvature: float, friction: float, gradient_noise: float) -> LinearStep:
    kept = exp(-friction * STEP_SIZE)
    return (
        LinearStep(curvature)
        .kick(STEP_SIZE, gradient_noise)
        .drift(STEP_SIZE / 2)
        .refresh(kept, DIFFUSION / friction * (1 - kept**2))
        .drift(STEP_SIZE / 2)
    )


def temperatures(
    friction: float, curvatures: tuple[float, ...], noises: tuple[float, ...]
) -> np.ndarray:
    """E|v|²/d that the two half thermostats see: before and after the refreshment."""
    seen = []
    for k, s in zip(curvatures, noises, strict=True):
        after = thermostat_step(k, friction, s).stationary()
        before = LinearStep(k).kick(STEP_SIZE, s).applied_to(after)
        seen.append((before[1, 1], after[1, 1]))
    return np.mean(seen, axis=0)


def balanced_friction(curvatures: tuple[float, ...], noises: tuple[float, ...]) -> float:
    """The friction at which the thermostat stands still in the limit of many weights."""

    def excess(friction: float) -> float:
        return float(temperatures(friction, curvatures, noises).mean()) - 1

    return float(brentq(excess, 0.1, 20.0, xtol=1e-12))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recorded(SGNHT):
    """Writes down friction and mean squared velocity before and after the refreshment."""

    friction: list[Tensor] = field(default_factory=list)
    temperature: list[Tensor] = field(default_factory=list)

    def step(self, state: SGNHTState, gradient: Params, noise: Noise) -> SGNHTState:
        kicked = state.velocity["w"] - self.step_size * gradient["w"]
        state = super().step(state, gradient, noise)
        after = state.velocity["w"]
        self.friction.append(state.friction.clone())
        self.temperature.append(((kicked**2).mean(dim=1) + (after**2).mean(dim=1)) / 2)
        return state


class FrozenThermostat(SGNHT):
    """Its friction stays where it starts: BAOAB."""

    def _heat(self, velocity: Params, num_moving: Tensor) -> Tensor:
        return torch.zeros(num_moving.shape, dtype=torch.float64)


BURN_IN = 200


def thermostat_positions(
    sampler: Sampler[Any], curvatures: tuple[float, ...], noises: tuple[float, ...]
) -> Tensor:
    """Squared positions `[C, D, groups]`, averaged over the weights of equal curvature."""
    num_draws, groups = 200, len(curvatures)
    positions, _ = quadratic_chains(
        sampler,
        [k for k in curvatures for _ in range(PER_GROUP)],
        num_chains=32,
        num_draws=num_draws,
        burn_in=BURN_IN,
        gradient_noise_K=[s for s in noises for _ in range(PER_GROUP)],
    )
    return positions.square().view(32, num_draws, groups, PER_GROUP).mean(dim=3)


def check_thermostat(
    sampler: Sampler[Any],
    noises: tuple[float, ...],
    *,
    curvatures: tuple[float, ...] = CURVATURES,
) -> list[float]:
    friction = balanced_friction(curvatures, noises)
    expected = [
        float(thermostat_step(k, friction, s).stationary()[0, 0])
        for k, s in zip(curvatures, noises, strict=True)
    ]
    squares = thermostat_positions(sampler, curvatures, noises)
    # A draw is the mean of PER_GROUP independent weights.
    assert_mean(squares, expected, min_ess=MIN_ESS / PER_GROUP, bias=FLUCTUATION * max(expected))
    return expected


def test_sgnht_without_gradient_noise_has_the_exact_variance_and_friction_of_baoab():
    assert abs(balanced_friction(CURVATURES, (0.0,) * 3) - DIFFUSION) < 1e-8
    sampler = Recorded(STEP_SIZE, DIFFUSION)
    expected = check_thermostat(sampler, (0.0,) * 3)
    np.testing.assert_allclose(expected, [1 / k for k in CURVATURES], atol=1e-8)
    friction = torch.stack(sampler.friction[BURN_IN:], dim=1)
    assert_mean(friction, DIFFUSION, min_ess=300, bias=FLUCTUATION * DIFFUSION)


def test_sgnht_corrects_gradient_noise_that_is_equal_in_all_directions():
    noises = (1.0,) * 3
    sampler = Recorded(STEP_SIZE, DIFFUSION)
    expected = check_thermostat(sampler, noises)
    # Good to 4 % here, from below: the kick's noise heats the velocities before the refreshment,
    # which the thermostat sees and the positions do not. BAOAB would be 26 % or more too wide.
    kept = exp(-STEP_SIZE * DIFFUSION)
    for k, corrected in zip(CURVATURES, expected, strict=True):
        uncorrected = baoab_step(k, STEP_SIZE, kept, 1.0).stationary()[0, 0]
        assert 0.96 < k * corrected < 1
        assert k * uncorrected > 1.25
    friction = balanced_friction(CURVATURES, noises)
    # The state holds the friction after the second half thermostat.
    kept_friction = friction + STEP_SIZE / 2 * (temperatures(friction, CURVATURES, noises)[1] - 1)
    assert_mean(
        torch.stack(sampler.friction[BURN_IN:], dim=1),
        kept_friction,
        min_ess=300,
        bias=FLUCTUATION * friction,
    )
    assert_mean(torch.stack(sampler.temperature[BURN_IN:], dim=1), 1.0, min_ess=300)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(FrozenThermostat(STEP_SIZE, DIFFUSION), id="frozen thermostat"),
        pytest.param(Scaled(SGNHT(STEP_SIZE, DIFFUSION), gradient=0.5), id="half kick"),
    ],
)
def test_sgnht_law_under_gradient_noise_rejects(mutant: Sampler[Any]):
    with OFF_LAW:
        check_thermostat(mutant, (1.0,) * 3)


def test_sgnht_law_rejects_a_thermostat_held_at_another_temperature():
    # A thermostat that sees velocities a tenth too large cools the chains by as much.
    @dataclass(frozen=True)
    class TooCold(SGNHT):
        def _heat(self, velocity: Params, num_moving: Tensor) -> Tensor:
            return super()._heat({n: v * sqrt(1.1) for n, v in velocity.items()}, num_moving)

    with OFF_LAW:
        check_thermostat(TooCold(STEP_SIZE, DIFFUSION), (0.0,) * 3)


def test_sgnht_does_not_correct_noise_that_differs_between_directions():
    curvatures, noises = (1.0, 1.0, 1.0), (0.0, 0.0, 3.0)
    quiet, _, noisy = check_thermostat(SGNHT(STEP_SIZE, DIFFUSION), noises, curvatures=curvatures)
    assert quiet < 0.7
    assert noisy > 1.5
    with OFF_LAW:
        squares = thermostat_positions(SGNHT(STEP_SIZE, DIFFUSION), curvatures, noises)
        assert_mean(squares, [1.0, 1.0, 1.0], min_ess=MIN_ESS / PER_GROUP, bias=FLUCTUATION)


def friction_of_few(mass: float | None) -> tuple[float, float]:
    """Deviation of the friction, and variance of positions times curvature, of two weights."""
    curvatures, diffusion = torch.tensor([1.0, 0.25], dtype=torch.float64), 0.3
    sampler = SGNHT(0.3, diffusion, mass)
    noise = BlockNoise(torch.Generator().manual_seed(0))
    state = sampler.init({"w": torch.zeros(2000, 2, dtype=torch.float64)}, noise)
    frictions, squares = [], []
    for step in range(1200):
        state = sampler.step(state, {"w": curvatures * state.params["w"]}, noise)
        if step >= 300 and step % 20 == 0:
            frictions.append(state.friction)
            squares.append(state.params["w"] ** 2 * curvatures)
    return float(torch.stack(frictions).std()), float(torch.stack(squares).mean())


def test_the_friction_of_few_weights_moves_by_half_of_itself():
    deviation, variance = friction_of_few(None)
    assert deviation == pytest.approx(0.15, rel=0.05)
    assert variance == pytest.approx(1, abs=0.02)
    # With as light a thermostat as many weights have, it is negative nearly as often as not.
    assert friction_of_few(1.0)[0] > 0.5
