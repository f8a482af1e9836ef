"""Law of RMSprop-SGLD: SGLD's own once frozen, another one as published."""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt
from typing import Any

import pytest
import torch

from bif import tensors
from bif.samplers import RMSpropSGLD, RMSpropSGLDState
from bif.types import Params, Sampler
from law_checks import (
    OFF_LAW,
    Scaled,
    assert_mean,
    quadratic_chains,
    sgld_variance,
)

CURVATURES = (0.3, 1.0, 2.5)


def check_frozen(sampler: Sampler[Any], rule: RMSpropSGLD) -> None:
    positions, state = quadratic_chains(
        sampler, CURVATURES, num_chains=256, num_draws=1500, burn_in=200
    )
    step_sizes = rule.step_sizes(state)["w"].unsqueeze(1)
    k = torch.tensor(CURVATURES, dtype=torch.float64)
    # SGLD's variance at each chain's and weight's own step size.
    standardised = positions**2 * k * (1 - step_sizes * k / 4)
    assert_mean(standardised, 1.0)


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
