"""Power laws through measured costs: exponents with their errors, and where two of them meet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class PowerLaw(NamedTuple):
    """`y = factor · x^exponent`.

    Attributes:
        factor: y at x = 1.
        exponent: Slope of log y over log x.
        error: Standard error of the exponent from the scatter; NaN with two points.
        lowest: Smallest x that was measured.
        highest: Largest x that was measured.
        points: Number of points.
    """

    factor: float
    exponent: float
    error: float
    lowest: float
    highest: float
    points: int

    def at(self, x: float) -> float:
        """y."""
        return self.factor * x**self.exponent


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms.

    Raises:
        ValueError: Fewer than two different x, or numbers that are not above 0.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape or len(np.unique(a)) < 2 or not (a > 0).all() or not (b > 0).all():
        raise ValueError(f"no power law goes through x = {list(x)} and y = {list(y)}.")
    a, b = np.log(a), np.log(b)
    spread = float(((a - a.mean()) ** 2).sum())
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
    level = float(b.mean() - slope * a.mean())
    left = b - level - slope * a
    free = len(a) - 2
    error = math.sqrt(float((left**2).sum()) / free / spread) if free else math.nan
    return PowerLaw(math.exp(level), slope, error, float(min(x)), float(max(x)), len(a))


def crossing(one: PowerLaw, other: PowerLaw) -> float:
    """The x where both give the same y; infinity for laws that are parallel, or nearly so."""
    apart = one.exponent - other.exponent
    if abs(apart) < 1e-9:
        return math.inf
    logarithm = math.log(other.factor / one.factor) / apart
    return math.exp(logarithm) if abs(logarithm) < 700 else math.inf


def fitted(
    rows: Sequence[Mapping[str, Any]], *, along: str, fixed: Sequence[str], cost: str = "seconds"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Power laws of every method's cost along one quantity, and where they cross.

    Args:
        rows: With `method`, `along`, `fixed` and `cost`; those without a cost play no part.
        along: What the cost depends on, such as "weights".
        fixed: What must be equal: the largest group of rows with the same values is taken.
        cost: What is fitted.

    Returns:
        One row a method, and one a pair of methods.
    """
    measured = [row for row in rows if row.get(cost)]
    groups: dict[tuple[Any, ...], set[Any]] = {}
    for row in measured:
        groups.setdefault(tuple(row.get(f) for f in fixed), set()).add(row.get(along))
    if not groups:
        return [], []
    at = max(groups, key=lambda key: len(groups[key]))
    own = [row for row in measured if tuple(row.get(f) for f in fixed) == at]
    laws: dict[str, PowerLaw] = {}
    for method in dict.fromkeys(str(row["method"]) for row in own):
        best: dict[float, float] = {}
        for row in own:
            if row["method"] == method:
                x = float(row[along])
                best[x] = min(float(row[cost]), best.get(x, math.inf))
        if len(best) > 1:
            laws[method] = power_law(list(best), list(best.values()))
    named = dict(zip(fixed, at, strict=True))
    exponents = [{"along": along, "method": m, **law._asdict(), **named} for m, law in laws.items()]
    return exponents, [_meeting(along, a, b, laws) for a, b in _pairs(list(laws))]


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def _meeting(along: str, a: str, b: str, laws: Mapping[str, PowerLaw]) -> dict[str, Any]:
    """Where two laws meet, and who is cheaper beyond."""
    one, other = laws[a], laws[b]
    x = crossing(one, other)
    low, high = max(one.lowest, other.lowest), min(one.highest, other.highest)
    return {
        "along": along,
        "method": a,
        "other": b,
        "crossing": x,
        "measured": low <= x <= high,
        "cheaper_below": a if one.exponent > other.exponent else b,
        "ratio_at_lowest": other.at(low) / one.at(low),
        "ratio_at_highest": other.at(high) / one.at(high),
    }
