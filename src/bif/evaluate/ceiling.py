"""The noise ceiling: how well could a perfect score predict outcomes measured with few seeds?"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from bif.estimate.correlation import correlation
from bif.evaluate.resampling import require_finite


def noise_ceiling(outcomes: Any) -> float:
    """Return the LDS that a perfect predictor of the expected outcome would reach.

    `sqrt( S r / (1 + (S-1) r) )`, with r the Pearson correlation over subsets of two seeds'
    outcomes, averaged over pairs of seeds and over queries (Spearman-Brown). Exact for Pearson's
    correlation and 1-2 % optimistic for Spearman's. A constant outcome correlates 0; an average
    r below 0 gives 0.

    Args:
        outcomes: [S, M, Q] for S seeds, M subsets, Q queries.

    Returns:
        The ceiling, between 0 and 1; nan for a single seed.

    Raises:
        ValueError: If outcomes are not finite or not [S, M, Q] with at least two subsets.
    """
    outcomes = check_outcomes(outcomes)
    num_seeds = outcomes.shape[0]
    if num_seeds == 1:
        return float("nan")
    pairs = [correlation(a.T, b.T) for a, b in combinations(outcomes, 2)]
    r = max(float(np.nan_to_num(pairs).mean()), 0.0)
    reliability = num_seeds * r / (1 + (num_seeds - 1) * r)
    return float(np.sqrt(min(reliability, 1.0)))


def check_outcomes(outcomes: Any) -> np.ndarray:
    """Return outcomes as float64 [S, M, Q]."""
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim == 2:
        outcomes = outcomes[None]
    if outcomes.ndim != 3 or 0 in outcomes.shape or outcomes.shape[1] < 2:
        raise ValueError(
            f"outcomes have shape {outcomes.shape}; expected [S, M, Q] (seeds, subsets, queries) "
            "or [M, Q] with at least two subsets."
        )
    require_finite(outcomes, "outcomes")
    return outcomes
