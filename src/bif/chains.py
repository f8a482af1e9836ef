"""The chains: a generator of draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bif.compiling import compiled
from bif.posterior import LocalPosterior
from bif.types import Draw, Gradient, Noise, Params, Sampler, State


class _Drawn:
    """A step's numbers, drawn beforehand: a generator cannot be compiled."""

    def __init__(self, drawn: Params) -> None:
        self._drawn: Params | None = drawn

    def normal(self, like: Params) -> Params:
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            raise RuntimeError(
                "a sampler's step asked for noise a second time: its numbers are drawn before the "
                "step, one for each weight. Take them once, or keep further ones in the state."
            )
        return drawn


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
    use_compile: bool = False,
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
        use_compile: Compile the elementwise part of a step into few kernels by `torch.compile`.

    Yields:
        Draws; their buffers hold until the next one is asked for.
    """

    def advance(state: State, gradient: Params, drawn: Params) -> State:
        force = posterior.potential_gradient_(gradient, state.params)
        return sampler.step(state, force, _Drawn(drawn))

    if use_compile:
        advance = compiled(advance)
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
                state = advance(state, estimate.gradient, noise.normal(state.params))
