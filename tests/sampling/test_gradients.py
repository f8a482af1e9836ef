"""Gradients of the mean loss: full, mini-batches, control variates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bif import losses
from bif.problem.items import Items
from bif.sampling.gradients import ControlVariateGradient, FullGradient, MiniBatchGradient
from bif.sampling.oracles import StackedOracle
from bif.sampling.rng import ShuffledOrder
from bif.tensors import stacked
from bif.types import Gradient, Params
from small_problems import Pairs, labelled, network, normal, stack_near

N, B, C = 24, 6, 3
TRAIN = labelled(N, seed=1)
WEIGHTS = normal(N, seed=2).exp()
CENTER = {n: p.detach() for n, p in network().named_parameters()}
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}


def oracle() -> StackedOracle:
    return StackedOracle(network().eval().requires_grad_(False), losses.cross_entropy)


def order() -> ShuffledOrder:
    return ShuffledOrder(N, B, num_chains=C, seed=0, block=0, device=torch.device("cpu"))


def full(chunk_size: int = N, items: Any = TRAIN) -> FullGradient:
    return FullGradient(oracle(), Items(items), chunk_size=chunk_size, train_weights=WEIGHTS)


def mini_batch(items: Any = TRAIN) -> MiniBatchGradient:
    return MiniBatchGradient(oracle(), Items(items), order=order(), train_weights=WEIGHTS)


def control_variate(items: Any = TRAIN) -> ControlVariateGradient:
    return ControlVariateGradient(
        oracle(),
        Items(items),
        order=order(),
        train_weights=WEIGHTS,
        center=stacked(CENTER, C),
        center_gradient=full()(stacked(CENTER, 1), 0).gradient,
    )


NOISY: dict[str, Callable[..., Gradient]] = {
    "mini-batch": mini_batch,
    "control variate": control_variate,
}


def flat(params: Params) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in params.values()], dim=1)


def displaced(distance: float) -> Params:
    direction = stack_near({n: torch.zeros_like(p) for n, p in CENTER.items()}, C)
    return {n: CENTER[n] + distance * d for n, d in direction.items()}


def test_the_full_gradient_is_autograds_of_the_weighted_mean_loss():
    params = stack_near(CENTER, C)
    gradient, values = full()(params, 0)
    assert values is not None
    for c in range(C):
        model = network()
        model.load_state_dict({n: leaf[c] for n, leaf in params.items()})
        expected = losses.cross_entropy(model, TRAIN)
        (WEIGHTS * expected).mean().backward()
        torch.testing.assert_close(values[c], expected.detach(), **EXACT)
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradient[name][c], p.grad, **EXACT)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_chunks_change_neither_the_full_gradient_nor_its_losses(chunk_size):
    params = stack_near(CENTER, C)
    whole, parts = full()(params, 0), full(chunk_size)(params, 0)
    torch.testing.assert_close(flat(parts.gradient), flat(whole.gradient), **EXACT)
    torch.testing.assert_close(parts.losses, whole.losses, **EXACT)


@pytest.mark.parametrize("kind", NOISY)
class TestMiniBatches:
    def test_the_mean_over_an_epoch_is_the_full_gradient(self, kind):
        params = stack_near(CENTER, C)
        expected, gradient = flat(full()(params, 0).gradient), NOISY[kind]()
        steps = N // B
        for epoch in range(2):
            parts = [
                flat(gradient(params, step).gradient)
                for step in range(epoch * steps, (epoch + 1) * steps)
            ]
            torch.testing.assert_close(torch.stack(parts).mean(dim=0), expected, **EXACT)

    def test_chains_see_batches_of_their_own(self, kind):
        same = {n: leaf[:1].expand(C, *leaf.shape[1:]) for n, leaf in displaced(1.0).items()}
        gradient = flat(NOISY[kind]()(same, 0).gradient)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (gradient[a] - gradient[b]).abs().max() > 1e-3

    def test_a_step_gives_the_same_gradient_whenever_it_is_asked_for(self, kind):
        params, gradient = displaced(1.0), NOISY[kind]()
        first = flat(gradient(params, 5).gradient)
        flat(gradient(params, 2).gradient)
        assert torch.equal(flat(gradient(params, 5).gradient), first)
        assert torch.equal(flat(NOISY[kind]()(params, 5).gradient), first)

    def test_gradients_of_mini_batches_bring_no_losses(self, kind):
        assert NOISY[kind]()(displaced(1.0), 0).losses is None

    def test_a_dataset_gives_the_gradients_of_its_tensors(self, kind):
        params = displaced(1.0)
        got = flat(NOISY[kind](Pairs(*TRAIN))(params, 3).gradient)
        assert torch.equal(got, flat(NOISY[kind]()(params, 3).gradient))

    def test_one_batch_is_autograds_of_its_items(self, kind):
        params, step = displaced(1.0), 2
        indices = order().indices(step)
        got = NOISY[kind]()(params, step).gradient

        def of_batch(weights: Params, c: int) -> Params:
            model = network()
            model.load_state_dict({n: leaf[c] for n, leaf in weights.items()})
            values = losses.cross_entropy(model, tuple(t[indices[c]] for t in TRAIN))
            (WEIGHTS[indices[c]] * values).mean().backward()
            return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

        at_center = full()(stacked(CENTER, 1), 0).gradient
        for c in range(C):
            here, there = of_batch(params, c), of_batch(stacked(CENTER, C), c)
            for name in here:
                expected = here[name]
                if kind == "control variate":
                    expected = expected - there[name] + at_center[name][0]
                torch.testing.assert_close(got[name][c], expected, **EXACT)


def test_the_control_variate_is_exact_at_the_center():
    center = stacked(CENTER, C)
    expected, gradient = flat(full()(center, 0).gradient), control_variate()
    for step in range(2 * N // B):
        torch.testing.assert_close(flat(gradient(center, step).gradient), expected, **EXACT)


def noise_variance(gradient: Gradient, distance: float) -> float:
    """Mean squared distance of mini-batch gradients to the full one, over 50 epochs."""
    params = displaced(distance)
    expected = flat(full()(params, 0).gradient)
    steps = range(50 * N // B)
    errors = [(flat(gradient(params, s).gradient) - expected).square().sum() for s in steps]
    return float(torch.stack(errors).mean())


def test_the_control_variates_noise_vanishes_quadratically_at_the_center():
    # Noise is Σ_batch (g_i(w) - g_i(w*)) = Σ_batch H_i (w - w*) (1 + O(|w - w*|)).
    gradient = control_variate()
    ratio = noise_variance(gradient, 2e-4) / noise_variance(gradient, 1e-4)
    assert ratio == pytest.approx(4, rel=1e-2)
    assert noise_variance(gradient, 1e-4) < 1e-6 * noise_variance(mini_batch(), 1e-4)
