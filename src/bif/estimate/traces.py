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
        anchor: `v·∇U` of a vector v of each query column at each draw, `[C, D, A·Q]`; None where
            the run has no anchors.
        slope: Means of `∇l_i·v` over some draws of each chain, `[C, A·Q, N]`, beside `anchor`.
    """

    chains: tuple[int, ...]
    train: Tensor
    query: Tensor
    anchor: Tensor | None = None
    slope: Tensor | None = None

    def __post_init__(self) -> None:
        if self.train.shape[:2] != self.query.shape[:2] or len(self.chains) != len(self.train):
            raise ValueError(
                f"train {tuple(self.train.shape)} and query {tuple(self.query.shape)} traces need "
                f"the same chains and draws, of {len(self.chains)} chains."
            )

    @classmethod
    def joined(
        cls, chains: tuple[int, ...], train: Tensor, query: Tensor, slope: Tensor | None
    ) -> TraceBlock:
        """Return a block of what a run records: where there are slopes, anchors behind queries.

        Args:
            chains: As for the class.
            train: `[C, D, N]`.
            query: `[C, D, A·Q]`, or `[C, D, 2·A·Q]` with anchors.
            slope: `[C, A·Q, N]`, or None.
        """
        if slope is None:
            return cls(chains, train, query)
        of_queries, anchor = query.chunk(2, dim=2)
        return cls(chains, train, of_queries, anchor, slope)

    @property
    def with_anchors(self) -> Tensor:
        """Return the queries' columns with their anchors behind them, as a run records them."""
        return self.query if self.anchor is None else torch.cat([self.query, self.anchor], dim=2)

    @property
    def num_draws(self) -> int:
        """Return the draws of each chain, D."""
        return self.train.shape[1]

    def only(self, keep: Sequence[int]) -> TraceBlock:
        """Return the block with the chains at these positions only."""
        rows = torch.as_tensor(list(keep), dtype=torch.long)
        anchor, slope = (None if x is None else x[rows] for x in (self.anchor, self.slope))
        chains = tuple(self.chains[i] for i in keep)
        return TraceBlock(chains, self.train[rows], self.query[rows], anchor, slope)

    def truncated(self, num_draws: int) -> TraceBlock:
        """Return the block with the first draws of every chain only."""
        anchor = None if self.anchor is None else self.anchor[:, :num_draws]
        train, query = self.train[:, :num_draws], self.query[:, :num_draws]
        return replace(self, train=train, query=query, anchor=anchor)

    def selected(self, *, train: np.ndarray, query: np.ndarray) -> TraceBlock:
        """Return the block with some train items and query columns only, by index."""
        anchor, slope = self.anchor, self.slope
        return replace(
            self, train=self.train[:, :, train], query=self.query[:, :, query],
            anchor=None if anchor is None else anchor[:, :, query],
            slope=None if slope is None else slope[:, query][:, :, train],
        )  # fmt: skip

    def without_anchor(self) -> TraceBlock:
        """Return the block as a run without anchors has it."""
        return replace(self, anchor=None, slope=None)


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
    def anchored(self) -> bool:
        """Return whether the query columns have anchors."""
        return bool(self.blocks) and all(b.anchor is not None for b in self.blocks)

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
        return LossTraces(tuple(b.truncated(num_draws) for b in self.blocks))

    def selected(self, *, train: np.ndarray, query: np.ndarray) -> LossTraces:
        """Return the traces of some train items and query columns, by index."""
        return LossTraces(tuple(b.selected(train=train, query=query) for b in self.blocks))

    def without_anchors(self) -> LossTraces:
        """Return the traces as a run without anchors has them."""
        return LossTraces(tuple(b.without_anchor() for b in self.blocks))

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
            train, query, anchor, slope = block.train, block.query, block.anchor, block.slope
            if groups is not None:
                train = _sums(train, groups)
                slope = None if slope is None else _sums(slope, groups)
            if queries is not None:
                query, anchor = (
                    None if x is None else _query_sums(x, queries, num_observables)
                    for x in (query, anchor)
                )
                if slope is not None:
                    of_rows = slope.transpose(1, 2)
                    slope = _query_sums(of_rows, queries, num_observables).transpose(1, 2)
            assert query is not None
            blocks.append(replace(block, train=train, query=query, anchor=anchor, slope=slope))
        return LossTraces(tuple(blocks))


def chain_groups(traces: LossTraces, num_groups: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Deal the chains, in order, into groups: lists of (block, positions in the block)."""
    places = [(b, i) for b, block in enumerate(traces.blocks) for i in range(len(block.chains))]
    num_groups = min(num_groups, len(places))
    for g in range(num_groups):
        start, stop = g * len(places) // num_groups, (g + 1) * len(places) // num_groups
        by_block: dict[int, list[int]] = {}
        for block, position in places[start:stop]:
            by_block.setdefault(block, []).append(position)
        yield list(by_block.items())


def _query_sums(x: Tensor, queries: Mapping[str, Sequence[int]], num_observables: int) -> Tensor:
    """Return sums over the queries of each group, `[C, D, A·G]`, of columns `[C, D, A·Q]`."""
    parts = x.unflatten(2, (num_observables, -1)).unbind(2)
    return torch.cat([_sums(part, queries) for part in parts], dim=2)


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
