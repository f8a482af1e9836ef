"""Correlate paired rows."""

from __future__ import annotations

from typing import Any

import numpy as np


def correlation(a: Any, b: Any) -> np.ndarray:
    """Return Pearson's correlation over the last axis, NaN where either row is constant.

    Args:
        a: `[…, N]`.
        b: `[…, N]`, of a shape that goes with `a`.

    Returns:
        float64 `[…]`.

    >>> correlation([1.0, 2.0, 3.0], [[3.0, 2.0, 1.0], [2.0, 4.0, 6.0]]).tolist()
    [-1.0, 1.0]
    """
    # by the range, since the mean of equal numbers need not be that number
    rows = [np.asarray(x, dtype=np.float64) for x in (a, b)]
    constant = np.logical_or(*(np.ptp(x, axis=-1) == 0 for x in rows))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in rows)
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    found = np.full(scale.shape, np.nan)
    return np.divide((a * b).sum(axis=-1), scale, out=found, where=~constant & (scale > 0))
