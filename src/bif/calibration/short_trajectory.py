"""Follow a short trajectory from w*, with steps so small that chains stay in the posterior."""

from __future__ import annotations

from math import sqrt

from bif import tensors
from bif.sampling.chain import trajectory
from bif.sampling.posterior import LocalPosterior
from bif.sampling.samplers import BAOAB
from bif.types import Gradient, Mass, Noise, Params

STEPS = 60
"""Steps of the trajectory."""
NUM_PLACES = 3
"""Places of the trajectory that are returned, its end the last of them."""
CAREFUL = 0.3
"""Step size in units of 1 / sqrt(largest curvature at w*): away from it the curvature may be 40
times as large before steps are unstable."""
_ATTEMPTS = 4
"""Steps that are tried before chains are said to run off."""
_SMALLER = 3.0
"""Divisor of the step after chains have run off."""


def short_trajectory(
    posterior: LocalPosterior,
    *,
    gradient: Gradient,
    params: Params,
    noise: Noise,
    k_max: float,
    mass: Mass | None = None,
) -> list[Params] | None:
    """Return the weights along `STEPS` steps of underdamped Langevin dynamics.

    Velocities that are too large for the temperature, and for all the loss that there is to lose,
    show curvatures for which the step is too long: the trajectory begins again with a third of it.

    Args:
        posterior: Posterior whose potential is U.
        gradient: Gradient of the mean loss.
        params: Where it begins, leaves `[C, *shape]`.
        noise: For velocities and steps.
        k_max: Largest curvature of U there, in the coordinates of the mass.
        mass: Unit mass if None.

    Returns:
        Leaves `[C, *shape]` at `NUM_PLACES` places; None where even the smallest steps run off.
    """
    friction = 1.0 if mass is not None else 2 * sqrt(max(posterior.gamma, 1e-3 * k_max))
    step_size = CAREFUL / sqrt(k_max)
    for _ in range(_ATTEMPTS):
        sampler = BAOAB(step_size, friction, mass)
        state, to_lose = sampler.init(tensors.copied(params), noise), 0.0
        seen: list[Params] = []
        for position in trajectory(
            sampler, posterior, gradient=gradient, state=state, noise=noise, first_step=0,
            last_step=STEPS,
        ):  # fmt: skip
            state = position.state
            if position.step == 0 and position.losses is not None:
                to_lose = posterior.nbeta * float(position.losses.mean(dim=1).abs().max())
            if position.step and position.step % (STEPS // NUM_PLACES) == 0:
                seen.append(tensors.copied(state.params))
        if _as_expected(state.velocity, posterior.num_moving, to_lose):
            return seen
        step_size /= _SMALLER
    return None


def _as_expected(velocity: Params, num_moving: int, to_lose: float) -> bool:
    """Return whether every chain's `|v|²`, of mean `num_moving`, is what chance allows."""
    most = 2 * (num_moving + to_lose) + 50
    return bool((tensors.squared_norm(velocity) < most).all())
