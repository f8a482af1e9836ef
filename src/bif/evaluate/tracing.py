"""Tracing: are planted training items found from the queries that they act on?

Plant items (a backdoor, copies, poison), train, take queries that carry the trigger, and look how
high the planted items rank among the most helpful. Where scores tie, every measure is the mean over
all orders of the tied items (McSherry & Najork 2008, "Computing information retrieval performance
measures efficiently in the presence of tied scores"): the order of the data set earns nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.mislabel import auroc
from bif.evaluate.removal import helpfulness
from bif.evaluate.resampling import Estimate, mean_over_queries
from bif.types import Better


@dataclass(frozen=True)
class Tracing:
    """Measures of how well planted items are found; 1 is perfect in all but `recall`.

    Attributes:
        auroc: Probability that a planted item ranks above another one; 0.5 is chance.
        average_precision: Mean over planted items of the precision at their rank; chance is about
            their share of all items.
        recall: Share of the planted items among the first k; at most k / (number planted).
        reciprocal_rank: 1 / (rank of the first planted item).
        k: Number of items that `recall` looks at.
    """

    auroc: Estimate
    average_precision: Estimate
    recall: Estimate
    reciprocal_rank: Estimate
    k: int


def tracing(
    scores: Any,
    planted: Any,
    *,
    better: Better,
    k: int,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Tracing:
    """Return how high planted items rank for the queries that they act on.

    Items are ranked from the most helpful: planted items push the observable of a triggered query
    the way that `better` names, such as the loss of the backdoor's label, "lower". Intervals hold
    the percentiles of resamples of queries; the planted items are taken as they are.

    Args:
        scores: [Q, N], signed as the observable.
        planted: True for planted items, bool [N], or [Q, N] where queries have their own.
        better: Which way the planted items move the observable.
        k: Number of items that recall looks at, from 1 to N.
        num_bootstrap: Number of resamples.
        confidence: Probability that an interval is to cover.
        seed: Seed of the resampling.

    Returns:
        A `Tracing`.

    Raises:
        ValueError: If shapes do not fit, a query has no planted item or nothing else, or
            scores are not finite.
    """
    helpful = helpfulness(scores, better)
    planted_QN = _check_arrays(planted, helpful.shape)
    if not 1 <= k <= helpful.shape[1]:
        raise ValueError(f"k is {k}; expected 1 to {helpful.shape[1]}, the number of items.")
    per_query = np.array(
        [
            (auroc(row, marked), *_rank_measures(row, marked, k))
            for row, marked in zip(helpful, planted_QN, strict=True)
        ]
    )
    area, precision, recall, reciprocal = (
        mean_over_queries(values, num_bootstrap=num_bootstrap, confidence=confidence, seed=seed)
        for values in per_query.T
    )
    return Tracing(area, precision, recall, reciprocal, k)


def _rank_measures(helpful: np.ndarray, planted: np.ndarray, k: int) -> tuple[float, float, float]:
    """Return average precision, recall at k and reciprocal rank.

    Each is the mean over orders of ties.
    """
    _, block = np.unique(-helpful, return_inverse=True)
    sizes = np.bincount(block)
    hits = np.bincount(block, weights=planted)
    before, hits_before = np.cumsum(sizes) - sizes, np.cumsum(hits) - hits
    num_planted = hits.sum()
    recall = (hits * np.clip(k - before, 0, sizes) / sizes).sum() / num_planted

    # position m = 1 … t of a block with t items, p planted, after a items with r planted:
    # P(planted at m) (r + 1 + (m-1)(p-1)/(t-1)) / (a + m)
    own = np.repeat(np.arange(len(sizes)), sizes)
    a, t, p, r = before[own], sizes[own], hits[own], hits_before[own]
    m = np.arange(1, len(own) + 1) - a
    found = r + 1 + (m - 1) * (p - 1) / np.maximum(t - 1, 1)
    precision = (p / t * found / (a + m)).sum() / num_planted

    # P(first planted at m) = P(none before m) p / (t - m + 1), in the first block with any
    first = int(np.flatnonzero(hits)[0])
    t, p, a = sizes[first], hits[first], before[first]
    left = t - np.arange(t - p + 1)
    none = np.cumprod(np.concatenate([[1.0], 1 - p / left[:-1]]))
    reciprocal = (none * p / left / (a + np.arange(1, len(left) + 1))).sum()
    return float(precision), float(recall), float(reciprocal)


def _check_arrays(planted: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the marks [Q, N]."""
    planted = np.asarray(planted)
    if planted.dtype != np.bool_ or planted.shape not in (shape, shape[1:]):
        raise ValueError(
            f"planted has shape {planted.shape} and dtype {planted.dtype}; expected bool "
            f"[{shape[1]}] or [{shape[0]}, {shape[1]}], one truth value an item."
        )
    planted = np.broadcast_to(planted, shape)
    counts = planted.sum(axis=1)
    poor = np.flatnonzero((counts == 0) | (counts == shape[1]))
    if poor.size:
        raise ValueError(
            f"query {int(poor[0])} has {int(counts[poor[0]])} planted of {shape[1]} items; "
            "expected at least one planted and one other. Leave such queries out."
        )
    return planted
