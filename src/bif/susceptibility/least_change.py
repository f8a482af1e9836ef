"""The least change of weights that meets linear constraints: a quadratic programme, and its reach.

Arrays only.  The unknowns are many (items) and the constraints few (queries), so that it is solved
by its dual, which has one unknown a constraint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DEPENDENT = 1e-9
"""Share of a row's length beside the span of others below which it lies in their span."""
_NEWTON_STEPS = 100
"""Steps from one set of bounds that bind to the next; it takes a handful."""
_RESIDUAL = 1e-9
"""How far constraints may be missed, in units of the largest intended change."""


@dataclass(frozen=True, eq=False)
class Constraints:
    """What a change x `[K]` has to do: `|rows x - change| ≤ slack` and `x ≥ lower`.

    Attributes:
        rows: `[P, K]`.
        slack: 0 for equalities, `[P]`.
        cost: Of the squared change of each unknown, `[K]`, above 0.
        lower: `[K]`, at most 0; `-inf` for none.
    """

    rows: np.ndarray
    slack: np.ndarray
    cost: np.ndarray
    lower: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row where a change is measured by its cost, `[P]`."""
        return np.sqrt((self.rows**2 / self.cost).sum(axis=1))

    def least(self, change: np.ndarray) -> np.ndarray:
        """Return the x that minimises `½ Σ cost_k x_k²`, `[K]`.

        `x = max(lower, rowsᵀy / cost)` with multipliers y that are found by L-BFGS-B on the dual,
        and made exact by Newton steps between sets of bounds that bind.

        Args:
            change: `[P]`, within what can be reached.

        Raises:
            RuntimeError: No multipliers meet the constraints.
        """
        scale = np.where(self.lengths > 0, self.lengths, 1.0)
        rows, goal, slack = self.rows / scale[:, None], change / scale, self.slack / scale
        # |r x - g| ≤ s is r x ≥ g - s and -r x ≥ -g - s, each with a multiplier of at least 0.
        wide = slack > 0
        rows = np.concatenate([rows[~wide], rows[wide], -rows[wide]])
        goal = np.concatenate([goal[~wide], (goal - slack)[wide], (-goal - slack)[wide]])
        is_equal = np.arange(len(rows)) < (~wide).sum()
        unit = np.abs(goal).max() or 1.0
        dual = _Dual(rows, goal / unit, self.cost, self.lower / unit, is_equal)
        return np.maximum(unit * dual.solve(), self.lower)

    def reach(self, row: int) -> tuple[float, float, np.ndarray, np.ndarray]:
        """Return the least and the largest `rows[row] x`, the others at 0, and an x of each.

        Infinite where nothing bounds it, with an x of NaN.
        """
        others = np.arange(len(self.rows)) != row
        held, slack = self.rows[others], self.slack[others]
        still = np.zeros(self.rows.shape[1])
        if not slack.any() and self._depends(row, held):
            return 0.0, 0.0, still, still
        low, at_low = self._extreme(row, held, slack, sign=1.0)
        high, at_high = self._extreme(row, held, slack, sign=-1.0)
        return low, high, at_low, at_high

    def _depends(self, row: int, held: np.ndarray) -> bool:
        """Whether a row lies in the span of others, as changes are measured."""
        root = np.sqrt(self.cost)
        x, others = self.rows[row] / root, held / root
        length = np.linalg.norm(x)
        if length == 0:
            return True
        if len(others):
            others = others / np.maximum(np.linalg.norm(others, axis=1), 1e-300)[:, None]
            x = x - others.T @ np.linalg.lstsq(others.T, x, rcond=None)[0]
        return bool(np.linalg.norm(x) <= _DEPENDENT * length)

    def _extreme(
        self, row: int, held: np.ndarray, slack: np.ndarray, *, sign: float
    ) -> tuple[float, np.ndarray]:
        from scipy.optimize import linprog

        unit = np.maximum(np.abs(self.rows).max(axis=1), 1e-300)  # HiGHS' tolerances are absolute
        aim, others = self.rows[row] / unit[row], np.arange(len(self.rows)) != row
        held, slack = held / unit[others, None], slack / unit[others]
        wide = slack > 0
        found = linprog(
            sign * aim,
            A_eq=held[~wide], b_eq=np.zeros((~wide).sum()),
            A_ub=np.concatenate([held[wide], -held[wide]]), b_ub=np.tile(slack[wide], 2),
            bounds=np.stack([self.lower, np.full_like(self.lower, np.inf)], axis=1),
            method="highs",
        )  # fmt: skip
        if found.x is None:  # 0 meets all constraints, so that it is without bound
            return -sign * np.inf, np.full(len(aim), np.nan)
        return float(self.rows[row] @ found.x), found.x


@dataclass(frozen=True, eq=False)
class _Dual:
    """`rows x = goal` where `is_equal`, else `≥`; multipliers y of the others are at least 0."""

    rows: np.ndarray
    goal: np.ndarray
    cost: np.ndarray
    lower: np.ndarray
    is_equal: np.ndarray

    def solve(self) -> np.ndarray:
        from scipy.optimize import minimize

        bounds = [(None if equal else 0.0, None) for equal in self.is_equal]
        y = minimize(
            self._value, np.zeros(len(self.rows)), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 10_000, "maxfun": 50_000, "ftol": 1e-15, "gtol": 1e-10},
        ).x  # fmt: skip
        best, missed = y, self._missed(y)
        for _ in range(_NEWTON_STEPS):
            before, y = y, self._newton(y)
            if self._missed(y) < missed:
                best, missed = y, self._missed(y)
            if np.array_equal(before, y) or missed < 1e-14:
                break
        if missed > _RESIDUAL:
            raise RuntimeError(
                f"no least change of the weights was found: constraints are missed by {missed:.1g} "
                "of the intended change. Ask for a smaller change, or hold fewer queries."
            )
        return self._change(best)

    def _change(self, y: np.ndarray) -> np.ndarray:
        return np.maximum(self.lower, self.rows.T @ y / self.cost)

    def _value(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the dual's value, to be minimised, and its gradient."""
        pull, x = self.rows.T @ y, self._change(y)
        return float(pull @ x - 0.5 * (self.cost @ x**2) - y @ self.goal), self.rows @ x - self.goal

    def _missed(self, y: np.ndarray) -> float:
        """Return by how much the constraints are missed, or multipliers of slack ones not 0."""
        away = self.rows @ self._change(y) - self.goal
        return float(np.abs(np.where(self.is_equal, away, np.minimum(away, y))).max(initial=0.0))

    def _newton(self, y: np.ndarray) -> np.ndarray:
        """Return the multipliers where the same bounds bind."""
        free = self.rows.T @ y > self.cost * self.lower
        binding = self.is_equal | (y > 0)
        part = self.rows[binding]
        at_bound = part[:, ~free] @ self.lower[~free]
        gram = (part[:, free] / self.cost[free]) @ part[:, free].T
        found = np.zeros_like(y)
        found[binding] = np.linalg.lstsq(gram, self.goal[binding] - at_bound, rcond=None)[0]
        return np.where(self.is_equal, found, np.maximum(found, 0.0))
