"""Steering: the least re-weighting of the training data that moves an observable as intended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.problem.literals import require_literal
from bif.problem.problem import observable_position
from bif.results.group_sums import members_of, named_sources
from bif.runs.run import Run
from bif.susceptibility.expansion import Queries
from bif.susceptibility.reweighting import Movable, plan_weights
from bif.susceptibility.shifts import TotalWeight, Weights
from bif.susceptibility.slopes import Slopes
from bif.susceptibility.steering_prediction import (
    plan_to_second_order,
    predict_weights,
    train_texts,
)
from bif.susceptibility.trained import Trained

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal["clipped", "free"]
"""Whether weights stay at 0 or above, or may become negative."""
Order = Literal["first", "second"]
"""To which order the change is the one that was asked for."""


@dataclass(frozen=True, eq=False)
class Steering:
    """A re-weighting of the training data, and what it is predicted to do.

    Attributes:
        dataset: `change` and `weight` of every item (`train`); `predicted` and `second`, changes of
            every group of queries to first and second order with `…_error`, on
            (`observable`, `query`).
        asked: Change of the target that was asked for.
        intended: Change that the weights are made for: the nearest that can be reached.
        reachable: Least and largest change of the target with these weights, to first order.
        reliability: Share of the squared derivatives of the target that is no noise.
    """

    dataset: xr.Dataset
    asked: float
    intended: float
    reachable: tuple[float, float]
    reliability: float

    @property
    def weights(self) -> np.ndarray:
        """Weights of the items to retrain with, `rho + delta`, `[N]`."""
        return self.dataset["weight"].values

    @property
    def is_reached(self) -> bool:
        """Whether the change that was asked for can be reached."""
        return self.asked == self.intended

    @property
    def size(self) -> float:
        """Length of the change of the weights, `|delta|`."""
        return float(np.linalg.norm(self.dataset["change"].values))

    @property
    def share_moved(self) -> float:
        """Share of the total weight that changes hands, `½ Σ |delta| / Σ rho`."""
        delta, rho = self.dataset["change"].values, self.dataset["trained_weight"].values
        return float(np.abs(delta).sum() / (2 * rho.sum()))

    def __repr__(self) -> str:
        attrs = self.dataset.attrs
        far = "" if self.is_reached else f", the nearest to {self.asked:+.4g} that can be reached"
        value, half = attrs["predicted"], attrs["error_quantile"] * attrs["predicted_error"]
        spread = "" if np.isnan(half) else f" ± {half:.2g} (95 %)"
        return (
            f"Re-weighting of {len(self.weights)} train items: {attrs['target']} is to move by "
            f"{self.intended:+.4g}{far}; predicted to first order {value:+.4g}{spread}. "
            f"{self.share_moved:.1%} of the weight moves, |delta| = {self.size:.3g}."
        )


def steer(
    run: Run,
    target: str | Mapping[str, float],
    *,
    change: float,
    queries: Queries | None = None,
    observable: str | None = None,
    hold: Sequence[str] = (),
    tolerance: float = 0.0,
    groups: str | Sequence[str] | Mapping[str, Sequence[int]] | None = None,
    cost: Weights | None = None,
    weights: Kind = "clipped",
    order: Order = "first",
    total_weight: TotalWeight = "preserved",
    train_weights: Sequence[float] | Tensor | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> Steering:
    """Return the least re-weighting of the train items that moves a target by a chosen amount.

    Minimises `Σ_i cost_i·delta_i²` subject to `A_target·delta = change`, `|A_hold·delta| ≤
    tolerance`, `Σ delta = 0` (total weight "preserved") and `rho + delta ≥ 0` (weights "clipped"),
    with the derivatives `A = dE[phi]/d rho`: the first order of the response, solved backwards.

    **Noise.** Items are chosen where the derivatives are large, so that A itself would promise too
    much.  With traces, each half of the chains plans with its own derivatives, shrunk by their
    noise (`reweighting.shrink`); delta is the mean of the two plans, and `predicted` the mean of
    what each half says of the other's plan, which no plan was fitted to.  A solved run has no such
    noise, and of a run without traces it is not known: `predicted` is then the fitted change.

    **A prediction, unverified**: of the posterior around the trained weights, at its nbeta and
    gamma.

    Args:
        run: Sampled or solved.
        target: A group of queries, or factors of several: a difference of two, say.
        change: Of the target's mean observable.
        queries: Groups of queries, whose means are the observables; every query by default.  From
            traces it takes `num_groups·Q·N` numbers of memory.
        observable: Of target and hold; the first one by default.
        hold: Groups of queries whose means stay.
        tolerance: How far they may move, to first order.
        groups: Groups of train items that share one change, as in `group_shifts`; other items keep
            their weights.  Every item on its own by default.
        cost: Of the squared change of each item; 1 by default, and infinite for items that keep
            their weights.
        weights: "clipped" keeps them at 0 or above, "free" does not.
        order: "second" plans for as much as makes the change to second order, which needs traces.
        total_weight: "preserved" keeps their sum; "added" does not.
        train_weights: As the problem's, where it has any.
        num_groups: Groups of chains, at least four.

    Raises:
        KeyError: No such group of queries, observable or item.
        ValueError: A change of 0, or none that is finite; an empty target; no item that may move;
            a target that no change of the weights moves; derivatives that are noise.

    Source: the inverse problem is the patterning of arXiv 2601.13548.
    """
    require_literal("weights", weights, Kind)
    require_literal("order", order, Order)
    require_literal("total_weight", total_weight, TotalWeight)
    _refuse_odd_numbers(change, tolerance)
    trained = Trained.of_scores(run, train_weights)
    if trained.by_token and total_weight == "preserved":
        raise ValueError(
            "total_weight='preserved' is of items, and the run's columns are tokens: use "
            "total_weight='added', or a run of items."
        )
    slopes = Slopes.of(run, queries, num_groups)
    rows = _rows(slopes, target, hold, observable)
    members = None
    if groups is not None:
        if not isinstance(groups, Mapping):
            groups = named_sources(run.influence.dataset, groups)
        members = members_of(groups, len(trained.ids))
    movable = Movable.of(
        trained, members, cost, is_clipped=weights == "clipped",
        is_preserved=total_weight == "preserved",
    )  # fmt: skip
    plan = (
        plan_weights(slopes, rows, change, movable, tolerance) if order == "first"
        else plan_to_second_order(run, slopes, rows, change, movable, tolerance, queries=queries,
                                  num_groups=num_groups)
    )  # fmt: skip
    change_of_target, error = plan.predict(rows[:1])
    dataset = predict_weights(run, slopes, plan, queries, num_groups).assign(
        change=("train", plan.delta),
        weight=("train", trained.weights.numpy() + plan.delta),
        trained_weight=("train", trained.weights.numpy()),
    )
    dataset = dataset.assign_coords(train_texts(run)).assign_attrs(
        target=_in_words(target, slopes, observable), hold=list(hold), weights=weights,
        order=order, total_weight=total_weight, asked=float(change), intended=plan.intended,
        predicted=float(change_of_target[0]), predicted_error=float(error[0]),
    )  # fmt: skip
    return Steering(dataset, float(change), plan.intended, plan.reachable, plan.reliability)


def _refuse_odd_numbers(change: float, tolerance: float) -> None:
    if not np.isfinite(change):
        raise ValueError(f"change is {change}: expected a finite number, such as -0.1.")
    if change == 0:
        raise ValueError(
            "change is 0, which the weights as they are make: ask for another, such as -0.1."
        )
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}: expected a finite number of at least 0.")


def _rows(
    slopes: Slopes, target: str | Mapping[str, float], hold: Sequence[str], observable: str | None
) -> np.ndarray:
    """Return target and held groups as combinations of the observables, `[P, R]`."""
    factors = {target: 1.0} if isinstance(target, str) else dict(target)
    if not any(factors.values()):
        raise ValueError("the target is empty: name a group of queries, or factors of some.")
    if isinstance(hold, str):
        raise TypeError(f"hold is the text {hold!r}: expected names of groups of queries.")
    bad = [name for name, factor in factors.items() if not np.isfinite(factor)]
    if bad:
        raise ValueError(f"the target's factor of {bad[0]!r} is not finite: give a number.")
    also = [name for name in hold if factors.get(name)]
    if also:
        raise ValueError(f"{also[0]!r} is to move and to be held: leave it out of one of the two.")
    first = observable_position(list(slopes.observables), observable) * len(slopes.queries)
    places = {name: first + place for place, name in enumerate(slopes.queries)}
    rows = np.zeros((1 + len(hold), len(slopes.queries) * len(slopes.observables)))
    for row, named in zip(rows, [factors, *({name: 1.0} for name in hold)], strict=True):
        for name, factor in named.items():
            if name not in places:
                raise KeyError(
                    f"there are no queries {name!r}: there are {', '.join(slopes.queries[:8])}"
                    f"{' and others' if len(slopes.queries) > 8 else ''}."
                )
            row[places[name]] = factor
    return rows


def _in_words(target: str | Mapping[str, float], slopes: Slopes, observable: str | None) -> str:
    name = slopes.observables[observable_position(list(slopes.observables), observable)]
    if isinstance(target, str):
        return f"{name} of {target}"
    return f"{name} of " + " ".join(f"{factor:+g}·{one}" for one, factor in target.items())
