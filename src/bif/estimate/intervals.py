"""Turn standard errors into intervals, and into the draws that would resolve a sign."""

from __future__ import annotations

import math
from functools import cache

LEVEL = 0.95
"""Probability of an interval that covers."""


@cache
def t_quantile(num_groups: int, level: float = LEVEL) -> float:
    """Return the half-width of a two-sided interval in standard errors, by Student's t.

    The error of a score comes from the spread of G groups of chains, which have G - 1 degrees of
    freedom: 2.13 for 16 groups, 12.7 for 2.  Infinite with fewer than two groups.

    Args:
        num_groups: G.
        level: Probability that the interval holds the truth.

    Raises:
        ValueError: A level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a probability between 0 and 1.")
    if num_groups < 2:
        return math.inf
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, df=num_groups - 1))
