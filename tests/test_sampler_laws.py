"""Laws of the samplers on quadratics, against the stationary law of the discretised rule.

Every check has a mutant that the same assertion rejects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import exp, log, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from bif import tensors
from bif.samplers import (
    BAOAB,
    SGLD,
    SGNHT,
    BAOABState,
    RMSpropSGLD,
    RMSpropSGLDState,
    SGNHTState,
)
from bif.types import Noise, Params, Sampler
from law_checks import LinearStep, Scaled, assert_mean, quadratic_chains

# Relative error of a variance is sqrt(2 / ess): five of them are 5 %.
MIN_ESS = 20_000
CURVATURES = (0.3, 1.0, 2.5)
OFF_LAW = pytest.raises(AssertionError, match="standard errors")


def steps_to_forget(per_step: float) -> int:
    """Steps after which a perturbation that shrinks by `per_step` is below 1e-6."""
    return round(log(1e-6) / log(per_step)) + 1


def friction_keeping(kept: float, step_size: float) -> float:
    """The friction at which the share `kept` of the velocity survives a step."""
    return -log(kept) / step_size


# --- SGLD ---------------------------------------------------------------------------------------


def sgld_variance(
    step_size: float, curvature: float, gradient_noise: float = 0, curvature_noise: float = 0
) -> float:
    shrink = (1 - step_size * curvature / 2) ** 2 + (step_size / 2 * curvature_noise) ** 2
    return (step_size + (step_size / 2 * gradient_noise) ** 2) / (1 - shrink)


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
    assert_mean(positions**2, expected, min_ess=MIN_ESS)


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
def test_sgld_variance_rejects(mutant: Sampler[Any]):
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


@pytest.mark.parametrize("sampler", [SGLD(1.0), BAOAB(1.0, 0.7)], ids=["SGLD", "BAOAB"])
def test_chains_are_stable_below_four_and_diverge_above(sampler: SGLD | BAOAB):
    # SGLD's limit is step_size * k = 4, BAOAB's h² k = 4; both have step 1 here.
    def largest(curvature: float) -> float:
        positions, _ = quadratic_chains(
            sampler, [curvature], num_chains=32, num_draws=1, burn_in=300
        )
        return float(positions.abs().max())

    # At 3.9 SGLD's standard deviation is 3.2 and BAOAB's 0.5; 32 draws stay below 6 of them.
    assert largest(3.9) < 20
    assert largest(4.2) > 1e6


# --- BAOAB --------------------------------------------------------------------------------------


def baoab_step(
    curvature: float, step_size: float, kept: float, gradient_noise: float = 0.0
) -> LinearStep:
    return (
        LinearStep(curvature)
        .kick(step_size, gradient_noise)
        .drift(step_size / 2)
        .refresh(kept, 1 - kept**2)
        .drift(step_size / 2)
    )


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
    assert_mean(positions**2, [1 / k for k in curvatures], min_ess=MIN_ESS)


REFERENCE = BAOAB(1.0, friction_keeping(0.5, 1.0))


def check_baoab_variance(sampler: Sampler[Any], expected: float = 1.0) -> None:
    positions = baoab_positions(sampler, (1.0,), step_size=1.0, kept=0.5)
    assert_mean(positions**2, [expected], min_ess=MIN_ESS)


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
        assert_mean(products, expected, min_ess=MIN_ESS)


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
    assert_mean(positions**2, expected, min_ess=MIN_ESS)


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


# --- SGNHT --------------------------------------------------------------------------------------

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


# --- RMSprop-SGLD -------------------------------------------------------------------------------


def check_frozen(sampler: Sampler[Any], rule: RMSpropSGLD) -> None:
    positions, state = quadratic_chains(
        sampler, CURVATURES, num_chains=256, num_draws=1500, burn_in=200
    )
    step_sizes = rule.step_sizes(state)["w"].unsqueeze(1)
    k = torch.tensor(CURVATURES, dtype=torch.float64)
    # SGLD's variance at each chain's and weight's own step size.
    standardised = positions**2 * k * (1 - step_sizes * k / 4)
    assert_mean(standardised, 1.0, min_ess=MIN_ESS)


FROZEN = RMSpropSGLD(0.5, decay=0.9, stabilizer=0.1, freeze_after=50)


def test_frozen_rmsprop_sgld_has_the_law_of_sgld_at_each_weights_own_step():
    check_frozen(FROZEN, FROZEN)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(Scaled(FROZEN, noise=sqrt(0.5)), id="halved noise"),
        pytest.param(replace(FROZEN, freeze_after=None), id="never frozen"),
    ],
)
def test_frozen_rmsprop_sgld_law_rejects(mutant: Sampler[Any]):
    with OFF_LAW:
        check_frozen(mutant, FROZEN)


def test_rmsprop_sgld_as_published_has_a_variance_larger_than_any_sgld_step_explains():
    curvature, step_size, stabilizer = 1.0, 0.02, 0.5
    positions, _ = quadratic_chains(
        RMSpropSGLD(step_size, decay=0.9, stabilizer=stabilizer),
        [curvature],
        num_chains=1024,
        num_draws=2500,
        burn_in=1500,
    )
    # No step is larger than step_size / stabilizer.
    largest = sgld_variance(step_size / stabilizer, curvature)
    # While v̂ follows g² at once, the missing term makes the density ∝ exp(-U) / ε(w), that is
    # ∝ (|x| + stabilizer) exp(-x²/2) here: variance (4 + δ√2π) / (2 + δ√2π).
    at_once = (4 + stabilizer * sqrt(2 * pi)) / (2 + stabilizer * sqrt(2 * pi))
    excess = positions.square().mean(dim=1) - largest
    error = float(excess.std() / len(excess) ** 0.5)
    assert 5 * error < 0.2
    assert float(excess.mean()) > 5 * error
    assert float(excess.mean()) < at_once - largest + 5 * error


def test_rmsprop_sgld_whose_second_moment_follows_at_once_samples_the_density_over_its_step():
    stabilizer = 0.5
    positions, _ = quadratic_chains(
        RMSpropSGLD(0.02, decay=0.0, stabilizer=stabilizer),
        [1.0],
        num_chains=1024,
        num_draws=2500,
        burn_in=1500,
    )
    at_once = (4 + stabilizer * sqrt(2 * pi)) / (2 + stabilizer * sqrt(2 * pi))
    # SGLD's relative bias at the largest step, 0.02 / 0.5, bounds the discretisation's.
    assert_mean(positions**2, at_once, min_ess=10_000, bias=at_once * 0.04 / 4)
    with OFF_LAW:
        assert_mean(positions**2, 1.0, min_ess=10_000, bias=0.04 / 4)


class NoNoise:
    """Zeros in place of normal numbers."""

    def normal(self, like: Params) -> Params:
        return tensors.zeros_like(like)


@pytest.mark.parametrize("freeze_after", [None, 3])
def test_rmsprop_sgld_follows_the_bias_corrected_recursion_exactly(freeze_after: int | None):
    rule = RMSpropSGLD(
        0.3, decay=0.8, stabilizer=0.05, gradient_scale=4.0, freeze_after=freeze_after
    )
    gradients = [2.0, -1.0, 0.5, 8.0, -3.0]
    state = rule.init({"w": torch.ones(1, 1, dtype=torch.float64)}, NoNoise())
    position, moment, updates = 1.0, 0.0, 0
    for gradient in gradients:
        if freeze_after is None or updates < freeze_after:
            updates += 1
            moment = 0.8 * moment + 0.2 * (gradient / 4) ** 2
        step_size = 0.3 / (sqrt(moment / (1 - 0.8**updates)) + 0.05)
        position -= step_size / 2 * gradient
        leaf = torch.full((1, 1), gradient, dtype=torch.float64)
        state = rule.step(state, {"w": leaf}, NoNoise())
        assert isinstance(state, RMSpropSGLDState)
        assert abs(state.params["w"].item() - position) < 1e-12
        assert abs(state.second_moment["w"].item() - moment) < 1e-12
        assert abs(rule.step_sizes(state)["w"].item() - step_size) < 1e-12


def test_rmsprop_sgld_scales_its_noise_by_the_root_of_the_step():
    class Ones:
        def normal(self, like: Params) -> Params:
            return {name: torch.ones_like(leaf) for name, leaf in like.items()}

    rule = RMSpropSGLD(0.3, decay=0.8, stabilizer=0.05)
    start = torch.zeros(1, 2, dtype=torch.float64)
    state = rule.init({"w": start}, Ones())
    gradient = torch.tensor([[2.0, -0.5]], dtype=torch.float64)
    state = rule.step(state, {"w": gradient.clone()}, Ones())
    # At the first step v̂ = g², so the step is step_size / (|g| + stabilizer).
    step = 0.3 / (gradient.abs() + 0.05)
    expected = -step / 2 * gradient + step.sqrt()
    torch.testing.assert_close(state.params["w"], expected, rtol=0, atol=1e-12)
