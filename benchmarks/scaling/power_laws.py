"""Power laws through measured costs: exponents with their errors, and where two of them meet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import linregress

COST = "seconds"


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
        """Return y at x."""
        return self.factor * x**self.exponent


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit a power law by least squares in logarithms, through two different x at least."""
    line: Any = linregress(np.log(x), np.log(y))
    error = float(line.stderr) if len(x) > 2 else math.nan
    return PowerLaw(math.exp(line.intercept), float(line.slope), error, min(x), max(x), len(x))


def crossing(one: PowerLaw, other: PowerLaw) -> float:
    """Return the x where both give the same y; infinity for laws that are nearly parallel."""
    apart = one.exponent - other.exponent
    if abs(apart) < 1e-9:
        return math.inf
    logarithm = math.log(other.factor / one.factor) / apart
    return math.exp(logarithm) if abs(logarithm) < 700 else math.inf


def fit_laws(
    rows: Sequence[Mapping[str, Any]], *, along: str, fixed: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fit every method's seconds along one quantity, and find where the laws cross.

    Args:
        rows: Rows with `method`, `along`, `fixed` and seconds; those without seconds are left out.
        along: What the cost depends on, such as "weights".
        fixed: What must be equal: the values that most different `along` have are taken.

    Returns:
        One row a method, and one a pair of methods.
    """
    measured = [row for row in rows if row.get(COST)]
    sizes = Counter(at for at, _ in {(_at(row, fixed), row[along]) for row in measured})
    if not sizes:
        return [], []
    at = max(dict.fromkeys(_at(row, fixed) for row in measured), key=lambda key: sizes[key])
    laws: dict[str, PowerLaw] = {}
    for method in dict.fromkeys(str(row["method"]) for row in measured if _at(row, fixed) == at):
        own = [row for row in measured if _at(row, fixed) == at and row["method"] == method]
        # Written from the slowest on: the fastest of each size stays.
        best = {float(row[along]): row[COST] for row in sorted(own, key=lambda row: -row[COST])}
        if len(best) > 1:
            laws[method] = power_law(list(best), list(best.values()))
    named = dict(zip(fixed, at, strict=True))
    exponents = [{"along": along, "method": m, **law._asdict(), **named} for m, law in laws.items()]
    return exponents, [_crossing_row(along, a, b, laws) for a, b in combinations(laws, 2)]


def _at(row: Mapping[str, Any], fixed: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in fixed)


def _crossing_row(along: str, a: str, b: str, laws: Mapping[str, PowerLaw]) -> dict[str, Any]:
    """Return where two laws meet, and who is cheaper beyond."""
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
