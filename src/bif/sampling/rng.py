"""Random numbers: one generator per (seed, block of chains, purpose), restored exactly.

A block of chains steps as one stacked operation, so its chains share one generator whose numbers
are laid out along the chain axis: one kernel a leaf, however many chains.  Blocks have a fixed
size, so a chain's numbers do not depend on how many blocks there are or where they run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from bif.types import Params

Purpose = Literal["noise", "leaf", "order", "probe", "train", "control", "mass"]


def generator(
    seed: int,
    block: int,
    purpose: Purpose,
    *,
    device: torch.device,
    counter: int | str = 0,
    shard: int = 0,
) -> torch.Generator:
    """Return a generator that depends on nothing but its arguments.

    Args:
        seed: The run's seed.
        block: Index of the block of chains.
        purpose: Use of the numbers; purposes never share numbers.
        device: Device that makes the numbers; devices differ in their numbers, not in their law.
        counter: Further index, such as the epoch of a shuffled order, or a name.
        shard: Index among those that hold a part of the weights each.
    """
    key = f"{seed}/{block}/{purpose}/{counter}{f'/shard {shard}' if shard else ''}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


class BlockNoise:
    """Standard normal numbers for one block of chains; 0 where `masks` forbids a weight to move.

    Args:
        source: The block's generator.
        masks: Boolean masks `[*shape]` of leaves that move only in part; other leaves move whole.
    """

    def __init__(self, source: torch.Generator, masks: Params | None = None) -> None:
        self.source = source
        self.masks = masks or {}

    def normal(self, like: Params) -> Params:
        noise = {}
        for name, leaf in like.items():
            noise[name] = torch.randn(
                leaf.shape, generator=self.source, device=leaf.device, dtype=leaf.dtype
            )
            if name in self.masks:
                noise[name].mul_(self.masks[name])
        return noise

    def state(self) -> Tensor:
        """Return the generator's state, for `restore`."""
        return self.source.get_state()

    def restore(self, state: Tensor) -> None:
        """Continue from a saved state, to the last bit."""
        self.source.set_state(state)


class LeafNoise:
    """Standard normal numbers from a generator for each leaf: leaves may ask in any order.

    A step that is fused into the backward pass moves the leaves in the order in which their
    gradients are complete, which is the model's business.  A leaf's numbers depend on its name and
    on how many were drawn for it, so that order changes nothing.

    Args:
        names: Names of all leaves.
        seed: The run's seed.
        block: Index of the block of chains.
        device: Device that makes the numbers.
        counter: Further index.
        masks: Masks as for `BlockNoise`.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        seed: int,
        block: int,
        device: torch.device,
        counter: int = 0,
        masks: Params | None = None,
    ) -> None:
        self.masks = masks or {}
        self.sources = {
            name: generator(seed, block, "leaf", device=device, counter=f"{counter}/{name}")
            for name in names
        }

    def normal(self, like: Params) -> Params:
        noise: Params = {}
        for name, leaf in like.items():
            noise |= BlockNoise(self.sources[name], self.masks).normal({name: leaf})
        return noise

    def state(self) -> Tensor:
        """Return the generators' states, one a row, for `restore`."""
        return torch.stack([source.get_state() for source in self.sources.values()])

    def restore(self, state: Tensor) -> None:
        """Continue from a saved state, to the last bit."""
        for source, row in zip(self.sources.values(), state, strict=True):
            source.set_state(row.clone())  # a view of other memory crashes torch 2.13


class ShuffledOrder:
    """Mini-batches without replacement: every chain of a block has its own shuffled epochs.

    The last incomplete batch of an epoch is dropped.  The order of epoch e is drawn afresh from
    (seed, block, e), so nothing but the step number is needed to continue.

    Args:
        num_items: n.
        batch_size: B, from 1 to n.

    Raises:
        ValueError: A batch size out of range.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        num_chains: int,
        seed: int,
        block: int,
        device: torch.device,
    ) -> None:
        if not 1 <= batch_size <= num_items:
            raise ValueError(
                f"batch_size is {batch_size} for {num_items} items: expected 1 to {num_items}."
            )
        self.num_items, self.batch_size, self.num_chains = num_items, batch_size, num_chains
        self.seed, self.block, self.device = seed, block, device
        self.batches_per_epoch = num_items // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def indices(self, step: int) -> Tensor:
        """Return item indices `[C, B]` of a step."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            source = generator(self.seed, self.block, "order", device=self.device, counter=epoch)
            keys = torch.rand(self.num_chains, self.num_items, generator=source, device=self.device)
            self._order, self._epoch = keys.argsort(dim=1), epoch
        start = position * self.batch_size
        return self._order[:, start : start + self.batch_size]
