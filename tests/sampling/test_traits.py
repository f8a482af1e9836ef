"""Every sampler that settings can name declares its traits, and what it declares is so."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bif import Settings
from bif.samplers import BAOAB, SGLD
from bif.sampling.rng import BlockNoise
from bif.sampling.samplers import SAMPLERS, Traits, names_of
from bif.types import Mass, Params, Sampler
from complete_settings import complete
from law_checks import baoab_step, sgld_variance

each_name = pytest.mark.parametrize("name", SAMPLERS)


def built(
    name: str,
    mass: Mass | None = None,
    *,
    step_size: float = 0.1,
    friction: float = 0.7,
    nbeta: float = 1.0,
) -> Sampler[Any]:
    settings = Settings(
        sampler=name, step_size=step_size, friction=friction, nbeta=nbeta, burn_in=3
    )
    return SAMPLERS[name].from_settings(complete(settings), mass)


def end_of_trajectory(
    sampler: Sampler[Any], k: float, steps: int, *, start: float = 0.0, force: float = 0.0
) -> Tensor:
    """Where 20 chains of 100 weights are on `k·w²/2 + force·w`, always with the same noise."""
    noise = BlockNoise(torch.Generator().manual_seed(0))
    state = sampler.init({"w": torch.full((20, 100), start, dtype=torch.float64)}, noise)
    for _ in range(steps):
        state = sampler.step(state, {"w": k * state.params["w"] + force}, noise)
    return state.params["w"]


class Doubled:
    """Coordinates in which all lengths are half as long."""

    def to_weights(self, velocity: Params) -> Params:
        return {name: 2 * leaf for name, leaf in velocity.items()}

    def to_velocity(self, force: Params) -> Params:
        return self.to_weights(force)


def check_state(name: str, traits: Traits) -> None:
    state = built(name).init({"w": torch.zeros(2, 3)}, BlockNoise(torch.Generator()))
    values = {f.name: getattr(state, f.name) for f in fields(state) if f.name != "params"}
    leaves, shared, counts = (
        [field for field, value in values.items() if isinstance(value, kind)]
        for kind in (dict, Tensor, int)
    )
    assert traits.underdamped == ("velocity" in leaves)
    assert traits.state_leaves == len(leaves)
    assert traits.leafwise == (not shared)
    assert traits.compiles == (not counts)


def check_mass(name: str, traits: Traits) -> None:
    plain, white = (end_of_trajectory(built(name, mass), 1.0, 2) for mass in (None, Doubled()))
    assert traits.takes_mass == (not torch.equal(plain, white))


def check_adaptive(name: str, traits: Traits) -> None:
    """On a quadratic all chains of a rule that adapts to nothing answer alike to a force."""
    answer = end_of_trajectory(built(name), 1.0, 9, force=1.0) - end_of_trajectory(
        built(name), 1.0, 9
    )
    assert traits.adaptive == (not torch.allclose(answer, answer.mean(), rtol=0, atol=1e-10))


def check_stability(name: str, traits: Traits) -> None:
    """Chains stay just below the largest stable step, and run off just above it."""
    share = traits.step_share(0.1, 1.0)
    if math.isnan(share):
        assert not traits.underdamped, "its laws know no divisor"
        return
    near, far = (
        float(end_of_trajectory(built(name), c / share, 150).abs().max()) for c in (0.9, 1.1)
    )
    # Six of the standard deviations that SGLD has there; BAOAB's are less.
    assert near < 6 * math.sqrt(share / 0.9 / (1 - 0.9))
    assert not far < 1e6
    assert traits.step_share(traits.default_step, 1.0) < 1


def check_relaxation(name: str, traits: Traits) -> None:
    """Chains with the same noise and another start are nearer by 1/e after so many steps."""
    step_size = 0.05 if traits.underdamped else 0.02 * (traits.least_divisor or 1.0)
    # Gradients over this nbeta are far below RMSprop's stabilizer: the steps are the largest.
    sampler = built(name, step_size=step_size, friction=3.0, nbeta=1e6)
    told = traits.relaxation_steps(step_size, 3.0, 1.0)

    def apart(steps: int) -> float:
        moved, still = (end_of_trajectory(sampler, 1.0, steps, start=start) for start in (0.1, 0.0))
        return float((moved - still).mean())

    # After 60 steps the faster of an underdamped rule's two ways to relax has died away.  Half a
    # step is lost in rounding, and as much to (1 - 1/n)^n.
    assert apart(60 + round(told)) / apart(60) * math.e == pytest.approx(1, rel=0, abs=2 / told)


def check(name: str, traits: Traits) -> None:
    for each in (check_state, check_mass, check_adaptive, check_stability, check_relaxation):
        each(name, traits)


@each_name
def test_every_sampler_is_what_it_declares(name: str):
    check(name, SAMPLERS[name].traits)


@each_name
@pytest.mark.parametrize(
    "trait", ["underdamped", "takes_mass", "adaptive", "leafwise", "compiles", "state_leaves"]
)
def test_a_trait_declared_wrongly_is_noticed(name: str, trait: str):
    traits = SAMPLERS[name].traits
    with pytest.raises(AssertionError):
        check(name, replace(traits, **{trait: not getattr(traits, trait)}))


@each_name
def test_a_divisor_of_steps_declared_wrongly_is_noticed(name: str):
    traits = SAMPLERS[name].traits
    wrong = 0.5 if traits.least_divisor is None else None
    with pytest.raises(AssertionError):
        check(name, replace(traits, least_divisor=wrong))


@each_name
def test_every_trait_is_declared_by_the_sampler(name: str):
    assert isinstance(SAMPLERS[name].traits, Traits)
    assert Settings(sampler=name).traits is SAMPLERS[name].traits


def test_a_trait_that_is_left_out_is_refused():
    with pytest.raises(TypeError, match="adaptive"):
        Traits(  # type: ignore[call-arg]
            underdamped=False, default_step=0.05, takes_mass=False, least_divisor=None,
            state_leaves=0, leafwise=True, compiles=True, bias=None,
        )  # fmt: skip


def test_stored_settings_with_a_misspelt_sampler_are_refused():
    with pytest.raises(ValueError, match="sampler is 'sgdl': expected one of baoab, sgld"):
        Settings.from_dict({"sampler": "sgdl"})


def test_samplers_are_found_by_what_they_declare():
    found = names_of(lambda traits: not traits.adaptive).split(", ")
    assert {"baoab", "sgld"} <= {*found}
    assert not {"rmsprop_sgld", "sgnht"} & {*found}


@pytest.mark.parametrize("step_size", [0.1, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_gradient_noise_widens_the_draws_by_as_much_as_declared(step_size: float, noise: float):
    k, friction = 1.7, 0.6
    widened = sgld_variance(step_size, k, noise) / sgld_variance(step_size, k)
    assert 1 + SGLD.traits.heat(step_size, None, k, noise**2) == pytest.approx(widened, rel=1e-10)
    kept = math.exp(-friction * step_size)
    widened = k * float(baoab_step(k, step_size, kept, noise).stationary()[0, 0])
    told = BAOAB.traits.heat(step_size, friction, k, noise**2)
    assert 1 + told == pytest.approx(widened, rel=1e-10)
