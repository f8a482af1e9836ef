"""Figures of how well an order of pairs, and clusters, agree with a tree: functions of arrays."""

from __future__ import annotations

import numpy as np

_LEVEL, _POWER = 0.05, 0.8
"""Of a test: how often it finds what is not there, and how often it is to find what is there."""
_LEAST_NOISE, _MOST_NOISE, _HALVINGS = 0.01, 1000.0, 14
"""Standard deviations between which noise is sought, in units of that of the tree's distances."""
_TRIALS = 1000
"""Simulated kernels: their share of 80 % has an error of 1.3 %."""
_MOST_CLASSES = 60
"""Classes up to which power is simulated: beyond, it takes minutes, and is no limit."""


def in_order(values: np.ndarray) -> np.ndarray:
    """Return the place of each value among the distinct ones, from the least, of the same shape."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)


def rank_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Spearman's correlation, each pair as often as its weight says; NaN if one is constant.

    scipy has no weights, and a resample of classes gives each pair one.

    Args:
        x: Places in order, `[P]` integers from 0.
        y: The same of another quantity.
        weights: `[P]`; 1 by default.

    >>> round(rank_correlation(np.array([0, 1, 2, 3]), np.array([0, 1, 3, 2])), 3)
    0.8
    """
    weights = np.ones(len(x)) if weights is None else weights
    return linear_correlation(_mid_ranks(x, weights), _mid_ranks(y, weights), weights)


def _mid_ranks(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = np.bincount(places, weights)
    return (np.cumsum(counts) - counts / 2)[places]


def linear_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Pearson's correlation, each pair as often as its weight says; NaN if one is constant.

    Args:
        x: `[P]`.
        y: `[P]`.
        weights: `[P]`; 1 by default.
    """
    weights = np.ones(len(x)) if weights is None else weights
    kept = weights > 0
    if not kept.any() or np.ptp(x[kept]) == 0 or np.ptp(y[kept]) == 0:
        return float("nan")
    x, y = (v - np.average(v, weights=weights) for v in (x, y))
    return float((weights * x) @ y / np.sqrt(((weights * x) @ x) * ((weights * y) @ y)))


def triplet_accuracy(
    nearer: np.ndarray, expected: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return in which share of triplets the one of two that a tree has nearer is nearer; ties half.

    Args:
        nearer: Of triplets a, b, c, `[T]`: 1 where b is nearer to a than c, -1 where c is, else 0.
        expected: The same by the tree; where it is 0 the triplet does not count.
        weights: `[T]`; 1 by default.

    >>> triplet_accuracy(np.array([1, -1, 0, 1]), np.array([1, 1, 1, 0]))
    0.5
    """
    weights = np.where(expected != 0, 1.0 if weights is None else weights, 0.0)
    total = float(weights.sum())
    return float(weights @ (1 + nearer * expected) / (2 * total)) if total > 0 else float("nan")


def purity(clusters: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the share of members that belong to the largest group of their cluster.

    Args:
        clusters: Number of the cluster of each member, `[C]` from 0.
        groups: Number of its group, `[C]` from 0.
        weights: `[C]`; 1 by default.

    >>> purity(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    shares = _shares(clusters, groups, weights)
    return float(shares.max(axis=1).sum())


def mutual_information(
    clusters: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return normalised mutual information, `2 I(U, V) / (H(U) + H(V))`; NaN if both are constant.

    Args:
        clusters: Number of the cluster of each member, `[C]` from 0.
        groups: Number of its group, `[C]` from 0.
        weights: `[C]`; 1 by default.

    >>> mutual_information(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    1.0
    """
    from scipy.special import entr

    shares = _shares(clusters, groups, weights)
    alone = float(entr(shares.sum(axis=1)).sum() + entr(shares.sum(axis=0)).sum())
    if alone == 0:
        return float("nan")
    return float(np.clip(2 * (alone - entr(shares).sum()) / alone, 0.0, 1.0))


def _shares(clusters: np.ndarray, groups: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    table = np.zeros((clusters.max() + 1, groups.max() + 1))
    np.add.at(table, (clusters, groups), 1.0 if weights is None else weights)
    return table / table.sum()


def detectable_correlation(
    distance: np.ndarray, permutations: np.ndarray, *, seed: int = 0
) -> float:
    """Return the least rank correlation that a permutation test at 5 % finds in 80 % of cases.

    Kernels are simulated whose distance is that of the tree and Gaussian noise at each pair of
    classes.  More noise lowers their rank correlation, and how often the test finds it.  The mean
    rank correlation is returned at the noise at which it still does so in 80 % of cases.  It is NaN
    if it never does, as where a twentieth of all orders fit the tree, and over 60 classes.

    Args:
        distance: Of the tree, `[C, C]`.
        permutations: Of the classes, `[R, C]`, the first of which is the identity.
        seed: Of the noise.
    """
    from scipy.stats import rankdata

    if len(distance) > _MOST_CLASSES:
        return float("nan")
    a, b = np.triu_indices(len(distance), 1)
    permuted = _unit_rows(rankdata(distance[permutations[:, a], permutations[:, b]], axis=1))
    source = np.random.default_rng(seed)
    noise = source.standard_normal((_TRIALS, len(a))) * np.std(distance[a, b])

    def found(size: float) -> tuple[float, float]:
        simulated = _unit_rows(rankdata(distance[a, b] + size * noise, axis=1))
        correlations = simulated @ permuted.T
        # as large by chance as in the first, which is the tree itself
        p = (correlations >= correlations[:, :1] - 1e-12).mean(axis=1)
        return float((p <= _LEVEL).mean()), float(correlations[:, 0].mean())

    share, correlation = found(_LEAST_NOISE)
    if share < _POWER:
        return float("nan")
    low, high = _LEAST_NOISE, _MOST_NOISE
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        share, mean = found(middle)
        if share >= _POWER:
            low, correlation = middle, mean
        else:
            high = middle
    return correlation


def _unit_rows(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
