"""The noise ceiling: how well could a perfect score predict outcomes measured with few seeds?"""

from __future__ import annotations

from typing import Any

import numpy as np

from bif.evaluate.resampling import require_finite


def noise_ceiling(outcomes: Any) -> float:
    """Returns the LDS that a perfect predictor of the expected outcome would reach.

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
    centered = outcomes - outcomes.mean(axis=1, keepdims=True)
    centered[np.broadcast_to(np.ptp(outcomes, axis=1, keepdims=True) == 0, centered.shape)] = 0
    norm = np.sqrt((centered**2).sum(axis=1, keepdims=True))
    unit = np.divide(centered, norm, out=np.zeros_like(centered), where=norm > 0)
    # sum over pairs s != t of <u_s, u_t> = |sum_s u_s|^2 - sum_s |u_s|^2
    pairs = (unit.sum(axis=0) ** 2).sum(axis=0) - (unit**2).sum(axis=(0, 1))
    correlation = max(float(pairs.mean()) / (num_seeds * (num_seeds - 1)), 0.0)
    reliability = num_seeds * correlation / (1 + (num_seeds - 1) * correlation)
    return float(np.sqrt(min(reliability, 1.0)))


def check_outcomes(outcomes: Any) -> np.ndarray:
    """Returns outcomes as float64 [S, M, Q]."""
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
