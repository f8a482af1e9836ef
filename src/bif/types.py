"""The vocabulary shared by all rooms: aliases, records and protocols, no logic.

Leaves of `Params` always carry the chain axis: `[C, *shape]`.  A live module is a stack of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Params = dict[str, Tensor]
"""Named weights; with a chain axis `[C, *shape]` unless a docstring says `[*shape]`."""

Batch = Any
"""A tensor, or a tuple, list or dict of tensors, with the item axis B first."""

ItemLoss = Callable[[nn.Module, Batch], Tensor]
"""`loss(model, batch) -> [B]`, or `[B, T]` whose token losses are summed to the item's loss."""

Better = Literal["lower", "higher"]

Target = Literal["scratch", "checkpoint"]
"""Where retrained networks start: fresh weights, or the trained ones, w*."""


class GradientEstimate(NamedTuple):
    """The gradient of the mean loss at the chains' weights.

    `gradient` has leaves `[C, *shape]`; `losses` `[C, N]` are the losses of *all* train items at
    those weights where they fell out of the gradient's own forward pass, else None.
    """

    gradient: Params
    losses: Tensor | None


@dataclass(frozen=True)
class Draw:
    """One draw of every chain of a block.

    `params` are donated buffers: they hold this draw until the next one is asked for.
    """

    index: int
    params: Params
    losses: Tensor | None


class Noise(Protocol):
    """A source of standard normal numbers for one block of chains."""

    def normal(self, like: Params) -> Params:
        """Return independent N(0, 1) in the shapes of `like`; 0 where a weight may not move."""
        ...


class Gradient(Protocol):
    """A way to the gradient of the mean loss: all items, mini-batches, control variates."""

    def __call__(self, params: Params, step: int) -> GradientEstimate: ...


class Shards(Protocol):
    """The processes among which the rows of one model's weights are split, seen from one of them.

    All of them make the same calls in the same order.

    Attributes:
        count: Number of shards, K.
        index: This process's shard, from 0 on.
    """

    count: int
    index: int

    def local(self, leaf: Tensor) -> Tensor:
        """Return this shard's rows of a whole leaf; perhaps none."""
        ...

    def place(
        self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | None
    ) -> Callable[[Callable[[Batch], Tensor], Batch], Tensor]:
        """Move a model's weights to the device, of which each shard keeps its own.

        Args:
            model: Changed in place.
            blocks: Modules whose weights are together on the device, one block at a time.
            device: That of this process; the model's own if None.

        Returns:
            `call(function, batch)`, in which the function sees the whole model.
        """
        ...

    def view(self, parameter: Tensor) -> Tensor:
        """Return this shard's rows of a placed parameter or of its gradient, as a view."""
        ...

    def rows(self, count: int) -> range:
        """Return this shard's part of so many items, as long as all others; it may reach beyond."""
        ...

    def joined(self, values: Tensor, count: int) -> Tensor:
        """Return the values of all items `[count * m]` from those of `rows` of every shard."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the shards."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return the values of all shards, in their order."""
        ...

    def of_first(self, value: T) -> T:
        """Return the first shard's value on all of them."""
        ...


State = TypeVar("State", bound="HasParams")


class HasParams(Protocol):
    """A sampler's state: it has the weights at which the next gradient is wanted."""

    @property
    def params(self) -> Params: ...


class Mass(Protocol):
    """Coordinates for a sampler: `M^(-1/2)` and its transpose, on leaves `[C, *shape]`."""

    def to_weights(self, velocity: Params) -> Params:
        """Return `M^(-1/2) x`, in fresh memory."""
        ...

    def to_velocity(self, force: Params) -> Params:
        """Return `(M^(-1/2))ᵀ g`, in fresh memory."""
        ...


class Sampler(Protocol[State]):
    """One SG-MCMC rule: elementwise on leaves `[C, *shape]`, knowing nothing of models.

    `step` may overwrite the buffers of `state` and `gradient`; use only what it returns.  It takes
    noise at most once, one number a weight.
    """

    def init(self, params: Params, noise: Noise) -> State: ...

    def step(self, state: State, gradient: Params, noise: Noise) -> State: ...
