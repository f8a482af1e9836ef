"""A sampler's state and its noise, saved and restored at any step, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from bif import calibrate
from bif.samplers import BAOAB, SGLD, SGNHT, RMSpropSGLD
from bif.sampling.engine import Engine, Start
from bif.sampling.rng import BlockNoise
from bif.sampling.sampler_state import restored, state_tensors
from bif.types import HasParams, Params, Sampler
from same_bits import bits
from small_problems import TINY, classification, network, normal

SAMPLERS: list[Sampler[Any]] = [
    SGLD(0.1),
    RMSpropSGLD(0.05, decay=0.9),
    RMSpropSGLD(0.05, decay=0.9, freeze_after=2),
    BAOAB(0.3, 0.7),
    SGNHT(0.3, 0.7),
]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])

SHAPES: dict[str, tuple[int, ...]] = {"layer.weight": (3, 2), "bias": (4,), "a/b": (), "none": (0,)}
C = 3


def weights(dtype: torch.dtype, *, seed: int) -> Params:
    return {n: normal(C, *shape, seed=seed + i).to(dtype)
            for i, (n, shape) in enumerate(SHAPES.items())}  # fmt: skip


def noise(seed: int) -> BlockNoise:
    return BlockNoise(torch.Generator().manual_seed(seed))


def after(sampler: Sampler[Any], dtype: torch.dtype, num_steps: int, *, seed: int = 0) -> Any:
    """A state some steps after its start."""
    numbers = noise(seed)
    state = sampler.init(weights(dtype, seed=seed), numbers)
    for step in range(num_steps):
        state = sampler.step(state, weights(dtype, seed=100 * seed + 10 * step), numbers)
    return state


class TestRoundTrip:
    @each_dtype
    @each_sampler
    def test_every_number_comes_back_through_a_file(self, sampler, dtype):
        saved = state_tensors(after(sampler, dtype, 3, seed=1))
        fresh = after(sampler, dtype, 0, seed=2)
        assert bits(state_tensors(fresh)) != bits(saved)
        got = restored(fresh, load(save(saved)))
        assert type(got) is type(fresh)
        assert bits(state_tensors(got)) == bits(saved)
        assert {n for n, x in saved.items() if x.is_floating_point()} >= {
            f"params/{name}" for name in SHAPES
        }

    @each_dtype
    @each_sampler
    def test_the_next_steps_are_the_same(self, sampler, dtype):
        straight = after(sampler, dtype, 3, seed=1)
        other = restored(after(sampler, dtype, 0, seed=2), state_tensors(straight))
        ends = []
        for state in (straight, other):
            numbers = noise(7)
            for step in range(3):
                state = sampler.step(state, weights(dtype, seed=50 + step), numbers)
            ends.append(bits(state_tensors(state)))
        assert ends[0] == ends[1]

    @each_sampler
    def test_what_was_saved_stays_as_it_was_while_the_chains_go_on(self, sampler):
        state = after(sampler, torch.float64, 2)
        saved = state_tensors(state)
        before = bits(saved)
        sampler.step(state, weights(torch.float64, seed=5), noise(3))
        assert bits(saved) == before

    @each_sampler
    def test_restoring_writes_into_the_states_own_buffers(self, sampler):
        saved = state_tensors(after(sampler, torch.float64, 2))
        before = bits(saved)
        fresh = after(sampler, torch.float64, 0, seed=4)
        places = {n: x.data_ptr() for n, x in fresh.params.items()}
        got = restored(fresh, saved)
        assert {n: x.data_ptr() for n, x in got.params.items()} == places
        sampler.step(got, weights(torch.float64, seed=5), noise(3))
        assert bits(saved) == before

    def test_a_leaf_that_is_not_contiguous_is_saved_by_its_values(self):
        @dataclass(frozen=True)
        class Turned:
            params: Params

        turned = normal(4, 3, seed=0).T
        assert not turned.is_contiguous()
        found = state_tensors(Turned({"w": turned}))["params/w"]
        assert found.is_contiguous() and torch.equal(found, turned)

    def test_numbers_that_are_not_finite_and_signed_zeros_survive(self):
        odd = torch.tensor([[float("nan"), float("inf"), -0.0]], dtype=torch.float64)
        state = SGLD(0.1).init({"w": odd}, noise(0))
        saved = load(save(state_tensors(state)))
        got = restored(SGLD(0.1).init({"w": torch.zeros_like(odd)}, noise(0)), saved)
        assert bits(got.params) == bits({"w": odd})


class TestRefusals:
    @each_sampler
    def test_a_missing_name_is_refused(self, sampler):
        saved = state_tensors(after(sampler, torch.float64, 1))
        for name in saved:
            without = {n: x for n, x in saved.items() if n != name}
            with pytest.raises(ValueError, match=f"the saved state lacks '{name}'"):
                restored(after(sampler, torch.float64, 0), without)

    @pytest.mark.parametrize("shape", [(C, 2, 3), (C + 1, 3, 2), (C, 3, 2, 1)])
    def test_a_saved_state_of_another_shape_is_refused(self, shape):
        saved = state_tensors(after(BAOAB(0.3, 0.7), torch.float64, 1))
        other = {**saved, "velocity/layer.weight": torch.zeros(shape, dtype=torch.float64)}
        with pytest.raises(ValueError, match=r"'velocity/layer.weight' is .* expected .*\(3, 3, 2"):
            restored(after(BAOAB(0.3, 0.7), torch.float64, 0), other)

    def test_a_saved_state_of_another_type_is_refused(self):
        saved = state_tensors(after(SGLD(0.1), torch.float32, 1))
        with pytest.raises(ValueError, match=r"is torch.float32 .*expected torch.float64"):
            restored(after(SGLD(0.1), torch.float64, 0), saved)

    def test_another_samplers_state_is_refused(self):
        saved = state_tensors(after(SGLD(0.1), torch.float64, 1))
        with pytest.raises(ValueError, match="of another sampler or model"):
            restored(after(BAOAB(0.3, 0.7), torch.float64, 0), saved)

    @pytest.mark.parametrize("value", [0.5, "fast", [1, 2], None])
    def test_a_field_that_cannot_be_saved_is_named(self, value):
        @dataclass(frozen=True)
        class Odd:
            params: Params
            extra: Any

        with pytest.raises(TypeError, match=rf"Odd.extra is {type(value).__name__}"):
            state_tensors(Odd({"w": torch.zeros(1, 2)}, value))


FULL_EPOCHS: Mapping[str, Any] = {"batch_size": 6}  # of 20 items: three steps an epoch
GRADIENTS: dict[str, Mapping[str, Any]] = {
    "full": {},
    "minibatch": FULL_EPOCHS,
    "control_variate": FULL_EPOCHS,
}
LAST = 7


def machinery(**changed: Any) -> Engine:
    given = {"chains": 2, "draws": LAST, "burn_in": 1, "thin": 1, **changed}
    problem = classification()
    return Engine(problem, calibrate(problem, replace(TINY, **given)).settings)


def saved_at_every_step(engine: Engine, start: Start, num_chains: int) -> list[Any]:
    found = []
    for position in engine.positions(0, num_chains, start, last_step=LAST):
        saved = start.saved(position)
        losses = {} if position.losses is None else {"losses": position.losses}
        found.append((position.step, bits({**saved, **losses}), saved))
    return found


@pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
@pytest.mark.parametrize("gradient", list(GRADIENTS))
@pytest.mark.parametrize(
    "sampler", ["baoab", "sgld", "rmsprop_sgld", "rmsprop_sgld_frozen", "sgnht"]
)
def test_a_trajectory_resumed_at_every_step_is_the_unbroken_one(sampler, gradient, oracle):
    given = {"sampler": sampler, "gradient": gradient, "oracle": oracle, **GRADIENTS[gradient]}
    engine = machinery(**given)
    num_chains = 1 if oracle == "live" else 2
    unbroken = saved_at_every_step(engine, engine.start(0, num_chains), num_chains)
    assert [step for step, _, _ in unbroken] == list(range(LAST + 1))
    assert len({found["sampler/params/0.weight"] for _, found, _ in unbroken}) == LAST + 1

    fresh = machinery(**given)  # as after the process has ended
    saved: dict[str, Tensor] = unbroken[0][2]
    for step in range(LAST):
        start = fresh.resumed(0, num_chains, load(save(saved)), step=step, same_device=True)
        positions = fresh.positions(0, num_chains, start, last_step=step + 1)
        for position, (_, expected, _) in zip(positions, unbroken[step:], strict=False):
            saved = start.saved(position)
            losses = {} if position.losses is None else {"losses": position.losses}
            assert bits({**saved, **losses}) == expected


@pytest.mark.parametrize("step", [0, 3, 6])
def test_numbers_of_another_device_are_drawn_afresh_from_the_saved_weights(step):
    engine = machinery()
    unbroken = saved_at_every_step(engine, engine.start(0, 2), 2)
    saved = {n: x for n, x in unbroken[step][2].items() if n != "noise"}
    runs = []
    for _ in range(2):
        start = engine.resumed(0, 2, saved, step=step, same_device=False)
        runs.append(saved_at_every_step(engine, start, 2))
    first, again = runs
    name = "sampler/params/0.weight"
    assert first[0][1][name] == unbroken[step][1][name]
    assert first[-1][1][name] != unbroken[-1][1][name]
    assert first[-1][1] == again[-1][1]


def test_masked_weights_stay_where_they_are_after_a_restart():
    engine = machinery(movable=("2.*",))
    start = engine.start(0, 2)
    saved = saved_at_every_step(engine, start, 2)[-1][2]
    assert {n for n in saved if n.startswith("sampler/params")} == {
        "sampler/params/2.weight", "sampler/params/2.bias",
    }  # fmt: skip
    state: HasParams = engine.resumed(0, 2, saved, step=LAST, same_device=True).state
    center = dict(network().named_parameters())
    assert set(state.params) < set(center)
