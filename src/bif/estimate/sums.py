"""Sum the covariance of a block of chains while it runs, without traces."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS, ClosedGroup, GroupSums


class BlockSums:
    """The groups of chains that lie in one block, each with its open sums.

    All chains of a run are dealt, in order, into `num_groups` groups as `estimate_covariance` does
    it; a group that straddles blocks closes in parts.

    Args:
        chains: The block's chains.
        num_chains: Number of the run's chains.
        num_groups: Groups of chains behind the standard errors.
    """

    def __init__(self, chains: range, *, num_chains: int, num_groups: int = DEFAULT_GROUPS) -> None:
        groups = min(num_groups, num_chains)
        edges = [g * num_chains // groups for g in range(groups + 1)]
        self._parts = [
            range(max(a, chains.start), min(b, chains.stop))
            for a, b in zip(edges, edges[1:], strict=False)
            if max(a, chains.start) < min(b, chains.stop)
        ]
        self._first = chains.start
        self._sums = [GroupSums() for _ in self._parts]

    def update(self, train: Tensor, query: Tensor) -> None:
        """Add draws of all chains of the block: `[C, d, N]` and `[C, d, A·Q]`."""
        for part, sums in zip(self._parts, self._sums, strict=True):
            rows = slice(part.start - self._first, part.stop - self._first)
            sums.update(train[rows], query[rows])

    def lost(self, diverged: Collection[int]) -> set[int]:
        """Return chains whose groups have a diverged chain, which cannot be taken out again."""
        return {c for part in self._parts if set(part) & set(diverged) for c in part}

    def close(self, diverged: Collection[int]) -> list[ClosedGroup]:
        """Return covariances of groups without a diverged chain; their sums are used up."""
        return [
            sums.close()
            for part, sums in zip(self._parts, self._sums, strict=True)
            if not set(part) & set(diverged)
        ]

    def state(self) -> dict[str, Tensor]:
        """Return copies of all sums, by name."""
        return {
            f"{i}/{name}": x.clone()
            for i, sums in enumerate(self._sums)
            for name, x in sums.state().items()
        }

    def restore(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `state` returned."""
        for i, sums in enumerate(self._sums):
            mine = {
                name.partition("/")[2]: x.to(device)
                for name, x in saved.items()
                if name.partition("/")[0] == str(i)
            }
            sums.restore(mine)
