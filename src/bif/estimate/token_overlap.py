"""The overlap of items' sets of tokens, as a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif.estimate.item_kernel import (
    ItemKernel,
    KernelKind,
    classes_of,
    mean_of_different,
    means_of_pairs,
    names_of_items,
    refuse_other_kinds,
    refuse_other_lengths,
)

_ROWS = 1024
"""Items of a block, and pairs whose overlap is taken at a time."""
_MOST_FACTORED = 5000
"""Items up to which rows are found whose inner products are the overlaps: N² numbers, N³ time."""


@dataclass(frozen=True, eq=False)
class TokenOverlap(ItemKernel):
    """Jaccard's index of sets of tokens, `R_ij = |A_i ∩ A_j| / |A_i ∪ A_j|`; `K_ij = |A_i ∩ A_j|`.

    An item without tokens has overlap 0 with all.

    Args:
        tokens: Tokens of each item, integers; how often one occurs makes no difference.
        ids: Names of the items.
        labels: Of each item, by what they say, such as "class".

    Raises:
        ValueError: Another number of ids or labels than items.

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone".

    >>> overlap = TokenOverlap((np.array([1, 2, 3]), np.array([2, 3, 4])), ("a", "b"), {})
    >>> float(overlap.block()[0, 1])
    0.5
    """

    tokens: tuple[np.ndarray, ...]
    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        refuse_other_lengths(len(self.tokens), self.ids, self.labels)

    @cached_property
    def sets(self) -> Any:
        """Whether an item has a token, `[N, V]`, a sparse array of scipy with ones."""
        from scipy.sparse import csr_array

        members = [np.unique(tokens) for tokens in self.tokens]
        ends = np.cumsum([0, *map(len, members)])
        known, columns = np.unique(np.concatenate(members), return_inverse=True)
        shape = len(members), max(1, len(known))
        return csr_array((np.ones(ends[-1]), columns, ends), shape=shape)

    @cached_property
    def variance(self) -> Tensor:
        """The number of each item's tokens, `[N]` float64."""
        return torch.from_numpy(np.diff(self.sets.indptr).astype(float))

    @cached_property
    def factor(self) -> Tensor:
        """Whether an item has a token, `[N, V]` float64.

        Raises:
            ValueError: Too many items.
        """
        self._refuse_many()
        return torch.from_numpy(self.sets.toarray())

    @cached_property
    def _factor_of_jaccard(self) -> Tensor:
        """Rows whose inner products are Jaccard's index, which is positive semi-definite."""
        self._refuse_many()
        values, vectors = torch.linalg.eigh(self.block())
        return vectors * values.clamp(min=0).sqrt()

    def embedding(
        self,
        kind: KernelKind = "correlation",
        items: Sequence[int] | slice = slice(None),
    ) -> Tensor:
        """Return rows of items, whose inner products are the kernel, `[N, N]` or `[N, V]`.

        Raises:
            ValueError: More than 5,000 items: rows of Jaccard's index are of eigenvalues.
        """
        return (self.factor if kind == "covariance" else self._factor_of_jaccard)[items]

    def block(
        self,
        rows: Sequence[int] | slice = slice(None),
        columns: Sequence[int] | slice = slice(None),
        *,
        kind: KernelKind = "correlation",
    ) -> Tensor:
        """Return the kernel of some items with some others, `[R, C]`."""
        refuse_other_kinds(kind)
        sizes = self.variance
        shared = torch.from_numpy((self.sets[rows] @ self.sets[columns].T).toarray())
        if kind == "covariance":
            return shared
        return _jaccard(shared, sizes[rows][:, None], sizes[columns])

    def each_block(self, kind: KernelKind = "correlation") -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the kernel, 1,024 at a time: the first one's position, and `[B, N]`."""
        for start in range(0, len(self), _ROWS):
            yield start, self.block(slice(start, start + _ROWS), kind=kind)

    def at_pairs(
        self, first: np.ndarray, second: np.ndarray, *, kind: KernelKind = "correlation"
    ) -> np.ndarray:
        """Return the kernel at pairs of items, given by their positions, `[P]` float64."""
        found = np.zeros(len(first))
        for start in range(0, len(first), _ROWS):
            part = slice(start, start + _ROWS)
            a, b = first[part], second[part]
            shared = torch.from_numpy(self.sets[a].multiply(self.sets[b]).sum(axis=1))
            sizes = self.variance[a], self.variance[b]
            found[part] = shared if kind == "covariance" else _jaccard(shared, *sizes)
        return found

    def mean_block(
        self, rows: Sequence[int], columns: Sequence[int], *, kind: KernelKind = "correlation"
    ) -> float:
        """Return the mean of a block; no item is paired with itself; NaN where no pair is left."""
        block = self.block(list(rows), list(columns), kind=kind)
        return mean_of_different(block, rows, columns)

    def class_blocks(
        self, labels: Sequence[str], *, kind: KernelKind = "correlation"
    ) -> tuple[list[str], np.ndarray]:
        """Return the classes and the mean kernel between their items, `[C, C]`.

        No item is paired with itself; a class of one item has NaN on the diagonal.

        Raises:
            ValueError: Another number of labels than items.
        """
        names, index = classes_of(labels, len(self))
        sums, own = torch.zeros(len(names), len(names)).double(), torch.zeros(len(names)).double()
        for start, block in self.each_block(kind):
            here = index[start : start + len(block)]
            of_columns = block.new_zeros(len(names), len(block)).index_add_(0, index, block.T)
            sums.index_add_(0, here, of_columns.T)
            own.index_add_(0, here, block.diagonal(start))
        return names, means_of_pairs(sums, own, index)

    def of_items(self, items: Sequence[int] | np.ndarray) -> TokenOverlap:
        """Return the kernel of some of the items, by their positions."""
        return TokenOverlap(tuple(self.tokens[i] for i in items), *names_of_items(self, items))

    def _refuse_many(self) -> None:
        if len(self) > _MOST_FACTORED:
            raise ValueError(
                f"{len(self):,} items: rows whose inner products are the overlaps of tokens are "
                f"found for at most {_MOST_FACTORED:,}. Use nearest, block or at_pairs, which need "
                "no such rows, or of_items for a part."
            )


def _jaccard(shared: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return shared / (first + second - shared).clamp(min=1)
