"""A walk from w* finds a step with which its chains stay at their temperature."""

from __future__ import annotations

import pytest
import torch

from bif.careful_walk import CAREFUL, careful_walk
from bif.posterior import LocalPosterior
from bif.rng import BlockNoise, generator
from bif.types import GradientEstimate, Params

NUM_CHAINS, NUM_WEIGHTS = 4, 200


def walked(curvature: float, *, looks_like: float) -> Params | None:
    """A walk on a quadratic loss whose curvature was taken for another."""
    center = {"w": torch.zeros(NUM_WEIGHTS, dtype=torch.float64)}
    posterior = LocalPosterior(center, 1.0, 1e-6)

    def gradient(params: Params, step: int) -> GradientEstimate:
        return GradientEstimate({"w": curvature * params["w"]}, None)

    return careful_walk(
        posterior,
        gradient=gradient,
        params={"w": torch.zeros(NUM_CHAINS, NUM_WEIGHTS, dtype=torch.float64)},
        noise=BlockNoise(generator(0, 0, "probe", device=torch.device("cpu")), posterior.masks),
        k_max=looks_like,
    )


@pytest.mark.parametrize("times", [1, 40, 300, 3000])
def test_a_curvature_that_was_underestimated_makes_the_steps_smaller(times):
    ended = walked(float(times), looks_like=1.0)
    assert ended is not None
    step = CAREFUL
    while step**2 * times >= 4:
        step /= 3
    # A long walk has the posterior's variance, 1 / curvature; a short one, with steps of size h,
    # what velocities of N(0, 1) swing to: 1 / (1 - h² curvature / 4) times as much.
    assert 0 < float(times * ended["w"].square().mean()) < 1.5 / (1 - step**2 * times / 4)


def test_steps_that_are_all_too_large_are_an_answer_of_their_own():
    smallest = CAREFUL / 27
    assert walked(4.5 / smallest**2, looks_like=1.0) is None


def test_a_walk_begins_where_it_is_told_and_leaves_that_as_it_was():
    start = torch.zeros(NUM_CHAINS, NUM_WEIGHTS, dtype=torch.float64)
    ended = walked(1.0, looks_like=1.0)
    assert ended is not None and not start.any()
    assert ended["w"].shape == start.shape and ended["w"].std() > 0.1
