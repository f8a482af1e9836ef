"""How a kernel orders pairs and triplets of classes and of items, and how it joins classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bif.estimate.item_kernel import ItemKernel
from bif.kernel.tree_figures import in_order

_DIGITS = 12
"""Decimal digits of a correlation: below, equal ones differ by rounding alone."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Which pairs and triplets are looked at, all of different classes.

    Attributes:
        labels: Class of each item.
        classes: Its number in the order of the classes' names, `[N]`.
        class_triplets: Numbers of classes, of which the first is compared with both others,
            `[T, 3]`.
        item_pairs: Positions of items, `[P, 2]`.
        item_triplets: `[T, 3]`.
    """

    labels: tuple[str, ...]
    classes: np.ndarray
    class_triplets: np.ndarray
    item_pairs: np.ndarray
    item_triplets: np.ndarray

    @classmethod
    def draw(cls, labels: Sequence[str], *, most: int, seed: int) -> Sample:
        """Return all pairs and triplets, or so many at random where there are more."""
        names, classes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
        source = np.random.default_rng(seed)
        return cls(
            tuple(labels), classes,
            _different(np.arange(len(names)), 3, most, source),
            _different(classes, 2, most, source),
            _different(classes, 3, most, source),
        )  # fmt: skip


def _different(
    classes: np.ndarray, size: int, most: int, source: np.random.Generator
) -> np.ndarray:
    """Return pairs or triplets of members of different classes, `[P, size]`.

    All of them, a triplet once for each member as the first, or so many, each as likely as another.
    """
    if (1 if size == 2 else 3) * math.comb(len(classes), size) > most:
        return _drawn(classes, size, most, source)
    sets = np.array(list(itertools.combinations(range(len(classes)), size)))
    turns = [sets] if size == 2 else [sets[:, [k, k - 1, k - 2]] for k in range(3)]
    found = np.concatenate(turns)
    ordered = np.sort(classes[found], axis=1)
    return found[(ordered[:, 1:] != ordered[:, :-1]).all(axis=1)]


def _drawn(classes: np.ndarray, size: int, count: int, source: np.random.Generator) -> np.ndarray:
    """Return random pairs or triplets, without a look at those that are not of different classes.

    Classes may be so uneven that hardly any are.
    """
    members, counts = np.argsort(classes, kind="stable"), np.bincount(classes)
    starts = np.cumsum(counts) - counts
    chance = np.outer(counts, counts).astype(float)
    if size == 3:
        chance *= len(classes) - counts[:, None] - counts[None, :]
    np.fill_diagonal(chance, 0.0)
    both = source.choice(chance.size, size=count, p=chance.ravel() / chance.sum())
    a, b = np.divmod(both, len(counts))
    columns = [starts[k] + source.integers(counts[k]) for k in (a, b)]
    if size == 3:
        rest = source.integers(len(classes) - counts[a] - counts[b])
        for k in (np.minimum(a, b), np.maximum(a, b)):  # over the members of both
            rest += np.where(rest >= starts[k], counts[k], 0)
        columns.append(rest)
    return members[np.stack(columns, axis=1)]


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a kernel orders pairs and triplets, by the numbers of their classes.

    Attributes:
        pairs: `[P, 2]`.
        places: Place of each pair in the order of their distances, `[P]`.
        triplets: `[T, 3]`.
        nearer: 1 where the second is more alike to the first than the third, -1 where it is less,
            0 where both are the same, `[T]`.
    """

    pairs: np.ndarray
    places: np.ndarray
    triplets: np.ndarray
    nearer: np.ndarray


@dataclass(frozen=True, eq=False)
class Similarity:
    """What a kernel says of classes.

    Attributes:
        of_classes: Of all pairs of classes, by the means of their items' correlations.
        of_items: Of pairs of items of different classes.
        joined_at: Height at which average linkage joins each pair of classes, `[P]`.
        clusters: Number of each class's cluster at each cut of the linkage, `[L, C]`.
    """

    of_classes: Comparison
    of_items: Comparison
    joined_at: np.ndarray
    clusters: np.ndarray


def similarity(kernel: ItemKernel, sample: Sample, cuts: Sequence[int]) -> Similarity:
    """Return what a kernel says of classes.

    Args:
        kernel: Of the items of the sample.
        sample: Pairs and triplets.
        cuts: Numbers of clusters.
    """
    from scipy.cluster.hierarchy import cophenet, fcluster, linkage

    means = np.round(kernel.class_blocks(sample.labels)[1], _DIGITS)
    pairs = np.stack(np.triu_indices(len(means), 1), axis=1)
    distance = 1 - means[pairs[:, 0], pairs[:, 1]]
    joins = linkage(distance, "average")
    clusters = [fcluster(joins, count, "maxclust") - 1 for count in cuts]
    a, b, c = sample.class_triplets.T
    of_classes = Comparison(
        pairs, in_order(distance), sample.class_triplets, np.sign(means[a, b] - means[a, c])
    )
    i, j, k = sample.item_triplets.T
    one, other, of_pairs = (
        np.round(kernel.at_pairs(*places), _DIGITS)
        for places in ((i, j), (i, k), sample.item_pairs.T)
    )
    of_items = Comparison(
        sample.classes[sample.item_pairs],
        in_order(-of_pairs),
        sample.classes[sample.item_triplets],
        np.sign(one - other),
    )
    shaped = np.array(clusters, dtype=int).reshape(len(cuts), len(means))
    return Similarity(of_classes, of_items, np.asarray(cophenet(joins)), shaped)
