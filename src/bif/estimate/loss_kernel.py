"""The loss kernel: covariances of items' losses over the draws, held as their centred traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bif.estimate.item_kernel import (
    ItemKernel,
    names_of_items,
    refuse_other_lengths,
)


@dataclass(frozen=True, eq=False)
class LossKernel(ItemKernel):
    """`K_ij = Cov(l_i, l_j)` over the draws, and `R_ij = K_ij / sqrt(K_ii K_jj)`.

    N items are held as their traces, N·M numbers, of which the kernel is the inner product: no
    N·N matrix is made.  An item whose loss is the same at all draws has correlation 0 with all.

    Args:
        losses: Of all items at all draws, `[N, M]`.
        chains: Chain of each draw, `[M]`.
        ids: Names of the items.
        labels: Of each item, by what they say, such as "class".

    Raises:
        ValueError: Other shapes or numbers of labels; fewer than two draws; losses that are not
            finite.

    Source: Adam et al. 2025, arXiv 2509.26537.
    """

    losses: Tensor
    chains: Tensor
    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        count, draws = self.losses.shape
        if len(self.ids) != count or self.chains.shape != (draws,):
            raise ValueError(
                f"losses are {count} items at {draws} draws: got {len(self.ids)} ids and chains "
                f"{tuple(self.chains.shape)}."
            )
        refuse_other_lengths(count, self.ids, self.labels)
        if draws < 2:
            raise ValueError(f"a covariance needs 2 draws, got {draws}.")
        bad = [i for i, name in enumerate(self.ids) if not bool(self.losses[i].isfinite().all())]
        if bad:
            raise ValueError(
                f"losses are NaN or infinite for {len(bad)} items, such as {self.ids[bad[0]]}."
            )

    @cached_property
    def traces(self) -> Tensor:
        """X: losses centred over all draws and divided by `sqrt(M - 1)`, so that K is `X Xᵀ`."""
        centred = self.losses - self.losses.mean(dim=1, keepdim=True, dtype=torch.float64)
        low, high = self.losses.aminmax(dim=1)
        centred[low == high] = 0.0  # the rounding of their mean is no variance
        return (centred / (self.losses.shape[1] - 1) ** 0.5).to(self.losses.dtype)

    @property
    def factor(self) -> Tensor:
        """The traces, whose inner products are K."""
        return self.traces

    def columns_of_chains(self) -> list[Tensor]:
        """Return the positions of each chain's draws, `[D]` of each."""
        return [(self.chains == chain).nonzero()[:, 0] for chain in self.chains.unique()]

    def share_of_different_chains(self) -> float:
        """Return the share of pairs of draws that are of different chains, `1 - Σ (D_c / M)²`.

        By it a sum of products of different chains' parts of the kernel is divided, to be of the
        size of a product of the whole.
        """
        parts = self.columns_of_chains()
        return 1 - sum((len(part) / len(self.chains)) ** 2 for part in parts)

    def of_chains(self, chains: Sequence[int] | Tensor) -> LossKernel:
        """Return the kernel by the draws of some chains."""
        kept = torch.isin(self.chains, torch.as_tensor(chains))
        return LossKernel(self.losses[:, kept], self.chains[kept], self.ids, self.labels)

    def of_items(self, items: Sequence[int] | np.ndarray) -> LossKernel:
        """Return the kernel of some of the items, by their positions."""
        kept = torch.as_tensor(np.asarray(items))
        return LossKernel(self.losses[kept], self.chains, *names_of_items(self, items))

    def halves(self) -> tuple[LossKernel, LossKernel]:
        """Return the kernels by every other chain, and by the rest.

        Raises:
            ValueError: A single chain.
        """
        chains = self.chains.unique()
        if len(chains) < 2:
            raise ValueError("halves of the chains need two chains, and there is one.")
        return self.of_chains(chains[::2]), self.of_chains(chains[1::2])

    def jackknife(
        self, statistic: Callable[[LossKernel], float | np.ndarray], *, num_groups: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a statistic and its standard error, by leaving out groups of chains in turn.

        Args:
            statistic: Of a kernel, a number or an array; of this one first.
            num_groups: Groups, at most as many as chains.

        Raises:
            ValueError: A single chain; or the statistic's, of what chains are left.
        """
        groups = self.chains.unique().tensor_split(min(num_groups, len(self.chains.unique())))
        if len(groups) < 2:
            raise ValueError("an error by the spread of the chains needs two chains, got one.")
        every, value = self.chains.unique(), np.asarray(statistic(self))
        without = []
        for group in groups:
            kept = every[~torch.isin(every, group)]
            try:
                without.append(np.asarray(statistic(self.of_chains(kept))))
            except ValueError as error:
                raise ValueError(
                    f"an error by the spread of the chains leaves some out, and {len(kept)} of "
                    f"{len(every)} are too few: {error}"
                ) from error
        spread = np.var(without, axis=0) * (len(groups) - 1)
        return value, np.sqrt(spread)


def refuse_without_chains(kernel: ItemKernel, asked: str) -> None:
    """Raise where a kernel is not of losses at the draws of chains.

    Args:
        kernel: Of items.
        asked: What needs the draws, in the plural.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(kernel, LossKernel):
        raise ValueError(
            f"{asked} need the draws of chains, and a {type(kernel).__name__} has none: pass a "
            "loss kernel. Of others there are neighbours, blocks, and agreement with a tree."
        )
