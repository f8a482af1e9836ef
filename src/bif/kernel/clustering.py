"""Hierarchical clustering of classes and of items by their correlations, and how far it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bif.estimate.item_kernel import ItemKernel
from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.estimate.partitions import adjusted_rand_index, largest_first

_JOINED = 5000
"""Items up to which all are joined; their linkage takes 200 MB and seconds."""
_MOST_CLUSTERS = 30
"""Largest number of clusters that is tried, and at most the root of the number of items."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of items that are alike.

    Attributes:
        labels: Cluster of each item, the largest is 0; `[N]`.
        count: Clusters.
        agreement: Adjusted Rand index of the clusters of both halves of the chains: 1 is the same,
            0 is chance.
        agreements: The same of each number of clusters that was tried.
    """

    labels: np.ndarray
    count: int
    agreement: float
    agreements: dict[int, float]

    def named(self, labels: Sequence[str]) -> list[str]:
        """Return each cluster's most frequent class and its share, such as "cat 93 %"."""
        found = []
        for cluster in range(self.count):
            members = [label for label, k in zip(labels, self.labels, strict=True) if k == cluster]
            names, counts = np.unique(np.asarray(members, dtype=str), return_counts=True)
            best = int(counts.argmax())
            found.append(f"{names[best]} {counts[best] / len(members):.0%}".replace("%", " %"))
        return found


def clusters(kernel: LossKernel, count: int | None = None, *, seed: int = 0) -> Clusters:
    """Return clusters of items by average linkage of `1 - R`.

    Of more than 5,000 items so many at random are joined, and each other one goes to the cluster
    with which its mean correlation is largest; clusters of a few items may then be missed.

    Args:
        kernel: Of at least two chains and three items.
        count: Clusters; by default that number from 2 to 30, and to the root of N, on which both
            halves of the chains agree best, the largest of equal ones.
        seed: Of the choice of items.

    Raises:
        ValueError: Fewer than three items, or a count below 2 or above their number; one chain.

    Source: Sokal & Michener 1958 for average linkage; Hubert & Arabie 1985 for the index; Ben-Hur,
    Elisseeff & Guyon 2002 for the number of clusters that is most stable.
    """
    refuse_without_chains(kernel, "clusters of items")
    most = min(len(kernel), _JOINED)
    if len(kernel) < 3 or (count is not None and not 2 <= count <= most):
        raise ValueError(
            f"{'some' if count is None else count} clusters of {len(kernel)} items, expected 2 or "
            f"more, at most {most:,}, of three items or more."
        )
    tried = range(2, max(2, min(_MOST_CLUSTERS, int(len(kernel) ** 0.5))) + 1)
    counts = list(tried) if count is None else [count]
    first, second = (_cuts(half, counts, seed) for half in kernel.halves())
    agreements = {
        k: adjusted_rand_index(a, b) for k, a, b in zip(counts, first, second, strict=True)
    }
    best = max(reversed(counts), key=lambda k: agreements[k])  # the finest of equal ones
    labels = largest_first(_cuts(kernel, [best], seed)[0])
    return Clusters(labels, int(labels.max()) + 1, agreements[best], agreements)


def class_linkage(kernel: ItemKernel, label: str = "label") -> tuple[list[str], np.ndarray]:
    """Return the classes, and how average linkage joins them, `[C - 1, 4]` as scipy has it.

    A row joins two clusters (classes first, in order; joins after them) at the height
    `1 - mean correlation`, with the number of classes joined.

    Args:
        kernel: Of the items.
        label: Which of the items' labels classes are.

    Raises:
        KeyError: No such labels.
        ValueError: A single class.
    """
    names, means = kernel.class_blocks(kernel.labels_of(label))
    if len(names) < 2:
        raise ValueError(f"all items are of class {names[0]!r}: there are no classes to join.")
    return names, linkage_of_means(means)


def linkage_of_means(means: np.ndarray) -> np.ndarray:
    """Return how average linkage joins classes of these mean correlations `[C, C]`."""
    from scipy.cluster.hierarchy import linkage

    rows, columns = np.triu_indices(len(means), 1)
    return linkage(np.maximum(1 - means[rows, columns], 0.0), "average")


def _cuts(kernel: ItemKernel, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """Return the cluster of each item at each number of clusters."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    x = kernel.embedding()
    some = np.sort(np.random.default_rng(seed).permutation(len(x))[:_JOINED])
    distance = (1 - x[some] @ x[some].T).clamp(min=0).double().numpy()
    np.fill_diagonal(distance, 0.0)
    joins = linkage(squareform(distance, checks=False), "average")
    cuts = [fcluster(joins, count, "maxclust") - 1 for count in counts]
    return [cut if len(some) == len(x) else _assigned(x, some, cut) for cut in cuts]


def _assigned(x: torch.Tensor, some: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cluster of each item, where some have theirs: that of largest correlation."""
    own = torch.from_numpy(labels).long()
    counts = own.bincount().to(x)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, own, x[some]) / counts[:, None]
    found = (x @ means.T).argmax(dim=1).numpy()
    found[some] = labels
    return found
