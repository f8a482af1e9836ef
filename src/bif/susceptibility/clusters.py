"""Clusters of contexts by their susceptibilities, beside shuffled contexts and noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bif.estimate.partitions import adjusted_rand_index, largest_first
from bif.susceptibility.components import SusceptibilityMatrix, standardised
from bif.susceptibility.directions import drawn_noise

_MOST_CLUSTERS = 30
"""Largest number of clusters that is tried, and at most the root of the number of contexts."""


@dataclass(frozen=True, eq=False)
class ContextClusters:
    """Groups of contexts to which components respond alike.

    Attributes:
        labels: Cluster of each context, the largest is 0, `[X]`.
        count: Clusters.
        agreement: Adjusted Rand index of the clusters of both halves of the chains: 1 is the same,
            0 is chance.
        agreements: The same of each number of clusters that was tried.
        separation: Share of the variance of the standardised matrix that lies between clusters.
        nulls: Quantiles of it where there are no clusters: "shuffled", each component's contexts on
            their own; "cloud", normal numbers with the components' covariance, which keep what
            components share but no groups; "noise", that of the chains alone.
    """

    labels: np.ndarray
    count: int
    agreement: float
    agreements: dict[int, float]
    separation: float
    nulls: dict[str, float]

    @property
    def above_nulls(self) -> bool:
        """Return whether clusters are further apart than those of all nulls."""
        return self.separation > max(self.nulls.values())


def context_clusters(
    matrix: SusceptibilityMatrix,
    count: int | None = None,
    *,
    num_shuffles: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> ContextClusters:
    """Return clusters of contexts by Ward's linkage of the standardised matrix's columns.

    Any cloud of points falls into clusters, so those found are held against `nulls`.  That they are
    the same by both halves of the chains is another matter: see `agreement`.

    Args:
        matrix: Of at least two components and three contexts.
        count: Clusters; by default that number from 2 to 30, and to the root of X, on which both
            halves of the chains agree best, the largest of equal ones.
        num_shuffles: Matrices of each null.
        level: Quantile of the nulls.
        seed: Of the nulls.

    Raises:
        ValueError: Too few components or contexts; a count below 2 or above the contexts; a
            component that responds to all alike; too few shuffles; a level outside (0, 1).

    Source: Ward 1963 for the linkage; Hubert & Arabie 1985 for the index.
    """
    num_components, num_contexts = matrix.value.shape
    if num_components < 2 or num_contexts < 3:
        raise ValueError(
            f"clusters need at least 2 components and 3 contexts, got {num_components} and "
            f"{num_contexts}."
        )
    if count is not None and not 2 <= count <= num_contexts:
        raise ValueError(f"count is {count}: expected 2 to {num_contexts} clusters.")
    if num_shuffles < 20 or not 0 < level < 1:
        raise ValueError(
            f"num_shuffles is {num_shuffles} and level {level}: expected at least 20 shuffles, and "
            "a quantile between 0 and 1."
        )
    most = max(2, min(_MOST_CLUSTERS, int(num_contexts**0.5)))
    counts = list(range(2, most + 1)) if count is None else [count]
    halves = [_cuts(standardised(half, matrix.components), counts) for half in matrix.halves]
    agreements = {
        k: adjusted_rand_index(a, b) for k, a, b in zip(counts, *halves, strict=True)
    }  # fmt: skip
    best = max(reversed(counts), key=lambda k: agreements[k])  # the finest of equal ones
    x, rng = matrix.standardised(), np.random.default_rng(seed)
    labels = _cuts(x, [best])[0]
    root = np.linalg.cholesky(np.cov(x) + 1e-9 * np.eye(num_components))
    drawn = {
        "shuffled": (rng.permuted(x, axis=1) for _ in range(num_shuffles)),
        "cloud": (root @ rng.standard_normal(x.shape) for _ in range(num_shuffles)),
        "noise": drawn_noise(matrix, num_shuffles, rng),
    }
    nulls = {
        name: float(np.quantile([_between(y, _cuts(y, [best])[0]) for y in matrices], level))
        for name, matrices in drawn.items()
    }
    return ContextClusters(
        largest_first(labels), best, agreements[best], agreements, _between(x, labels), nulls
    )


def _cuts(x: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Return the cluster of each column of `[K, X]` at each number of clusters."""
    from scipy.cluster.hierarchy import fcluster, linkage

    joins = linkage(x.T, "ward")
    return [fcluster(joins, count, "maxclust") - 1 for count in counts]


def _between(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the variance of columns `[K, X]` between clusters, in units of a standardised matrix.

    Of one it is the share of its variance; of noise alone, how much of it noise could make up.
    """
    away = x - x.mean(axis=1, keepdims=True)
    means = np.stack([away[:, labels == k].mean(axis=1) for k in np.unique(labels)])
    sizes = np.unique(labels, return_counts=True)[1]
    return float((sizes[:, None] * means**2).sum() / x.size)
