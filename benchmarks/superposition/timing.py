"""When a curve of a training has gone a part of its way, and when it is largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RISEN, HALF = 0.1, 0.5
"""Parts of its way at which a curve counts as risen, and a stage as passed."""


def step_of_part(steps: Sequence[int], values: np.ndarray, part: float) -> float:
    """Return the step from which on a curve `[K]` has gone a part of its way for good.

    The way is from its first to its last value; between two checkpoints it is a straight line.
    """
    return step_above(steps, (values - values[0]) / (values[-1] - values[0]), part)


def step_above(steps: Sequence[int], values: np.ndarray, level: float) -> float:
    """Return the step from which on a curve `[K]` is above a level, at most the last step."""
    (below,) = np.nonzero(values < level)
    if len(below) == 0:
        return float(steps[0])
    k = int(below[-1])
    if k == len(values) - 1:
        return float(steps[-1])
    between = (level - values[k]) / (values[k + 1] - values[k])
    return float(steps[k] + between * (steps[k + 1] - steps[k]))


def peak(steps: Sequence[int], values: np.ndarray) -> tuple[int, float]:
    """Return the checkpoint at which a curve `[K]` is largest, and the step of its peak.

    The step is that of the parabola through the three checkpoints around it.
    """
    top = int(np.argmax(values))
    if top in (0, len(values) - 1):
        return top, float(steps[top])
    around = slice(top - 1, top + 2)
    bend, slope, _ = np.polyfit(np.subtract(steps[around], steps[top]), values[around], 2)
    shift = -slope / 2 / bend if bend < 0 else 0.0
    return top, float(np.clip(steps[top] + shift, steps[top - 1], steps[top + 1]))


def rise_and_peak(steps: Sequence[int], values: np.ndarray) -> tuple[float, float]:
    """Return when a curve `[K]` has risen on the way to its peak, and the step of the peak."""
    top, at = peak(steps, values)
    if top == 0:
        return float(steps[0]), at
    return step_of_part(steps[: top + 1], values[: top + 1], RISEN), at
