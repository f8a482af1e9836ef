"""Removal curves: how far does an outcome move once the most helpful items are gone?

Retrain without the k items that a score calls most helpful for a query, for several k, and without
k random ones. A better score moves the outcome further with fewer items. (Hooker et al. 2019, ROAR,
arXiv 1806.10758, for features; Park et al. 2023, TRAK, arXiv 2303.14186, for training items.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.resampling import intervals, require_finite, resample_counts
from bif.problem.literals import require_literal
from bif.types import Better


@dataclass(frozen=True, eq=False)
class RemovalMasks:
    """Subsets to retrain on: all items but the most helpful ones, or but random ones.

    Attributes:
        masks: bool [K, P + R, N]; True marks an item that stays. All masks of one k have one
            size. First the P rankings, then the R random controls.
        sizes: Numbers of removed items, K.
        num_rankings: P: Q, one for each query, or 1 for all queries.
    """

    masks: np.ndarray
    sizes: tuple[int, ...]
    num_rankings: int

    def split(self, outcomes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Sort retrained outcomes: each query's after its own removals, and after random ones.

        Args:
            outcomes: [K, S, P + R, Q]: for each size what `retrain` returns for `masks[k]`.

        Returns:
            After the removal of the most helpful items [S, K, Q], and of random ones
            [S, K, R, Q].

        Raises:
            ValueError: If the shape does not fit the masks.
        """
        outcomes = np.asarray(outcomes, dtype=np.float64)
        num_sizes, num_masks, _ = self.masks.shape
        wrong = outcomes.ndim != 4 or outcomes.shape[::2][:2] != (num_sizes, num_masks)
        if wrong or self.num_rankings not in (1, outcomes.shape[3]):
            queries = "Q" if self.num_rankings == 1 else self.num_rankings
            raise ValueError(
                f"outcomes have shape {outcomes.shape}; expected [{num_sizes}, S, {num_masks}, "
                f"{queries}]: sizes, seeds, masks of that size, queries."
            )
        own = np.zeros(outcomes.shape[3], dtype=int)
        if self.num_rankings > 1:
            own = np.arange(self.num_rankings)
        top = outcomes[:, :, own, np.arange(outcomes.shape[3])]
        return top.swapaxes(0, 1), outcomes[:, :, self.num_rankings :].swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class Curve:
    """A mean over queries for each of K sizes, with its intervals; each array float64 [K]."""

    mean: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """Changes of the outcome from the baseline, mean over queries; never flipped.

    Attributes:
        top: After the removal of the most helpful items. For a loss, a good score makes it rise.
        random: After the removal of as many random items.
        difference: `top - random`.
        per_query: The difference of every query, float64 [Q, K].
    """

    top: Curve
    random: Curve
    difference: Curve
    per_query: np.ndarray


def helpfulness(scores: Any, better: Better) -> np.ndarray:
    """Return scores that are larger the more an item helps: `-scores` where lower is better.

    Args:
        scores: [Q, N], or [N], signed as the outcome.
        better: Which way the outcome is better.

    Returns:
        float64 [Q, N]; [1, N] for [N].

    Raises:
        ValueError: If `better` is neither, or scores are not finite or have other axes.
    """
    require_literal("better", better, Better)  # without it nothing is helpful
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"scores have shape {scores.shape}; expected [Q, N] or [N].")
    require_finite(scores, "scores")
    scores = np.atleast_2d(scores)
    return -scores if better == "lower" else scores


def removal_masks(
    scores: Any, sizes: Sequence[int], *, better: Better, control_seed: int, num_random: int
) -> RemovalMasks:
    """Make the subsets of a removal curve.

    The k items that a score calls most helpful go, whatever their sign, ties in the order of the
    items. A control removes the first k items of a random order that depends on the seed and its
    index alone. Both are nested: what goes at one size goes at every larger one.

    Args:
        scores: [Q, N] for one ranking a query, or [N] for one that serves all queries.
        sizes: Numbers of items to remove, rising, from 1 to N - 1.
        better: Which way the outcome is better.
        control_seed: Seed of the random orders.
        num_random: Number of controls R of every size.

    Returns:
        A `RemovalMasks`.

    Raises:
        ValueError: If sizes do not rise or leave no item, there is no control, or scores are
            not finite.
    """
    helpful = helpfulness(scores, better)
    num_rankings, num_items = helpful.shape
    sizes = tuple(int(k) for k in sizes)
    bounds = (0, *sizes, num_items)
    if not sizes or any(a >= b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(
            f"sizes are {list(sizes)}; expected rising numbers from 1 to {num_items - 1}, for "
            f"{num_items} items."
        )
    if num_random < 1:
        raise ValueError(f"num_random is {num_random}; expected at least 1 random control.")
    orders = [*np.argsort(-helpful, axis=1, kind="stable")]
    rng = np.random.default_rng(control_seed)
    orders += [rng.permutation(num_items) for _ in range(num_random)]
    masks = np.ones((len(sizes), len(orders), num_items), dtype=bool)
    for k, size in enumerate(sizes):
        for row, order in enumerate(orders):
            masks[k, row, order[:size]] = False
    return RemovalMasks(masks, sizes, num_rankings)


def removal_curve(
    top: Any,
    random: Any,
    baseline: Any,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RemovalCurve:
    """Return the mean change of the outcome for each size, against random removal.

    `mean_q mean_s (top[s, k, q] - baseline[s, q])`, and the same for the controls, averaged over
    them too. The intervals hold the percentiles of resamples of queries and of controls, both.
    Chance in the retraining that all queries share is not in them: use several seeds.

    Args:
        top: Outcomes without each query's most helpful items, [S, K, Q].
        random: Outcomes without random items, [S, K, R, Q].
        baseline: Outcomes after training on all items, [S, Q]; their seeds need not be the same.
        num_bootstrap: Number of resamples.
        confidence: Probability that an interval is to cover.
        seed: Seed of the resampling.

    Returns:
        A `RemovalCurve`.

    Raises:
        ValueError: If shapes do not fit, values are not finite, or `num_bootstrap` or
            `confidence` make no sense.
    """
    top_QK, random_RQK, baseline_Q = _means_over_seeds(top, random, baseline)
    top_QK = top_QK - baseline_Q[:, None]
    random_RQK = random_RQK - baseline_Q[:, None]
    num_controls, num_queries, num_sizes = random_RQK.shape
    rng = np.random.default_rng(seed)
    queries = resample_counts(num_queries, num_bootstrap, rng) / num_queries
    controls = resample_counts(num_controls, num_bootstrap, rng) / num_controls
    resampled_top = queries @ top_QK
    by_control = queries @ random_RQK.swapaxes(0, 1).reshape(num_queries, -1)
    by_control = by_control.reshape(num_bootstrap, num_controls, num_sizes)
    resampled_random = np.einsum("br,brk->bk", controls, by_control)

    def curve(resampled: np.ndarray, mean: np.ndarray) -> Curve:
        return Curve(mean, *intervals(resampled, mean, confidence))

    per_query = top_QK - random_RQK.mean(axis=0)
    return RemovalCurve(
        top=curve(resampled_top, top_QK.mean(axis=0)),
        random=curve(resampled_random, random_RQK.mean(axis=(0, 1))),
        difference=curve(resampled_top - resampled_random, per_query.mean(axis=0)),
        per_query=per_query,
    )


def _means_over_seeds(
    top: Any, random: Any, baseline: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means over seeds [Q, K], [R, Q, K] and [Q]."""
    top, random, baseline = (np.asarray(x, dtype=np.float64) for x in (top, random, baseline))
    fits = (top.ndim, random.ndim, baseline.ndim) == (3, 4, 2)
    fits = fits and 0 not in (*top.shape, *random.shape, *baseline.shape)
    fits = fits and random.shape[:2] == top.shape[:2]
    if not (fits and top.shape[2] == random.shape[3] == baseline.shape[1]):
        raise ValueError(
            f"top has shape {top.shape}, random {random.shape} and baseline {baseline.shape}; "
            "expected [S, K, Q], [S, K, R, Q] and [S, Q]: seeds, sizes, controls, queries."
        )
    for values, name in ((top, "top"), (random, "random"), (baseline, "baseline")):
        require_finite(values, name)
    return (
        top.mean(axis=0).T,
        random.mean(axis=0).transpose(1, 2, 0),
        baseline.mean(axis=0),
    )
