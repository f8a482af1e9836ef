"""When a quantity rises and peaks along a training; fixed before the reported seeds were run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EARLY = (80, 140)
"""Steps whose median is the level before the rise: after the frequencies of characters are learned,
and well before any head matches prefixes."""
ONSET = 0.1
"""Share of the rise at the onset."""


def rise(steps: Sequence[float], values: Sequence[float], share: float) -> float:
    """Return the step of the last crossing, before the largest value, of a share of the rise.

    The rise is from the median over `EARLY` to the largest value after it.  Between two steps the
    crossing is interpolated in the logarithm of the step.
    """
    at, x = _from_early(steps, values)
    low = float(np.median(x[at <= EARLY[1]]))
    top = int(np.argmax(x))
    level = low + share * (x[top] - low)
    below = np.flatnonzero(x[:top] <= level)
    if not len(below):
        return float(at[0])
    k = int(below[-1])
    part = (level - x[k]) / (x[k + 1] - x[k])
    return float(at[k] * (at[k + 1] / at[k]) ** part)


def peak(steps: Sequence[float], values: Sequence[float]) -> float:
    """Return where the parabola, in log step, through the largest value and its neighbours is."""
    at, x = _from_early(steps, values)
    k = int(np.argmax(x))
    if k in (0, len(x) - 1):
        return float(at[k])
    a, b, _ = np.polyfit(np.log(at[k - 1 : k + 2]), x[k - 1 : k + 2], 2)
    return float(np.exp(-b / (2 * a)))


def steepest(steps: Sequence[float], values: Sequence[float], *, over: int = 3) -> float:
    """Return the middle of the stretch, `over` intervals long, in which the value rises most."""
    at, x = _from_early(steps, values)
    k = int(np.argmax((x[over:] - x[:-over]) / (at[over:] - at[:-over])))
    return float(at[k] + at[k + over]) / 2


def crossing(steps: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return the first step at which a value is at least a level, interpolated; NaN if none is."""
    at, x = np.asarray(steps, float), np.asarray(values, float)
    above = np.flatnonzero(x >= level)
    if not len(above):
        return float("nan")
    k = int(above[0])
    if k == 0:
        return float(at[0])
    return float(at[k - 1] + (level - x[k - 1]) / (x[k] - x[k - 1]) * (at[k] - at[k - 1]))


def _from_early(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values from the first of `EARLY` on."""
    at, x = np.asarray(steps, float), np.asarray(values, float)
    return at[at >= EARLY[0]], x[at >= EARLY[0]]
