"""Loss traces: what the chains leave behind, and all that the estimates need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TraceBlock:
    """Losses of one block of chains at its draws.

    Args:
        chains: Indices of the block's chains in the run, `[C]`.
        train: Losses of the train items, `[C, D, N]`.
        query: Observables of the queries, `[C, D, A·Q]`, observable-major.
    """

    chains: tuple[int, ...]
    train: Tensor
    query: Tensor

    def __post_init__(self) -> None:
        if self.train.shape[:2] != self.query.shape[:2] or len(self.chains) != len(self.train):
            raise ValueError(
                f"train {tuple(self.train.shape)} and query {tuple(self.query.shape)} traces need "
                f"the same chains and draws, of {len(self.chains)} chains."
            )

    @property
    def num_draws(self) -> int:
        """Draws of each chain, D."""
        return self.train.shape[1]

    def only(self, keep: Sequence[int]) -> TraceBlock:
        """The same block with the chains at these positions."""
        rows = torch.as_tensor(list(keep), dtype=torch.long)
        return TraceBlock(tuple(self.chains[i] for i in keep), self.train[rows], self.query[rows])


@dataclass(frozen=True)
class LossTraces:
    """Traces of all surviving chains, in order of their blocks; blocks may differ in draws."""

    blocks: tuple[TraceBlock, ...]

    @classmethod
    def from_arrays(cls, train: np.ndarray | Tensor, query: np.ndarray | Tensor) -> LossTraces:
        """One block from arrays `[C, D, N]` and `[C, D, Q]`."""
        train, query = torch.as_tensor(train), torch.as_tensor(query)
        return cls((TraceBlock(tuple(range(len(train))), train, query),))

    @property
    def num_chains(self) -> int:
        """Chains of all blocks together."""
        return sum(len(block.chains) for block in self.blocks)

    @property
    def total_draws(self) -> int:
        """Draws of all chains together."""
        return sum(len(block.chains) * block.num_draws for block in self.blocks)

    @property
    def shortest(self) -> int:
        """Draws of the shortest chain."""
        return min(block.num_draws for block in self.blocks)

    def each_chain(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """`(chain, train [D, N], query [D, A·Q])` in order."""
        for block in self.blocks:
            for row, chain in enumerate(block.chains):
                yield chain, block.train[row], block.query[row]

    def truncated(self, num_draws: int) -> LossTraces:
        """The first `num_draws` draws of every chain."""
        return LossTraces(
            tuple(
                replace(b, train=b.train[:, :num_draws], query=b.query[:, :num_draws])
                for b in self.blocks
            )
        )

    def selected(self, *, train: np.ndarray, query: np.ndarray) -> LossTraces:
        """The traces of some train items and query columns, by index."""
        return LossTraces(
            tuple(
                replace(b, train=b.train[:, :, train], query=b.query[:, :, query])
                for b in self.blocks
            )
        )

    def summed_over(self, groups: Mapping[str, Sequence[int]]) -> LossTraces:
        """Traces of the summed loss of groups of train items: sums of items move as one item.

        Args:
            groups: Group names to positions of their items; groups may overlap.
        """
        num_items = self.blocks[0].train.shape[2]
        membership = torch.zeros(num_items, len(groups), dtype=torch.float64)
        for column, positions in enumerate(groups.values()):
            membership[torch.as_tensor(list(positions), dtype=torch.long), column] = 1
        return LossTraces(
            tuple(replace(b, train=b.train.double() @ membership) for b in self.blocks)
        )
