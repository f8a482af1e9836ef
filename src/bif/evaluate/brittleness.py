"""Brittleness: how few items have to go before a query's prediction flips?

Ilyas et al. 2022 (Datamodels, arXiv 2202.00622), section 4.1; Park et al. 2023 (TRAK,
arXiv 2303.14186), section 4.3. The smallest number is an upper bound on the size of the smallest
set whose removal flips the prediction: the better the score, the tighter the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.resampling import require_confidence, require_finite


@dataclass(frozen=True, eq=False)
class Brittleness:
    """The number of removed items that flips each prediction.

    Attributes:
        sizes: Numbers of removed items that were tried, [K].
        smallest: The smallest of them that flips each query's prediction, float64 [Q]; inf where
            none does, 0 where the prediction is wrong with all items.
        flipped: Share of the queries predicted rightly with all items that are flipped by
            `sizes[k]` items or fewer, float64 [K]; nan where there are none.
        ci_low: Lower ends of the intervals of `flipped`, [K].
        ci_high: Upper ends.
        num_right: Number of queries predicted rightly with all items.
    """

    sizes: np.ndarray
    smallest: np.ndarray
    flipped: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    num_right: int


def brittleness(
    margins: Any, baseline: Any, sizes: Sequence[int], *, confidence: float = 0.95
) -> Brittleness:
    """Return the smallest removal that flips each prediction, and the cumulative share.

    A prediction is wrong where the margin, averaged over seeds, is below 0. The intervals are
    Wilson's for a proportion (1927), queries being independent: a bootstrap would have no width
    where no query or every query flips.

    Args:
        margins: Margins after the removal of each query's most helpful items, [S, K, Q]: what
            `RemovalMasks.split` returns first. Above 0 where the prediction is right.
        baseline: Margins after training on all items, [S, Q].
        sizes: Numbers of removed items, rising, [K].
        confidence: Probability that an interval is to cover.

    Returns:
        A `Brittleness`.

    Raises:
        ValueError: If shapes do not fit, sizes do not rise, values are not finite or
            `confidence` makes no sense.
    """
    from scipy.stats import binomtest

    require_confidence(confidence)
    margins_KQ, baseline_Q, sizes_K = _check_arrays(margins, baseline, sizes)
    wrong_KQ = margins_KQ < 0
    first = wrong_KQ.argmax(axis=0)
    smallest = np.where(wrong_KQ.any(axis=0), sizes_K[first].astype(np.float64), np.inf)
    right = baseline_Q >= 0
    smallest[~right] = 0.0
    num_right = int(right.sum())
    if num_right == 0:
        unknown = np.full(len(sizes_K), np.nan)
        return Brittleness(sizes_K, smallest, unknown, unknown, unknown, 0)
    num_flipped = (smallest[right] <= sizes_K[:, None]).sum(axis=1)
    low, high = np.transpose(
        [binomtest(k, num_right).proportion_ci(confidence, "wilson") for k in num_flipped.tolist()]
    )
    return Brittleness(sizes_K, smallest, num_flipped / num_right, low, high, num_right)


def _check_arrays(
    margins: Any, baseline: Any, sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means over seeds [K, Q] and [Q], and the sizes [K]."""
    margins, baseline = (np.asarray(x, dtype=np.float64) for x in (margins, baseline))
    sizes_K = np.asarray(sizes, dtype=int)
    fits = (margins.ndim, baseline.ndim, sizes_K.ndim) == (3, 2, 1)
    fits = fits and 0 not in (*margins.shape, *baseline.shape)
    if not (fits and margins.shape[1:] == (len(sizes_K), baseline.shape[1])):
        raise ValueError(
            f"margins have shape {margins.shape}, baseline {baseline.shape} and sizes "
            f"{sizes_K.shape}; expected [S, K, Q], [S, Q] and [K]: seeds, sizes, queries."
        )
    if sizes_K[0] < 1 or (np.diff(sizes_K) <= 0).any():
        raise ValueError(f"sizes are {sizes_K.tolist()}; expected rising numbers from 1 on.")
    require_finite(margins, "margins")
    require_finite(baseline, "baseline")
    return margins.mean(axis=0), baseline.mean(axis=0), sizes_K
