"""Third cumulants of loss traces, in chunks that merge exactly, with errors by groups of chains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.traces import LossTraces, chain_groups

_CHUNK_ELEMENTS = 4 * 2**20
"""Numbers that are summed at a time, so that temporaries stay small."""

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class GroupCumulants:
    """Unbiased cumulants of one group of chains, if its draws were independent.

    Attributes:
        draws: D, of all chains of the group.
        covariance: Of rows with columns, `[R, P]`.
        third: Of rows with pairs of columns, `[R, K]`.
    """

    draws: int
    covariance: Tensor
    third: Tensor


@dataclass(frozen=True)
class ThirdCumulants:
    """`κ₃(row, a, b) = E[(row - E row)(a - E a)(b - E b)]` of rows with pairs of columns.

    Attributes:
        value: `[R, K]` float64.
        standard_error: `[R, K]`; NaN with fewer than two groups.
        num_groups: Groups of chains behind the standard error.
    """

    value: Tensor
    standard_error: Tensor
    num_groups: int


class ThirdCumulantSums:
    """Centred sums of products of two and three traces; `update` and `merge` in any order.

    Chunks are centred about their own means and merged by the formulas of Pébay (2008), so that
    offsets cost no digits and chunked sums are those of the whole.

    Args:
        pairs: K pairs of columns (a, b); the third trace is each row's.
    """

    def __init__(self, pairs: Pairs) -> None:
        index = torch.as_tensor([*pairs], dtype=torch.long).reshape(-1, 2)
        self._first, self._second = index[:, 0], index[:, 1]
        self._count = 0
        self._means: tuple[Tensor, Tensor] | None = None

    def update(self, rows: Tensor, columns: Tensor) -> None:
        """Add draws: `rows` `[d, R]` and `columns` `[d, P]` at the same draws."""
        width = rows.shape[1] + columns.shape[1] + len(self._first)
        step = max(1, _CHUNK_ELEMENTS // max(1, width))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            self._add_chunk(rows[part].double(), columns[part].double())

    def _add_chunk(self, rows: Tensor, columns: Tensor) -> None:
        chunk = ThirdCumulantSums(())
        chunk._first, chunk._second = self._first, self._second
        chunk._count = len(rows)
        chunk._means = rows.mean(dim=0), columns.mean(dim=0)
        x, y = rows - chunk._means[0], columns - chunk._means[1]
        products = y[:, self._first] * y[:, self._second]
        chunk._cross, chunk._pair, chunk._triple = x.T @ y, products.sum(dim=0), x.T @ products
        self.merge(chunk)

    def merge(self, other: ThirdCumulantSums) -> None:
        """Take in the sums of other draws of the same traces and pairs."""
        if other._means is None:
            return
        if self._means is None:
            self._count, self._means = other._count, other._means
            self._cross, self._pair = other._cross.clone(), other._pair.clone()
            self._triple = other._triple.clone()
            return
        here, there = self._count, other._count
        total = here + there
        away_rows, away = (b - a for a, b in zip(self._means, other._means, strict=True))
        first, second = away[self._first], away[self._second]
        pair = (here * other._pair - there * self._pair) / total
        cross = (here * other._cross - there * self._cross) / total
        lift = here * there * (here - there) / total**2
        self._triple += other._triple + torch.outer(away_rows, pair + lift * first * second)
        self._triple += cross[:, self._first] * second + cross[:, self._second] * first
        share = here * there / total
        self._pair += other._pair + share * first * second
        self._cross += other._cross + share * torch.outer(away_rows, away)
        self._means = (
            self._means[0] + away_rows * (there / total), self._means[1] + away * (there / total),
        )  # fmt: skip
        self._count = total

    def close(self) -> GroupCumulants:
        """Return the covariance and `D Σ xyz / ((D - 1)(D - 2))`, which has no bias.

        Raises:
            ValueError: Fewer than three draws.
        """
        draws = self._count
        if draws < 3:
            raise ValueError(f"a third cumulant needs at least 3 draws, got {draws}: record more.")
        third = self._triple * (draws / ((draws - 1) * (draws - 2)))
        return GroupCumulants(draws, self._cross / (draws - 1), third)


def group_cumulants(
    traces: LossTraces,
    pairs: Pairs,
    *,
    rows: Literal["query", "train"] = "query",
    num_groups: int = DEFAULT_GROUPS,
) -> Iterator[GroupCumulants]:
    """Yield the cumulants of each group of chains, centred about the group's means.

    Args:
        traces: Rows and columns.
        pairs: Pairs of train columns.
        rows: "query", or the train columns again.
        num_groups: Groups that chains are dealt into, in order; at most as many as chains.

    Raises:
        ValueError: A pair that names no train column; fewer than three draws in a group.
    """
    width = traces.blocks[0].train.shape[2]
    outside = [pair for pair in pairs if not all(0 <= place < width for place in pair)]
    if outside:
        raise ValueError(
            f"there are {width} train columns, and {len(outside)} pairs name others, such as "
            f"{tuple(outside[0])}: give positions from 0 to {width - 1}."
        )
    for group in chain_groups(traces, num_groups):
        sums = ThirdCumulantSums(pairs)
        for index, positions in group:
            block = traces.blocks[index]
            for position in positions:
                columns = block.train[position]
                sums.update(block.query[position] if rows == "query" else columns, columns)
        yield sums.close()


def estimate_third_cumulants(
    traces: LossTraces,
    pairs: Pairs,
    *,
    rows: Literal["query", "train"] = "query",
    num_groups: int = DEFAULT_GROUPS,
) -> ThirdCumulants:
    """Estimate `κ₃(row, a, b)` of every row with pairs of train columns.

    Centred within groups of chains, which for autocorrelation time τ and D draws a group shrinks
    values by about 3 τ/D.

    Args and raises: as for `group_cumulants`.
    """
    found = list(group_cumulants(traces, pairs, rows=rows, num_groups=num_groups))
    value, error = mean_of_groups([g.third for g in found], [g.draws for g in found])
    return ThirdCumulants(value, error, len(found))


def mean_of_groups(values: Sequence[Tensor], draws: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the mean over groups of chains, weighted by draws, and its standard error.

    `standard_error² = Σ n_g (x_g - mean)² / (Σ n_g (G - 1))`, unbiased where the variance of x_g
    goes as 1/n_g; NaN with a single group.
    """
    values_G = torch.stack([*values])
    share = torch.tensor([*draws], dtype=torch.float64)
    share = (share / share.sum()).view(-1, *[1] * (values_G.dim() - 1))
    mean = (share * values_G).sum(dim=0)
    if len(values_G) < 2:
        return mean, torch.full_like(mean, torch.nan)
    return mean, ((share * (values_G - mean).square()).sum(dim=0) / (len(values_G) - 1)).sqrt()
