"""Kernels between items, held as rows whose inner products they are, and by features of items."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

KernelKind = Literal["correlation", "covariance"]
_ROWS = 1024
"""Items, or pairs of items, of a block of the kernel that is made at a time."""


class ItemKernel(ABC):
    """`K_ij = f_i·f_j` of N items, and `R_ij = K_ij / sqrt(K_ii K_jj)`.

    They are the kinds "covariance" and "correlation" also where K is no covariance of losses.
    No N·N matrix is made.  An item whose row is zero has correlation 0 with all.

    Attributes:
        ids: Names of the items.
        labels: Of each item, by what they say, such as "class".
    """

    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    @property
    @abstractmethod
    def factor(self) -> Tensor:
        """The rows f, `[N, M]`, whose inner products are K."""

    @abstractmethod
    def of_items(self, items: Sequence[int] | np.ndarray) -> Self:
        """Return the kernel of some of the items, by their positions."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def variance(self) -> Tensor:
        """The diagonal of K, `[N]` float64."""
        return self.factor.double().square().sum(dim=1)

    def labels_of(self, name: str) -> tuple[str, ...]:
        """Return the labels of this name, `[N]`.

        Raises:
            KeyError: There are none.
        """
        if name not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise KeyError(f"the items have no label {name!r}: they have {known}.")
        return self.labels[name]

    def embedding(
        self,
        kind: KernelKind = "correlation",
        items: Sequence[int] | slice = slice(None),
    ) -> Tensor:
        """Return rows of items, `[N, M]`, whose inner products are the kernel.

        Raises:
            ValueError: Another kind.
        """
        refuse_other_kinds(kind)
        rows, variance = self.factor[items], self.variance[items]
        if kind == "covariance":
            return rows
        # one over a tiny deviation may be more than float32 holds
        spread = torch.where(variance > 0, variance.sqrt(), torch.inf)
        return rows / spread[:, None].to(rows)

    def block(
        self,
        rows: Sequence[int] | slice = slice(None),
        columns: Sequence[int] | slice = slice(None),
        *,
        kind: KernelKind = "correlation",
    ) -> Tensor:
        """Return the kernel of some items with some others, `[R, C]`."""
        return self.embedding(kind, rows) @ self.embedding(kind, columns).T

    def each_block(self, kind: KernelKind = "correlation") -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the kernel, 1,024 at a time: the first one's position, and `[B, N]`."""
        x = self.embedding(kind)
        for start in range(0, len(self), _ROWS):
            yield start, x[start : start + _ROWS] @ x.T

    def at_pairs(
        self, first: np.ndarray, second: np.ndarray, *, kind: KernelKind = "correlation"
    ) -> np.ndarray:
        """Return the kernel at pairs of items, given by their positions, `[P]` float64."""
        x = self.embedding(kind)
        found = [
            torch.linalg.vecdot(x[first[k : k + _ROWS]], x[second[k : k + _ROWS]]).double().numpy()
            for k in range(0, len(first), _ROWS)
        ]
        return np.concatenate([np.zeros(0), *found])

    def mean_block(
        self, rows: Sequence[int], columns: Sequence[int], *, kind: KernelKind = "correlation"
    ) -> float:
        """Return the mean of a block; no item is paired with itself; NaN where no pair is left."""
        both = sorted(set(rows) & set(columns))
        x, y, own = (self.embedding(kind, list(part)).double() for part in (rows, columns, both))
        total = x.sum(dim=0) @ y.sum(dim=0) - own.square().sum()
        pairs = len(rows) * len(columns) - len(both)
        return float(total) / pairs if pairs else math.nan

    def class_blocks(
        self, labels: Sequence[str], *, kind: KernelKind = "correlation"
    ) -> tuple[list[str], np.ndarray]:
        """Return the classes and the mean kernel between their items, `[C, C]`.

        No item is paired with itself; a class of one item has NaN on the diagonal.

        Raises:
            ValueError: Another number of labels than items.
        """
        names, index = classes_of(labels, len(self))
        x = self.embedding(kind).double()
        sums = x.new_zeros(len(names), x.shape[1]).index_add_(0, index, x)
        own = x.new_zeros(len(names)).index_add_(0, index, x.square().sum(dim=1))
        return names, means_of_pairs(sums @ sums.T, own, index)

    def nearest(
        self, count: int, *, kind: KernelKind = "correlation"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest other items of each, the nearest first: positions and values `[N, k]`.

        Raises:
            ValueError: As many neighbours as items, or none.
        """
        refuse_other_counts(count, len(self))
        places, values = [], []
        for start, block in self.each_block(kind):
            own = torch.arange(len(block))
            block[own, start + own] = -torch.inf
            found = block.topk(count, dim=1)
            places.append(found.indices)
            values.append(found.values)
        return torch.cat(places).numpy(), torch.cat(values).numpy()

    def jackknife(
        self, statistic: Callable[[Self], float | np.ndarray], *, num_groups: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a statistic, and NaN as its standard error: there are no chains to leave out.

        Args:
            statistic: Of a kernel, a number or an array.
            num_groups: Of no use without chains.
        """
        value = np.asarray(statistic(self))
        return value, np.full(value.shape, np.nan)


@dataclass(frozen=True, eq=False)
class FeatureKernel(ItemKernel):
    """Inner products and cosines of features of items.

    Args:
        features: `[N, M]`.
        ids: Names of the items.
        labels: Of each item, by what they say, such as "class".

    Raises:
        ValueError: Another number of ids or labels than items; features that are not finite.

    >>> kernel = FeatureKernel(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), ("a", "b"), {})
    >>> round(float(kernel.block()[0, 1]), 2)
    0.96
    """

    features: Tensor
    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        refuse_other_lengths(len(self.features), self.ids, self.labels)
        finite = self.features.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            bad = (~finite).nonzero()[:, 0].tolist()
            raise ValueError(
                f"features are NaN or infinite for {len(bad)} items, such as {self.ids[bad[0]]}: "
                "look at the model's values there, or leave these items out."
            )

    @property
    def factor(self) -> Tensor:
        """The features."""
        return self.features

    def of_items(self, items: Sequence[int] | np.ndarray) -> FeatureKernel:
        """Return the kernel of some of the items, by their positions."""
        kept = torch.as_tensor(np.asarray(items))
        return FeatureKernel(self.features[kept], *names_of_items(self, items))


def classes_of(labels: Sequence[str], count: int) -> tuple[list[str], Tensor]:
    """Return the classes in order, and the number of each item's, `[N]`.

    Raises:
        ValueError: Another number of labels than items.
    """
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels, expected one for each of {count} items.")
    names, place = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return [str(name) for name in names], torch.from_numpy(place)


def mean_of_different(block: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    """Return the mean of a block over pairs of different items, NaN where there is none.

    Args:
        block: Of the kernel, `[R, C]`.
        rows: Positions of its items.
        columns: Of the others.
    """
    other = torch.tensor(list(rows))[:, None] != torch.tensor(list(columns))
    return float(block[other].double().mean())


def means_of_pairs(sums: Tensor, own: Tensor, index: Tensor) -> np.ndarray:
    """Return means over pairs of different items of two classes, NaN where there is none.

    Args:
        sums: Of the kernel over all pairs of two classes, `[C, C]`.
        own: Of the items of a class with themselves, `[C]`.
        index: Class of each item, `[N]`.
    """
    counts = index.bincount(minlength=len(own)).double()
    pairs = torch.outer(counts, counts) - torch.diag(counts)
    totals = sums - torch.diag(own)
    return torch.where(pairs > 0, totals / pairs.clamp(min=1), torch.nan).numpy()


def names_of_items(
    kernel: ItemKernel, items: Sequence[int] | np.ndarray
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return ids and labels of some of a kernel's items."""
    ids = tuple(kernel.ids[i] for i in items)
    return ids, {n: tuple(values[i] for i in items) for n, values in kernel.labels.items()}


def refuse_other_kinds(kind: str) -> None:
    """Raise unless a kernel has such a kind of entries.

    Raises:
        ValueError: It has not.
    """
    if kind not in get_args(KernelKind):
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(get_args(KernelKind))}.")


def refuse_other_counts(count: int, num_items: int) -> None:
    """Raise where items cannot have so many neighbours.

    Raises:
        ValueError: They cannot.
    """
    if not 0 < count < num_items:
        raise ValueError(
            f"{count} neighbours of {num_items} items, expected one or more, and fewer than items."
        )


def refuse_other_lengths(
    count: int, ids: Sequence[str], labels: dict[str, tuple[str, ...]]
) -> None:
    """Raise where there are not as many ids and labels as items.

    Raises:
        ValueError: There are not.
    """
    lengths = {"ids": len(ids), **{f"labels {n!r}": len(x) for n, x in labels.items()}}
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"{length} {name} of {count} items, expected one for each.")
