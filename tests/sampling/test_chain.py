"""run_chains: which steps are draws, and whose weights and losses a draw holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import bif
from bif import losses
from bif.problem.items import Items
from bif.samplers import BAOAB
from bif.sampling.chain import run_chains
from bif.sampling.gradients import FullGradient, MiniBatchGradient
from bif.sampling.observe import observe
from bif.sampling.oracles import StackedOracle
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, ShuffledOrder
from bif.tensors import stacked
from bif.types import GradientEstimate, Noise, Params
from small_problems import labelled, network

C = 3


@dataclass(frozen=True)
class Count:
    params: Params


@dataclass
class Counter:
    """A "sampler" that adds 1 to every weight at every step and keeps the forces it saw."""

    forces: list[float] = field(default_factory=list)

    def init(self, params: Params, noise: Noise) -> Count:
        return Count(params)

    def step(self, state: Count, gradient: Params, noise: Noise) -> Count:
        self.forces.append(float(gradient["w"][0, 0]))
        return Count({"w": state.params["w"].add_(1)})


@pytest.mark.parametrize(
    ("num_draws", "burn_in", "thin"), [(1, 0, 1), (5, 0, 1), (4, 3, 1), (4, 2, 3), (2, 7, 5)]
)
def test_draws_come_after_burn_in_and_then_every_thin_steps(num_draws, burn_in, thin):
    asked: list[tuple[int, float]] = []

    def gradient(params: Params, step: int) -> GradientEstimate:
        asked.append((step, float(params["w"][0, 0])))
        return GradientEstimate({"w": torch.full_like(params["w"], float(step))}, None)

    sampler = Counter()
    draws = run_chains(
        sampler,
        LocalPosterior({"w": torch.zeros(2)}, nbeta=10.0, gamma=1.0),
        gradient=gradient,
        params={"w": torch.zeros(C, 2)},
        noise=BlockNoise(torch.Generator()),
        num_draws=num_draws,
        burn_in=burn_in,
        thin=thin,
    )
    seen = [(draw.index, float(draw.params["w"][0, 0])) for draw in draws]
    last = burn_in + (num_draws - 1) * thin
    assert seen == [(i, float(burn_in + i * thin)) for i in range(num_draws)]
    # One gradient at each weight, the last draw's included; no step that nobody looks at.
    assert asked == [(step, float(step)) for step in range(last + 1)]
    # The force is that of U: nbeta * gradient + gamma * (w - center).
    assert sampler.forces == [10.0 * step + step for step in range(last)]


def chains(gradient: Any, *, burn_in: int = 5):
    center = {n: p.detach() for n, p in network().named_parameters()}
    return run_chains(
        BAOAB(0.1, 1.0),
        LocalPosterior(center, nbeta=20.0, gamma=2.0),
        gradient=gradient,
        params=stacked(center, C),
        noise=BlockNoise(torch.Generator().manual_seed(0)),
        num_draws=4,
        burn_in=burn_in,
        thin=3,
    )


def pieces():
    oracle = StackedOracle(network().eval().requires_grad_(False), losses.cross_entropy)
    return oracle, Items(labelled(20, seed=1)), torch.ones(20, dtype=torch.float64)


def test_losses_of_a_full_gradient_belong_to_the_draws_own_weights():
    oracle, items, weights = pieces()
    count, levels = 0, set()
    gradient = FullGradient(oracle, items, chunk_size=7, train_weights=weights)
    for draw in chains(gradient):
        expected = observe(oracle, losses.cross_entropy, draw.params, items, chunk_size=20)
        assert draw.losses is not None and draw.losses.shape == (C, 20)
        torch.testing.assert_close(draw.losses, expected, rtol=0, atol=1e-12)
        count += 1
        levels.add(float(expected.mean()))
    assert count == 4 and len(levels) == 4


def test_without_burn_in_the_first_draw_is_the_start():
    oracle, items, weights = pieces()
    gradient = FullGradient(oracle, items, chunk_size=20, train_weights=weights)
    first = next(iter(chains(gradient, burn_in=0)))
    for name, p in network().named_parameters():
        assert all(torch.equal(leaf, p.detach()) for leaf in first.params[name])


def test_mini_batches_bring_no_losses():
    oracle, items, weights = pieces()
    order = ShuffledOrder(20, 5, num_chains=C, seed=0, block=0, device=torch.device("cpu"))
    gradient = MiniBatchGradient(oracle, items, order=order, train_weights=weights)
    assert [draw.losses for draw in chains(gradient)] == [None] * 4


def test_the_callers_gradient_mode_is_left_alone_between_draws():
    oracle, items, weights = pieces()
    gradient = FullGradient(oracle, items, chunk_size=20, train_weights=weights)
    modes = []
    for draw in chains(gradient):
        modes.append(torch.is_grad_enabled())
        assert not any(leaf.requires_grad for leaf in draw.params.values())
    assert modes == [True] * 4 and torch.is_grad_enabled()


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 50])
def test_observed_values_do_not_depend_on_chunks(chunk_size):
    oracle, items, _ = pieces()
    params = stacked({n: p.detach() for n, p in network().named_parameters()}, C)
    got = observe(oracle, bif.losses.margin, params, items, chunk_size=chunk_size)
    expected = bif.losses.margin(network(), items.data).detach()
    torch.testing.assert_close(got, expected.expand(C, -1), rtol=0, atol=1e-12)


class Greedy(Counter):
    """A "sampler" that takes noise twice in a step."""

    def step(self, state: Count, gradient: Params, noise: Noise) -> Count:
        noise.normal(state.params)
        noise.normal(state.params)
        return state


def chain_of(sampler, *, use_compile: bool = False):
    return run_chains(
        sampler,
        LocalPosterior({"w": torch.ones(5, dtype=torch.float64)}, nbeta=1.0, gamma=1.0),
        gradient=lambda params, step: GradientEstimate({"w": params["w"].clone()}, None),
        params={"w": torch.ones(C, 5, dtype=torch.float64)},
        noise=BlockNoise(torch.Generator().manual_seed(0)),
        num_draws=6,
        burn_in=0,
        thin=1,
        use_compile=use_compile,
    )


def test_a_sampler_that_takes_noise_twice_in_a_step_is_refused():
    with pytest.raises(RuntimeError, match="asked for noise a second time"):
        list(chain_of(Greedy()))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [bif.samplers.SGLD(0.1), bif.samplers.BAOAB(0.3, 1.0),
                                     bif.samplers.SGNHT(0.3, 1.0)])  # fmt: skip
def test_a_compiled_step_is_the_eager_step(sampler):
    pairs = zip(chain_of(sampler), chain_of(sampler, use_compile=True), strict=True)
    for eager, fused in pairs:
        torch.testing.assert_close(eager.params, fused.params, rtol=0, atol=1e-12)
