"""Step chains: trajectories, and the draws among their steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from bif.sampling.oracles.compilation import compiled
from bif.sampling.oracles.precision import Precision, matmul_precision
from bif.sampling.posterior import LocalPosterior
from bif.types import Draw, Gradient, Noise, Params, Sampler, State


@dataclass(frozen=True)
class Position(Generic[State]):
    """A block of chains before a step; with its noise, all it takes to go on.

    Args:
        step: The step that comes next.
        state: State of the sampler; its buffers hold until the next position is asked for.
        losses: Losses of the train items `[C, N]` here, where the gradient brought them along.
        gradient: Gradient of the mean loss at these weights, or its estimate; its buffers hold as
            long as the state's.  None where no step ever holds it.
    """

    step: int
    state: State
    losses: Tensor | None
    gradient: Params | None = None


class _Drawn:
    """The numbers of a step, drawn beforehand: a generator cannot be compiled."""

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


def trajectory(
    sampler: Sampler[State],
    posterior: LocalPosterior,
    *,
    gradient: Gradient,
    state: State,
    noise: Noise,
    first_step: int,
    last_step: int,
    use_compile: bool = False,
    precision: Precision = "float32",
) -> Iterator[Position[State]]:
    """Step one block of chains, from the position before `first_step` to that before `last_step`.

    Nothing here waits for the device.

    Args:
        sampler: The rule.
        posterior: Turns the mean loss's gradient into the potential's.
        gradient: Gradient of the mean loss at given weights and step.
        state: The sampler's, from its `init` or from an earlier position; overwritten.
        noise: The block's numbers.
        first_step: The step at which `state` stands.
        last_step: The step at which to end.
        use_compile: Compile the elementwise part of a step into few kernels by `torch.compile`.
        precision: Precision of the products with a sampler's mass.

    Yields:
        Every position, the first and the last included.
    """

    def advance(state: State, gradient: Params, drawn: Params) -> State:
        force = posterior.potential_gradient_(gradient, state.params)
        return sampler.step(state, force, _Drawn(drawn))

    if use_compile:
        advance = compiled(advance)
    for step in range(first_step, last_step + 1):
        with torch.no_grad():
            estimate = gradient(state.params, step)
        yield Position(step, state, estimate.losses, estimate.gradient)
        if step < last_step:
            with torch.no_grad(), matmul_precision(precision):
                state = advance(state, estimate.gradient, noise.normal(state.params))


def draw_index(step: int, *, burn_in: int, thin: int) -> int | None:
    """Return which draw the position before a step is, if any."""
    index, off = divmod(step - burn_in, thin)
    return index if index >= 0 and off == 0 else None


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
    positions = trajectory(
        sampler,
        posterior,
        gradient=gradient,
        state=sampler.init(params, noise),
        noise=noise,
        first_step=0,
        last_step=burn_in + (num_draws - 1) * thin,
        use_compile=use_compile,
    )
    for position in positions:
        index = draw_index(position.step, burn_in=burn_in, thin=thin)
        if index is not None:
            yield Draw(index, position.state.params, position.losses)
