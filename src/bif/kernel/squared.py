"""Squares of a kernel: how much two items have to do with each other, whichever way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from bif.estimate.item_kernel import (
    ItemKernel,
    KernelKind,
    classes_of,
    mean_of_different,
    means_of_pairs,
)
from bif.estimate.loss_kernel import LossKernel

_ROWS = 1024
"""Items, or pairs of items, of a block that is made at a time."""


@dataclass(frozen=True, eq=False)
class SquaredKernel(ItemKernel):
    """`R_ij²`, or `K_ij²`, of another kernel; of a loss kernel without the noise of the draws.

    Classes that a model confuses compete: what makes one likelier makes the other unlikelier, so
    losses of their items are correlated negatively.  The square has no sign, and calls them alike.
    Of a loss kernel it is the mean over pairs of chains of the product of their parts: its
    expectation is the square of the entry, where that of an estimate's square has its variance
    besides.  What is left, by the mean over all draws, is of the order of `1 / M²`.  A single value
    can be below 0.

    Make it by `squared_kernel`.
    """

    kernel: ItemKernel
    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    @property
    def factor(self) -> NoReturn:
        """There is none: a square has as many columns as pairs of columns of the kernel.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a squared kernel has no short rows, which embedding and maps need: use nearest, "
            "block, at_pairs or class_blocks."
        )

    def of_items(self, items: Sequence[int] | np.ndarray) -> SquaredKernel:
        """Return the kernel of some of the items, by their positions."""
        return squared_kernel(self.kernel.of_items(items))

    def block(
        self,
        rows: Sequence[int] | slice = slice(None),
        columns: Sequence[int] | slice = slice(None),
        *,
        kind: KernelKind = "correlation",
    ) -> Tensor:
        """Return the kernel of some items with some others, `[R, C]`."""
        x, y = (self.kernel.embedding(kind, part) for part in (rows, columns))
        return self._squares(lambda part: x[:, part] @ y[:, part].T)

    def each_block(self, kind: KernelKind = "correlation") -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the kernel, 1,024 at a time: the first one's position, and `[B, N]`."""
        x = self.kernel.embedding(kind)
        for start in range(0, len(self), _ROWS):
            rows = x[start : start + _ROWS]
            yield start, self._squares(lambda part, rows=rows: rows[:, part] @ x[:, part].T)

    def at_pairs(
        self, first: np.ndarray, second: np.ndarray, *, kind: KernelKind = "correlation"
    ) -> np.ndarray:
        """Return the kernel at pairs of items, given by their positions, `[P]` float64."""
        x = self.kernel.embedding(kind)
        found = [np.zeros(0)]
        for k in range(0, len(first), _ROWS):
            a, b = x[first[k : k + _ROWS]], x[second[k : k + _ROWS]]
            squares = self._squares(
                lambda part, a=a, b=b: torch.linalg.vecdot(a[:, part], b[:, part])
            )
            found.append(squares.double().numpy())
        return np.concatenate(found)

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

        No item is paired with itself; a class of one item has NaN on the diagonal.  The sum over
        items of two classes is `<X_aᵀX_a, X_bᵀX_b>`, without the blocks of a chain with itself.

        Raises:
            ValueError: Another number of labels than items.
        """
        names, index = classes_of(labels, len(self))
        x = self.kernel.embedding(kind).double()
        places = torch.arange(len(x))
        own = x.new_zeros(len(names)).index_add_(0, index, self._diagonal(x))
        moments = [x[places[index == c]].T @ x[places[index == c]] for c in range(len(names))]
        parts = self._parts()
        if len(parts) > 1:
            for moment in moments:
                for part in parts:
                    moment[part[:, None], part] = 0.0
        flat = torch.stack([moment.flatten() for moment in moments])
        return names, means_of_pairs(flat @ flat.T / self._norm(), own, index)

    def jackknife(
        self, statistic: Callable[[SquaredKernel], float | np.ndarray], *, num_groups: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a statistic and its standard error, by leaving out groups of chains in turn.

        Args:
            statistic: Of a squared kernel, a number or an array.
            num_groups: Groups, at most as many as chains.

        Raises:
            ValueError: Fewer than three chains of a loss kernel.
        """
        return self.kernel.jackknife(
            lambda kernel: statistic(squared_kernel(kernel)), num_groups=num_groups
        )

    def _parts(self) -> list[Tensor]:
        """Return the columns of each chain; of a kernel without chains one part."""
        if isinstance(self.kernel, LossKernel):
            return self.kernel.columns_of_chains()
        return [torch.arange(self.kernel.factor.shape[1])]

    def _norm(self) -> float:
        if isinstance(self.kernel, LossKernel):
            return self.kernel.share_of_different_chains()
        return 1.0

    def _squares(self, product: Callable[[Tensor], Tensor]) -> Tensor:
        """Return squares, from the kernel by the columns of a part."""
        parts = self._parts()
        of_parts = [product(part) for part in parts]
        total = torch.stack(of_parts).sum(dim=0).square()
        if len(parts) == 1:
            return total
        return (total - torch.stack(of_parts).square().sum(dim=0)) / self._norm()

    def _diagonal(self, x: Tensor) -> Tensor:
        return self._squares(lambda part: x[:, part].square().sum(dim=1))


def squared_kernel(kernel: ItemKernel) -> SquaredKernel:
    """Return the squares of a kernel.

    Args:
        kernel: A loss kernel of two chains or more, or one of features.

    Raises:
        ValueError: A loss kernel of a single chain.
    """
    if isinstance(kernel, LossKernel) and len(kernel.chains.unique()) < 2:
        raise ValueError("a square without noise needs two chains, and there is one.")
    return SquaredKernel(kernel, kernel.ids, kernel.labels)
