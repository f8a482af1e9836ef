"""Plans of a re-weighting from noisy derivatives: who may move, at what cost, and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bif.susceptibility.least_change import Constraints
from bif.susceptibility.shifts import Weights, weights_of_columns
from bif.susceptibility.slopes import Slopes
from bif.susceptibility.trained import Trained

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_NOTHING = 1e-12
"""Share of the largest entry below which an eigenvalue is rounding."""


@dataclass(frozen=True, eq=False)
class Movable:
    """The unknowns: items, or groups of items that share one change of their weights.

    Attributes:
        spread: From changes of the K unknowns to those of the items, `[N, K]` of 0 and 1.
        cost: Of the squared change of each, summed over its items, `[K]`.
        lower: Least change of each, `[K]`.
        is_preserved: Whether the changes of the items sum to 0.
    """

    spread: csr_matrix
    cost: np.ndarray
    lower: np.ndarray
    is_preserved: bool

    @classmethod
    def of(
        cls,
        trained: Trained,
        members: Mapping[str, Sequence[int]] | None,
        cost: Weights | None,
        *,
        is_clipped: bool,
        is_preserved: bool,
    ) -> Movable:
        """Return what may move.

        Args:
            trained: Ids and weights of the items.
            members: Groups of items by positions; every item on its own by default.
            cost: Of each item, infinite where it keeps its weight.
            is_clipped: Whether weights stay at 0 or above.
            is_preserved: Whether their sum stays.

        Raises:
            ValueError: Groups that overlap or are empty; costs that are not positive; nothing that
                may move.
        """
        from scipy.sparse import csr_matrix

        count = len(trained.ids)
        costs = _costs(cost, trained)
        groups = [[i] for i in range(count)] if members is None else [*members.values()]
        _refuse_groups(members or {}, count)
        groups = [list(g) for g in groups if np.isfinite(costs[list(g)]).all()]
        if len(groups) < 1 + is_preserved:
            raise ValueError(
                f"{len(groups)} of the items or groups may move, and at least {1 + is_preserved} "
                f"{'have to, as their total weight stays' if is_preserved else 'has to'}: give "
                "fewer of them an infinite cost."
            )
        flat = np.concatenate([np.asarray(g, dtype=int) for g in groups])
        column = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
        spread = csr_matrix((np.ones(len(flat)), (flat, column)), shape=(count, len(groups)))
        lower = np.full(len(groups), -np.inf)
        if is_clipped:
            np.maximum.at(lower, column, -trained.weights.numpy()[flat])
        finite = np.where(np.isfinite(costs), costs, 0.0)
        return cls(spread, np.asarray(finite @ spread), lower, is_preserved)


@dataclass(frozen=True, eq=False)
class Plan:
    """A change of the weights, and what is expected of it.

    Attributes:
        delta: `[N]`, the mean of the plans of both halves of the chains.
        intended: Change of the target that it was made for.
        reachable: Least and largest change of the target.
        reliability: Share of the target's squared derivatives that is no noise.
        judges: Derivatives with the plan that they judge: of each half that of the other.
    """

    delta: np.ndarray
    intended: float
    reachable: tuple[float, float]
    reliability: float
    judges: Sequence[tuple[Slopes, np.ndarray]]

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected change of combinations of observables and its standard error.

        Args:
            rows: `[P, R]`.
        """
        found = [slopes.change(delta, rows) for slopes, delta in self.judges]
        change, error = (np.stack(x) for x in zip(*found, strict=True))
        return change.mean(axis=0), np.sqrt((error**2).sum(axis=0)) / len(error)


def plan_weights(
    slopes: Slopes, rows: np.ndarray, change: float, movable: Movable, tolerance: float
) -> Plan:
    """Return the least change of the weights that moves `rows[0]` and holds the others.

    Args:
        slopes: Derivatives of the R observables.
        rows: Target and held combinations of them, `[P, R]`.
        change: Of the target; the nearest that can be reached takes its place.
        movable: What may move.
        tolerance: How far held combinations may move.

    Raises:
        ValueError: The target cannot be moved, or its derivatives are noise.
    """
    parts = slopes.halves() if slopes.is_sampled else (slopes,)
    shrunk = [shrink(part, rows, movable) for part in parts]
    reliability = shrink(slopes, rows, movable)[1]
    _refuse_noise(min(reliability, *(share for _, share in shrunk)))
    constraints = [_constraints(found, movable, tolerance) for found, _ in shrunk]
    reaches = [each.reach(0) for each in constraints]
    low, high = max(r[0] for r in reaches), min(r[1] for r in reaches)
    intended = min(max(change, low), high)
    if intended == 0 or not np.isfinite(intended):
        held = ", with the others held" if len(rows) > 1 else ""
        raise ValueError(
            f"no change of the weights moves the target {'down' if change < 0 else 'up'}{held}: "
            "hold less, give a tolerance, let more items move, or take free weights."
        )
    plans = []
    for each, reach in zip(constraints, reaches, strict=True):
        at_end = reach[2] if intended == reach[0] else reach[3] if intended == reach[1] else None
        goal = np.zeros(len(each.rows))
        goal[0] = intended
        plans.append(movable.spread @ (each.least(goal) if at_end is None else at_end))
    delta = np.mean(plans, axis=0)
    return Plan(
        delta, float(intended), (float(low), float(high)), reliability,
        list(zip(parts, reversed(plans), strict=True)),
    )  # fmt: skip


def shrink(slopes: Slopes, rows: np.ndarray, movable: Movable) -> tuple[np.ndarray, float]:
    """Return derivatives of combinations of observables less their noise, and the share kept.

    The best linear prediction of the true derivatives from those at hand, over the unknowns:
    `A ← (1 - V K⁻¹) A` with `K = A C⁻¹ Aᵀ`, and V the part of K that is noise, by the spread of the
    groups of chains.  A least change for A promises `A·delta`, of which the share `V K⁻¹` is the
    noise that it was fitted to.

    Args:
        slopes: Derivatives of the R observables.
        rows: Combinations of them, `[P, R]`.
        movable: What may move, at which cost C.

    Returns:
        `[P, K]`, and the share of the first row's squared length that is no noise.
    """
    root = np.sqrt(movable.cost)
    parts = np.stack([(rows @ part) @ movable.spread for part in slopes.parts]) / root
    if movable.is_preserved:  # what all weights do alike, they cannot do
        alike = np.asarray(movable.spread.sum(axis=0)).ravel() / root
        parts = parts - (parts @ alike / (alike @ alike))[..., None] * alike
    mean = np.tensordot(slopes.share, parts, axes=1)
    if not slopes.is_sampled:
        return mean * root, 1.0
    away = parts - mean
    noise = np.einsum("g,gpk,gqk->pq", slopes.share, away, away) / (len(parts) - 1)
    gram = mean @ mean.T
    values, vectors = np.linalg.eigh(gram)
    kept = values > _NOTHING * values.max(initial=0.0)
    half = vectors[:, kept] * np.sqrt(values[kept])
    inverse = vectors[:, kept] / np.sqrt(values[kept])
    gain, turned = np.linalg.eigh(np.eye(int(kept.sum())) - inverse.T @ noise @ inverse)
    middle = (turned * np.clip(gain, 0.0, 1.0)) @ turned.T
    share = 1 - noise[0, 0] / gram[0, 0] if gram[0, 0] > 0 else 0.0
    return (half @ middle @ inverse.T) @ mean * root, float(share)


def _constraints(rows: np.ndarray, movable: Movable, tolerance: float) -> Constraints:
    slack = np.full(len(rows), tolerance)
    slack[0] = 0.0
    if movable.is_preserved:
        count = np.asarray(movable.spread.sum(axis=0)).ravel()
        rows, slack = np.concatenate([rows, count[None]]), np.append(slack, 0.0)
    return Constraints(rows, slack, movable.cost, movable.lower)


def _refuse_noise(share: float) -> None:
    if share <= 0:
        raise ValueError(
            "the derivatives of the target are noise: their spread over groups of chains is as "
            "large as they are, so that no re-weighting is known to move it. Take more draws, a "
            "mean over more queries, or groups of items."
        )


def _costs(given: Weights | None, trained: Trained) -> np.ndarray:
    """Return the cost of every item, `[N]`."""
    if given is None:
        return np.ones(len(trained.ids))
    if isinstance(given, Mapping):
        given = {**dict.fromkeys(trained.ids, 1.0), **{str(n): c for n, c in given.items()}}
    costs = weights_of_columns("cost", given, trained).numpy()
    if np.isnan(costs).any() or (costs <= 0).any():
        raise ValueError(
            f"cost has {float(np.nanmin(costs)):g} or NaN: expected numbers above 0, infinite for "
            "items that keep their weights."
        )
    return costs


def _refuse_groups(members: Mapping[str, Sequence[int]], count: int) -> None:
    """Raise for groups of items that are empty, overlap or are not of the run."""
    seen: dict[int, str] = {}
    for name, places in members.items():
        if not len(places):
            raise ValueError(f"the group of items {name!r} is empty: leave it out.")
        for place in places:
            if not 0 <= place < count:
                raise ValueError(
                    f"group {name!r} has position {place}, and there are {count} train columns: "
                    f"give positions from 0 to {count - 1}."
                )
            if place in seen:
                raise ValueError(
                    f"item {place} is in the groups {seen[place]!r} and {name!r}: give it to one."
                )
            seen[int(place)] = name
