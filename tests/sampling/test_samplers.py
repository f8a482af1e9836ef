"""The contract that every sampler keeps; a new sampler joins by one line in SAMPLERS."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from bif import tensors
from bif.samplers import BAOAB, SGLD, SGNHT, RMSpropSGLD
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise
from bif.types import Noise, Params, Sampler
from small_problems import global_randomness_untouched

SAMPLERS: list[Sampler[Any]] = [
    SGLD(0.1),
    RMSpropSGLD(0.05, decay=0.9),
    RMSpropSGLD(0.05, decay=0.9, freeze_after=3),
    BAOAB(0.3, 0.7),
    SGNHT(0.3, 0.7),
]

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)

# A matrix, a vector and a single number, as in real models.
SHAPES: dict[str, tuple[int, ...]] = {"matrix": (3, 2), "vector": (4,), "number": ()}


def starting_weights(num_chains: int, dtype: torch.dtype = torch.float64) -> Params:
    source = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(num_chains, *shape, generator=source, dtype=dtype)
        for name, shape in SHAPES.items()
    }


def noise_of(seed: int, masks: Params | None = None) -> BlockNoise:
    return BlockNoise(torch.Generator().manual_seed(seed), masks)


def quartic_gradient(params: Params) -> Params:
    """Gradient of `Σ w⁴/4 + w²/2`: nonlinear, finite, fresh memory."""
    return {name: leaf**3 + leaf for name, leaf in params.items()}


def run(sampler: Sampler[Any], state: Any, noise: Noise, num_steps: int) -> Any:
    for _ in range(num_steps):
        state = sampler.step(state, quartic_gradient(state.params), noise)
    return state


def assert_same_bits(x: Params, y: Params) -> None:
    assert list(x) == list(y)
    for name in x:
        assert torch.equal(x[name], y[name]), name


class RecordedNoise:
    """The same numbers again, for some of the chains, or with one chain's numbers for all."""

    def __init__(self, seed: int, num_chains: int, chains: Sequence[int]) -> None:
        self.source = noise_of(seed)
        self.num_chains = num_chains
        self.chains = list(chains)

    def normal(self, like: Params) -> Params:
        whole = self.source.normal(
            {n: leaf.new_empty(self.num_chains, *leaf.shape[1:]) for n, leaf in like.items()}
        )
        return {name: leaf[self.chains] for name, leaf in whole.items()}


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_steps_keep_names_shapes_and_dtypes(sampler: Sampler[Any], dtype: torch.dtype):
    noise = noise_of(0)
    state = run(sampler, sampler.init(starting_weights(5, dtype), noise), noise, 4)
    assert {n: tuple(leaf.shape[1:]) for n, leaf in state.params.items()} == SHAPES
    assert all(len(leaf) == 5 and leaf.dtype == dtype for leaf in state.params.values())
    assert all(leaf.isfinite().all() for leaf in state.params.values())


@each_sampler
def test_every_weight_moves(sampler: Sampler[Any]):
    noise, start = noise_of(0), starting_weights(3)
    state = run(sampler, sampler.init(tensors.copied(start), noise), noise, 1)
    for name, leaf in state.params.items():
        assert (leaf != start[name]).all(), name


@each_sampler
def test_masked_weights_never_move_and_the_others_do(sampler: Sampler[Any]):
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    center = {"matrix": torch.zeros(3, 2, dtype=torch.float64)}
    posterior = LocalPosterior(center, 1.0, 1.0, movable={"matrix": mask})
    start = {"matrix": starting_weights(4)["matrix"]}
    noise = noise_of(0, posterior.masks)
    state = sampler.init(tensors.copied(start), noise)
    for _ in range(6):
        # As in a run: the potential's gradient is 0, and so is the noise, where nothing may move.
        force = posterior.potential_gradient_(quartic_gradient(state.params), state.params)
        state = sampler.step(state, force, noise)
    moved = state.params["matrix"] != start["matrix"]
    assert torch.equal(moved, mask.expand(4, 3, 2))


@each_sampler
def test_a_step_is_determined_by_state_gradient_and_generator(sampler: Sampler[Any]):
    runs = []
    for _ in range(2):
        noise = noise_of(7)
        state = sampler.init(starting_weights(3), noise)
        runs.append(run(sampler, state, noise, 5).params)
    assert_same_bits(*runs)
    other = noise_of(8)
    different = run(sampler, sampler.init(starting_weights(3), other), other, 5).params
    assert not torch.equal(different["vector"], runs[0]["vector"])


@each_sampler
def test_saved_state_and_noise_resume_to_the_last_bit(sampler: Sampler[Any]):
    noise = noise_of(3)
    state = run(sampler, sampler.init(starting_weights(3), noise), noise, 4)
    saved_state, saved_noise = deepcopy(state), noise.state()
    whole = run(sampler, state, noise, 5).params
    resumed_noise = noise_of(99)
    resumed_noise.restore(saved_noise)
    assert_same_bits(run(sampler, saved_state, resumed_noise, 5).params, whole)


@each_sampler
def test_a_chain_is_the_same_alone_and_in_a_stack(sampler: Sampler[Any]):
    num_chains, start = 4, starting_weights(4)
    everyone = RecordedNoise(5, num_chains, range(num_chains))
    stack = run(sampler, sampler.init(tensors.copied(start), everyone), everyone, 20).params
    for c in range(num_chains):
        alone = RecordedNoise(5, num_chains, [c])
        own_start = {name: leaf[c : c + 1].clone() for name, leaf in start.items()}
        single = run(sampler, sampler.init(own_start, alone), alone, 20).params
        for name in SHAPES:
            torch.testing.assert_close(
                single[name][0], stack[name][c], rtol=0, atol=1e-12, msg=name
            )


def check_chains_are_independent(sampler: Sampler[Any], noise: Noise) -> None:
    num_chains, num_weights = 6, 4000
    start = {"w": torch.zeros(num_chains, num_weights, dtype=torch.float64)}
    positions = run(sampler, sampler.init(start, noise), noise, 5).params["w"]
    correlation = torch.corrcoef(positions)
    others = correlation[~torch.eye(num_chains, dtype=torch.bool)]
    # The weights of a chain are exchangeable draws of one law, so a correlation of independent
    # chains has standard deviation 1/sqrt(num_weights).
    assert others.abs().max() < 5 / num_weights**0.5, "chains are correlated"


@each_sampler
def test_chains_of_a_block_are_independent(sampler: Sampler[Any]):
    check_chains_are_independent(sampler, noise_of(0))
    with pytest.raises(AssertionError, match="correlated"):
        check_chains_are_independent(sampler, RecordedNoise(0, 6, [0, 1, 2, 3, 4, 0]))


@each_sampler
def test_a_live_module_is_updated_through_the_view_of_its_parameters(sampler: Sampler[Any]):
    torch_state = torch.get_rng_state()
    module = nn.Linear(3, 2).double()
    torch.set_rng_state(torch_state)
    own = dict(module.named_parameters())
    addresses = {name: p.data_ptr() for name, p in own.items()}
    stack = {name: p.detach().clone().unsqueeze(0) for name, p in own.items()}
    results: list[Params] = []
    for params in ({name: p.data.unsqueeze(0) for name, p in own.items()}, stack):
        noise = noise_of(2)
        results.append(run(sampler, sampler.init(params, noise), noise, 6).params)
    for name, p in own.items():
        assert p.data_ptr() == addresses[name]
        assert results[0][name].data_ptr() == p.data_ptr(), "the view was left behind"
        assert torch.equal(p.detach().unsqueeze(0), results[1][name])
        assert p.grad is None


@each_sampler
def test_the_returned_state_keeps_no_hold_on_the_gradient(sampler: Sampler[Any]):
    noises = [noise_of(4), noise_of(4)]
    states = [sampler.init(starting_weights(3), noise) for noise in noises]
    for _ in range(5):
        for i in range(2):
            gradient = quartic_gradient(states[i].params)
            states[i] = sampler.step(states[i], gradient, noises[i])
            if i:  # the caller takes its buffers back
                for leaf in gradient.values():
                    leaf.fill_(float("nan"))
    assert_same_bits(states[0].params, states[1].params)


@each_sampler
def test_a_step_gives_the_same_whether_or_not_its_inputs_are_donated(sampler: Sampler[Any]):
    noises = [noise_of(4), noise_of(4)]
    donated, kept = (sampler.init(starting_weights(3), noise) for noise in noises)
    for _ in range(5):
        donated = sampler.step(donated, quartic_gradient(donated.params), noises[0])
        kept = sampler.step(deepcopy(kept), quartic_gradient(kept.params), noises[1])
    assert_same_bits(donated.params, kept.params)


def come_to_rest_(state: Any) -> None:
    """Forget velocities and whatever else of the noise the state keeps for each weight."""
    for field in fields(state):
        leaves = getattr(state, field.name)
        if field.name != "params" and isinstance(leaves, dict):
            for leaf in leaves.values():
                leaf.zero_()


class Silence:
    def normal(self, like: Params) -> Params:
        return tensors.zeros_like(like)


@each_sampler
def test_at_a_minimum_without_noise_nothing_moves(sampler: Sampler[Any]):
    start = {name: torch.zeros_like(leaf) for name, leaf in starting_weights(2).items()}
    # SGNHT counts the weights that velocities may reach, so silence starts after init.
    state = sampler.init(tensors.copied(start), noise_of(0))
    come_to_rest_(state)
    assert_same_bits(run(sampler, state, Silence(), 5).params, start)


@each_sampler
def test_a_step_goes_down_the_gradient(sampler: Sampler[Any]):
    start = {"w": torch.full((2, 5), 3.0, dtype=torch.float64)}
    state = sampler.init(tensors.copied(start), noise_of(0))
    come_to_rest_(state)
    state = sampler.step(state, quartic_gradient(state.params), Silence())
    assert (state.params["w"] < start["w"]).all()


@each_sampler
def test_global_random_state_is_left_alone(sampler: Sampler[Any]):
    with global_randomness_untouched():
        noise = noise_of(0)
        run(sampler, sampler.init(starting_weights(2), noise), noise, 3)


def test_sgnht_counts_the_weights_that_may_move():
    masks = {"matrix": torch.tensor([[True, False], [False, False], [True, True]])}
    state = SGNHT(0.3, 0.7).init(starting_weights(4), noise_of(0, masks))
    assert state.num_moving.tolist() == [3 + 4 + 1] * 4


def test_sgnht_at_zero_friction_is_the_limit_of_small_friction():
    sampler, start = SGNHT(0.3, 0.7), starting_weights(2)

    def step(friction: float) -> Params:
        noise = noise_of(6)
        state = sampler.init(tensors.copied(start), noise)
        # The first half thermostat brings the friction to 0 where the velocities are at rest.
        heat = -0.5 * sampler.step_size
        at_rest = type(state)(
            state.params,
            tensors.zeros_like(state.velocity),
            torch.full_like(state.friction, friction - heat),
            state.num_moving,
        )
        return sampler.step(at_rest, tensors.zeros_like(state.params), noise).params

    exact, near = step(0.0), step(1e-7)
    for name in SHAPES:
        assert exact[name].isfinite().all()
        # The kicks' spread changes by a relative h * friction / 2.
        torch.testing.assert_close(exact[name], near[name], rtol=0, atol=1e-6)
