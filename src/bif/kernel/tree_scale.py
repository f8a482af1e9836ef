"""A tree of classes to hold kernels against: the figures of agreement, and resamples of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bif.estimate.item_kernel import ItemKernel
from bif.kernel.class_similarity import Sample, Similarity
from bif.kernel.class_tree import ClassTree
from bif.kernel.tree_figures import (
    in_order,
    linear_correlation,
    mutual_information,
    purity,
    rank_correlation,
    triplet_accuracy,
)

_TAIL = 2.5
"""Percent outside an interval at each end."""


@dataclass(frozen=True, eq=False)
class TreeScale:
    """A tree, to hold kernels against.

    Attributes:
        distance: `[C, C]`.
        order: Place of each distance among the distinct ones, `[C, C]`.
        groups: Number of each class's group at each level, `[L, C]`.
        cuts: Groups of each level.
    """

    distance: np.ndarray
    order: np.ndarray
    groups: np.ndarray
    cuts: tuple[int, ...]

    @classmethod
    def of_tree(cls, tree: ClassTree) -> TreeScale:
        """Return the scale of a tree of the classes in question."""
        cuts = tuple(int(level.max()) + 1 for level in tree.groups)
        return cls(tree.distance, in_order(tree.distance), tree.groups, cuts)

    def permuted(self, order: np.ndarray) -> TreeScale:
        """Return the tree with its classes in another order."""
        both = np.ix_(order, order)
        return TreeScale(self.distance[both], self.order[both], self.groups[:, order], self.cuts)

    @property
    def names(self) -> list[str]:
        """Names of the figures."""
        of_pairs = ["rank_correlation", "triplet_accuracy"]
        of_levels = [
            f"{name}_of_{count}_groups"
            for count in self.cuts
            for name in ("purity", "mutual_information")
        ]
        items = [f"item_{name}" for name in of_pairs]
        return [*of_pairs, *items, "cophenetic_correlation", *of_levels]

    def figures(self, found: Similarity, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the figures of a kernel, each class as often as its weight says, `[F]`."""
        values = []
        weights = np.ones(len(self.order)) if weights is None else weights
        for compared in (found.of_classes, found.of_items):
            a, b = compared.pairs.T
            values.append(
                rank_correlation(compared.places, self.order[a, b], weights[a] * weights[b])
            )
            a, b, c = compared.triplets.T
            expected = np.sign(self.order[a, c] - self.order[a, b])
            values.append(
                triplet_accuracy(compared.nearer, expected, weights[a] * weights[b] * weights[c])
            )
        a, b = found.of_classes.pairs.T
        values.append(
            linear_correlation(found.joined_at, self.distance[a, b], weights[a] * weights[b])
        )
        for clusters, groups in zip(found.clusters, self.groups, strict=True):
            values.append(purity(clusters, groups, weights))
            values.append(mutual_information(clusters, groups, weights))
        return np.array(values)


def refuse_none(num_kernels: int, *counts: int) -> None:
    """Raise where there are no kernels, or no pairs, permutations or resamples.

    Raises:
        ValueError: There are not.
    """
    if not num_kernels or min(counts) < 1:
        raise ValueError(
            f"{num_kernels} kernels, and {counts} pairs, permutations and resamples, expected one "
            "or more of each."
        )


def scale_of(
    kernels: Sequence[ItemKernel], tree: ClassTree, *, label: str, num_pairs: int, seed: int
) -> tuple[TreeScale, list[Sample]]:
    """Return the scale of the kernels' classes, and pairs and triplets of each kernel's items.

    Args: as for `agreement`.

    Raises:
        KeyError, ValueError: As `agreement`.
    """
    labels = [kernel.labels_of(label) for kernel in kernels]
    names = sorted(set(labels[0]))
    if any(sorted(set(other)) != names for other in labels):
        raise ValueError("the kernels have different classes, expected the same of all.")
    scale = TreeScale.of_tree(tree.of_classes(names))
    return scale, [Sample.draw(some, most=num_pairs, seed=seed) for some in labels]


def resampled(
    scale: TreeScale, found: Sequence[Similarity], num_bootstrap: int, seed: int
) -> np.ndarray:
    """Return the figures of resampled classes and kernels, `[B, F]`."""
    source = np.random.default_rng(seed)
    count, rows = len(scale.order), []
    for _ in range(num_bootstrap):
        weights = source.multinomial(count, np.full(count, 1 / count)).astype(float)
        kernels = source.integers(len(found), size=len(found))
        own = {k: scale.figures(found[k], weights) for k in np.unique(kernels)}
        rows.append(np.mean([own[k] for k in kernels], axis=0))
    return np.array(rows)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of the values that are numbers, NaN where fewer than half are."""
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return math.nan, math.nan
    low, high = np.percentile(known, [_TAIL, 100 - _TAIL])
    return float(low), float(high)
