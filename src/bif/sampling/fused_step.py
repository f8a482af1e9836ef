"""Step inside the backward pass: each leaf moves as soon as its gradient is complete.

The gradient of the whole model never exists, nor a second copy of anything as large.  The samplers
are the same as ever: they act elementwise, so a few rows of one leaf are a state like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from bif.problem.items import Items, map_batch
from bif.sampling.chain import Position
from bif.sampling.oracles import LiveOracle
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, LeafNoise, ShuffledOrder
from bif.sampling.samplers import names_of
from bif.sampling.stochastic_rounding import round_stochastically_
from bif.types import Params, Sampler, State

ROWS_OF = 2**24
"""Numbers that move at a time: a step needs a few times their memory besides."""


class StreamedGradient:
    """The mean loss's gradient at a live module's own weights, leaf by leaf.

    Args:
        oracle: Source of gradients.
        items: The train items.
        order: Items that the chain sees at each step; None for all of them.
        train_weights: rho `[N]`.
    """

    def __init__(
        self,
        oracle: LiveOracle,
        items: Items,
        *,
        order: ShuffledOrder | None,
        train_weights: Tensor,
    ) -> None:
        self._oracle, self._items, self._order = oracle, items, order
        self._weights = train_weights / (len(items) if order is None else order.batch_size)

    def __call__(self, step: int, take: Callable[[str, Tensor], None]) -> None:
        """Hand every leaf's name and gradient `[1, *shape]` to `take`, which may move the leaf."""
        if self._order is None:
            _, batch = next(self._items.chunks(len(self._items)))
            weights = self._weights
        else:
            indices = self._order.indices(step)
            batch = map_batch(lambda leaf: leaf[0], self._items.take(indices))
            weights = self._weights[indices[0]]
        self._oracle.stream(batch, weights, take)


def fused_trajectory(
    sampler: Sampler[State],
    posterior: LocalPosterior,
    *,
    gradient: StreamedGradient,
    state: State,
    noise: LeafNoise,
    first_step: int,
    last_step: int,
) -> Iterator[Position[State]]:
    """Step one live chain as `trajectory` does, with each step inside its backward pass.

    Losses of the train items do not come along: the weights already move while they are computed.
    Weights in bfloat16 step in float32 and are rounded stochastically.

    Args:
        sampler: The rule; elementwise, with a state of leaves and whole numbers.
        posterior: Turns the mean loss's gradient into the potential's.
        gradient: Hands out the leaves' gradients.
        state: The sampler's, over the live module's own weights; they are moved in place.
        noise: The block's numbers.
        first_step: The step at which `state` stands.
        last_step: The step at which to end.

    Yields:
        Every position, the first and the last included.

    Raises:
        TypeError: A sampler whose state holds numbers shared by all leaves, such as a thermostat.
    """
    moves = {name: _rows(posterior, name) for name in state.params}
    numbers: dict[str, int] = {}

    def take(name: str, leaf: Tensor) -> None:
        for rows in moves[name]:
            numbers.update(rows.step_(sampler, state, leaf, noise.sources[name]))

    for step in range(first_step, last_step + 1):
        yield Position(step, state, None)
        if step < last_step:
            with torch.no_grad():
                gradient(step, take)
            # Every leaf has counted the step from the same number.
            state = replace(state, **numbers) if numbers else state  # type: ignore[type-var]


def _rows(posterior: LocalPosterior, name: str) -> list[_Rows]:
    """Yield all rows of a leaf that move, some at a time."""
    leaf, mask = posterior.center[name], posterior.masks.get(name)
    count = leaf.shape[0] if leaf.dim() else 1
    size = max(1, count * ROWS_OF // max(1, leaf.numel()))
    parts = [slice(start, start + size) for start in range(0, count, size)]
    if mask is not None and leaf.dim():
        parts = [rows for rows in parts if mask[rows].any()]
    return [_Rows(posterior, name, rows) for rows in parts]


class _Rows:
    """Some rows of one leaf, and the posterior over them."""

    def __init__(self, posterior: LocalPosterior, name: str, rows: slice) -> None:
        self.name, self.rows = name, rows
        mask = posterior.masks.get(name)
        self.posterior = replace(
            posterior,
            center={name: self._of(posterior.center[name])},
            movable={name: True if mask is None else self._of(mask)},
            copies_center=False,
        )

    def step_(
        self, sampler: Sampler[Any], state: Any, gradient: Tensor, source: torch.Generator
    ) -> dict[str, int]:
        """Move these rows of every leaf of the state; returns the state's whole numbers.

        The gradient is left as it is: another leaf's may be the same memory.
        """
        here = {
            field: {self.name: self._of(leaves[self.name][0]).unsqueeze(0)}
            for field, leaves in _leaves(state).items()
        }
        wide = {field: {n: _wide(x) for n, x in leaf.items()} for field, leaf in here.items()}
        force = self.posterior.potential_gradient_(
            {self.name: _wide(self._of(gradient[0]).unsqueeze(0), copy=True)}, wide["params"]
        )
        after = sampler.step(
            replace(state, **wide), force, BlockNoise(source, self.posterior.masks)
        )
        for field, leaf in here.items():
            _write_(leaf[self.name], getattr(after, field)[self.name], source)
        return {f.name: getattr(after, f.name) for f in fields(after) if f.name not in here}

    def _of(self, leaf: Tensor) -> Tensor:
        return leaf[self.rows] if leaf.dim() else leaf


def _leaves(state: Any) -> Mapping[str, Params]:
    """Return the fields of a sampler's state that are leaves.

    Raises:
        TypeError: One is a tensor, shared by all leaves.
    """
    found = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            found[field.name] = value
        elif isinstance(value, Tensor):
            raise TypeError(
                f"{type(state).__name__}.{field.name} is one tensor for all leaves, so the leaves "
                "cannot move one by one: use memory='plain', or one of the samplers "
                f"{names_of(lambda traits: traits.leafwise)}."
            )
    return found


def _wide(x: Tensor, *, copy: bool = False) -> Tensor:
    """Return the leaf in float32, or in its own type if that is no narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=copy)


def _write_(target: Tensor, x: Tensor, source: torch.Generator) -> None:
    """Put new values in place, which most samplers have done already."""
    if target.dtype == torch.bfloat16:
        round_stochastically_(target, x, source)
    elif target.data_ptr() != x.data_ptr():
        target.copy_(x)
