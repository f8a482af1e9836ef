"""The chains: a generator of draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bif.posterior import LocalPosterior
from bif.types import Draw, Gradient, Noise, Params, Sampler, State


def run_chains(
    sampler: Sampler[State],
    posterior: LocalPosterior,
    *,
    gradient: Gradient,
    params: Params,
    noise: Noise,
    num_draws: int,
    burn_in: int,
    thin: int,
) -> Iterator[Draw]:
    """Step one block of chains and yield its draws.

    The gradient is taken at each draw anyway, so where it brings along the items' losses they are
    the draw's.  Nothing here waits for the device.

    Args:
        sampler: The rule.
        posterior: Turns the mean loss's gradient into the potential's.
        gradient: Gradient of the mean loss at given weights and step.
        params: Where the chains start, leaves `[C, *shape]`; overwritten.
        noise: The block's numbers.
        num_draws: Draws of each chain, D.
        burn_in: Steps before the first draw.
        thin: Steps from one draw to the next.

    Yields:
        Draws; their buffers hold until the next one is asked for.
    """
    state = sampler.init(params, noise)
    last_step = burn_in + (num_draws - 1) * thin
    for step in range(last_step + 1):
        with torch.no_grad():
            estimate = gradient(state.params, step)
        index, off = divmod(step - burn_in, thin)
        if index >= 0 and off == 0:
            yield Draw(index, state.params, estimate.losses)
        if step < last_step:
            with torch.no_grad():
                force = posterior.potential_gradient_(estimate.gradient, state.params)
                state = sampler.step(state, force, noise)
