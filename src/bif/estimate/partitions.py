"""Agreement of two ways to part the same items into clusters."""

from __future__ import annotations

import numpy as np


def adjusted_rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of pairs on which two clusterings agree, beyond chance.

    `(Σ C(n_ab, 2) - E) / (½ (A + B) - E)`, with A and B the pairs within clusters of either and
    `E = A B / C(N, 2)`; 1 where both have one cluster, or one for each item.

    >>> adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    both, a, b, every = (
        float((x * (x - 1) / 2).sum())
        for x in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    chance = a * b / every
    most = (a + b) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def largest_first(labels: np.ndarray) -> np.ndarray:
    """Return clusters numbered from the largest on, from 0."""
    _, found, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[found]
