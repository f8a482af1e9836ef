"""A trajectory from w* finds a step with which its chains stay at their temperature."""

from __future__ import annotations

import math

import pytest
import torch

from bif.calibration.short_trajectory import CAREFUL, NUM_PLACES, STEPS, short_trajectory
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, generator
from bif.types import GradientEstimate, Params

NUM_CHAINS, NUM_WEIGHTS = 4, 200
FRICTION = 2 * math.sqrt(1e-3)  # of a trajectory with k_max = 1


def trajectory_of(
    curvature: float, *, taken_for: float, start: float = 0.0, losses: bool = False
) -> Params | None:
    """A trajectory on a quadratic loss whose curvature was taken for another."""
    center = {"w": torch.zeros(NUM_WEIGHTS, dtype=torch.float64)}
    posterior = LocalPosterior(center, 1.0, 1e-6)

    def gradient(params: Params, step: int) -> GradientEstimate:
        w = params["w"]
        loss = 0.5 * curvature * w.square().sum(dim=1, keepdim=True)
        return GradientEstimate({"w": curvature * w}, loss if losses else None)

    begin = torch.full((NUM_CHAINS, NUM_WEIGHTS), start, dtype=torch.float64)
    seen = short_trajectory(
        posterior,
        gradient=gradient,
        params={"w": begin},
        noise=BlockNoise(generator(0, 0, "probe", device=torch.device("cpu")), posterior.masks),
        k_max=taken_for,
    )
    assert (begin == start).all()
    assert seen is None or len(seen) == NUM_PLACES
    return None if seen is None else seen[-1]


@pytest.mark.parametrize("times", [1, 40, 300, 3000])
def test_a_curvature_that_was_underestimated_makes_the_steps_smaller(times):
    ended = trajectory_of(float(times), taken_for=1.0)
    assert ended is not None
    step = CAREFUL
    while step**2 * times >= 4:
        step /= 3
    # A long trajectory has the posterior's variance, 1 / curvature; a short one, with steps of size
    # h, has what velocities of N(0, 1) reach in its time: at most 1 / (1 - h² curvature / 4) times
    # as much.
    swing = 1 / (1 - step**2 * times / 4)
    assert 0.3 < float(times * ended["w"].square().mean()) < 1.5 * swing


def test_steps_that_are_all_too_large_are_an_answer_of_their_own():
    smallest = CAREFUL / 27
    assert trajectory_of(4.5 / smallest**2, taken_for=1.0) is None


def test_a_trajectory_begins_at_the_given_weights():
    # With steps that are far too careful it hardly leaves.
    ended = trajectory_of(1.0, taken_for=1e8, start=3.0)
    assert ended is not None and float((ended["w"] - 3.0).abs().max()) < 0.05


@pytest.mark.parametrize("losses", [True, False])
def test_loss_that_turns_into_velocity_is_no_run_off_where_it_is_known(losses):
    # From 4 standard deviations in every direction chains fall with an energy 16 times that of
    # their temperature; unless that is allowed for, the first trajectories end with too large
    # velocities.
    ended = trajectory_of(1.0, taken_for=1.0, start=4.0, losses=losses)
    assert ended is not None
    step = CAREFUL if losses else CAREFUL / 3
    time, frequency = STEPS * step, 2 / step * math.asin(step / 2)
    fallen = 4.0 * math.cos(frequency * time) * math.exp(-0.5 * FRICTION * time)
    assert abs(float(ended["w"].mean()) - fallen) < 0.2
