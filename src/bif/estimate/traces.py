"""Loss traces: what the chains leave behind, and all that the estimates need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True)
class TraceBlock:
    """The losses of one block of chains at its draws.

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
        """Return the draws of each chain, D."""
        return self.train.shape[1]

    def only(self, keep: Sequence[int]) -> TraceBlock:
        """Return the block with the chains at these positions only."""
        rows = torch.as_tensor(list(keep), dtype=torch.long)
        return TraceBlock(tuple(self.chains[i] for i in keep), self.train[rows], self.query[rows])


@dataclass(frozen=True)
class LossTraces:
    """The traces of all surviving chains, in order of their blocks, which may differ in draws."""

    blocks: tuple[TraceBlock, ...]

    @classmethod
    def from_arrays(cls, train: np.ndarray | Tensor, query: np.ndarray | Tensor) -> LossTraces:
        """Make one block of arrays `[C, D, N]` and `[C, D, Q]`."""
        train, query = torch.as_tensor(train), torch.as_tensor(query)
        return cls((TraceBlock(tuple(range(len(train))), train, query),))

    @property
    def num_chains(self) -> int:
        """Return the chains of all blocks together."""
        return sum(len(block.chains) for block in self.blocks)

    @property
    def total_draws(self) -> int:
        """Return the draws of all chains together."""
        return sum(len(block.chains) * block.num_draws for block in self.blocks)

    @property
    def shortest(self) -> int:
        """Return the draws of the shortest chain."""
        return min(block.num_draws for block in self.blocks)

    def each_chain(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield `(chain, train [D, N], query [D, A·Q])` in order."""
        for block in self.blocks:
            for row, chain in enumerate(block.chains):
                yield chain, block.train[row], block.query[row]

    def truncated(self, num_draws: int) -> LossTraces:
        """Return the first `num_draws` draws of every chain."""
        return LossTraces(
            tuple(
                replace(b, train=b.train[:, :num_draws], query=b.query[:, :num_draws])
                for b in self.blocks
            )
        )

    def selected(self, *, train: np.ndarray, query: np.ndarray) -> LossTraces:
        """Return the traces of some train items and query columns, by index."""
        return LossTraces(
            tuple(
                replace(b, train=b.train[:, :, train], query=b.query[:, :, query])
                for b in self.blocks
            )
        )

    def summed_over(
        self,
        groups: Mapping[str, Sequence[int]] | None,
        *,
        queries: Mapping[str, Sequence[int]] | None = None,
        num_observables: int = 1,
    ) -> LossTraces:
        """Return traces of sums: a group of items, or an item's tokens, moves as one item.

        Args:
            groups: Names of groups to positions of train columns, which may overlap; None leaves
                the train side as it is.
            queries: Groups of queries, by positions among the Q of each observable.
            num_observables: A, where queries are summed.
        """
        blocks = []
        for block in self.blocks:
            train, query = block.train, block.query
            if groups is not None:
                train = _sums(train, groups)
            if queries is not None:
                parts = query.unflatten(2, (num_observables, -1)).unbind(2)
                query = torch.cat([_sums(part, queries) for part in parts], dim=2)
            blocks.append(replace(block, train=train, query=query))
        return LossTraces(tuple(blocks))


def _sums(x: Tensor, groups: Mapping[str, Sequence[int]]) -> Tensor:
    """Return sums over columns of `[C, D, N]`, float64 `[C, D, G]`, some draws at a time."""
    members = [torch.as_tensor(list(m), dtype=torch.long) for m in groups.values()]
    column = torch.cat([*members, torch.empty(0, dtype=torch.long)])
    group = torch.repeat_interleave(
        torch.arange(len(members)), torch.tensor([len(m) for m in members], dtype=torch.long)
    )
    total = torch.zeros(*x.shape[:2], len(members), dtype=torch.float64)
    step = max(1, _CHUNK_ELEMENTS // max(1, x.shape[0] * len(column)))
    for start in range(0, x.shape[1], step):
        part = slice(start, start + step)
        values = x[:, part][..., column].double()
        total[:, part].scatter_add_(2, group.expand(values.shape), values)
    return total
