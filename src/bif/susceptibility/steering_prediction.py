"""What a re-weighting is predicted to do: to first order, and to second from the same draws."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bif.estimate.cumulants import mean_of_groups
from bif.estimate.intervals import t_quantile
from bif.runs.run import Run
from bif.susceptibility.expansion import Queries, chain_groups_of, means_of_queries
from bif.susceptibility.reweighting import Movable, Plan, plan_weights
from bif.susceptibility.slopes import Slopes

if TYPE_CHECKING:
    import xarray as xr

_ROUNDS = 12
"""Plans until the second order is met; clipped weights take more than one."""
_CLOSE = 1e-3
"""Share of the change by which the second order may be missed."""


def plan_to_second_order(
    run: Run,
    slopes: Slopes,
    rows: np.ndarray,
    change: float,
    movable: Movable,
    tolerance: float,
    *,
    queries: Queries | None,
    num_groups: int,
) -> Plan:
    """Return the plan whose second-order prediction is the change, along plans of first order.

    With `first·s + bent·s²` of a plan that is scaled by s, the next plan is for as much as solves
    it, or for its extremum.  Of all plans that is kept whose second order comes nearest, which is
    what is then intended.

    Args: as `reweighting.plan_weights`, and
        run: With the traces of its items.
        queries: Groups of queries.
        num_groups: Groups of chains.

    Raises:
        ValueError: The run has no traces, on which the second order rests; as `plan_weights`.
    """
    if not slopes.is_sampled:
        raise ValueError(
            "order='second' needs the traces of all items, and the run has none: attribute with "
            "Settings(estimator='covariance') and keep='traces', or take order='first'."
        )
    goal, found = change, []
    for _ in range(_ROUNDS):
        plan = plan_weights(slopes, rows, goal, movable, tolerance)
        first = float(plan.predict(rows[:1])[0][0])
        bent = float(rows[0] @ _bend(run, slopes, plan, queries, num_groups)[0])
        found.append((abs(first + bent - change), first + bent, plan))
        factor = _factor(first, bent, change)
        if abs(factor - 1) < _CLOSE or plan.intended != goal:
            break
        goal *= factor
    missed, second, plan = min(found, key=lambda one: one[0])
    is_met = missed <= 2 * _CLOSE * abs(change)
    return replace(plan, intended=change if is_met else second)


def _factor(first: float, bent: float, change: float) -> float:
    """Return the least s with `first·s + bent·s² = change`, or that of the extremum."""
    if first * change <= 0:
        return 1.0
    under = first**2 + 4 * bent * change
    if under < 0:
        return -first / (2 * bent)
    return float(2 * change / (first + np.sign(first) * under**0.5))


def predict_weights(
    run: Run, slopes: Slopes, plan: Plan, queries: Queries | None, num_groups: int
) -> xr.Dataset:
    """Return what the weights are predicted to do to every observable."""
    import xarray as xr

    first, error = plan.predict(np.eye(slopes.parts.shape[1]))
    second = second_error = np.full_like(first, np.nan)
    draws = np.nan
    if slopes.is_sampled:
        bent, spread, draws = _bend(run, slopes, plan, queries, num_groups)
        second, second_error = first + bent, np.hypot(error, spread)
    shape = (len(slopes.observables), len(slopes.queries))
    values = {"predicted": first, "predicted_error": error, "second": second,
              "second_error": second_error}  # fmt: skip
    return xr.Dataset(
        {name: (("observable", "query"), x.reshape(shape)) for name, x in values.items()},
        coords={"observable": list(slopes.observables), "query": list(slopes.queries)},
        attrs={
            "nbeta": float(run.influence.dataset.attrs["nbeta"]),
            "num_train": int(run.influence.dataset.attrs["num_train"]),
            "trusted": int(bool(run.summary.trusted)),
            "error_quantile": t_quantile(len(slopes.parts)) if slopes.is_sampled else 1.0,
            "estimator": "covariance" if slopes.bound is None else "response",
            "cross_fitted": int(slopes.is_sampled), "effective_draws": draws,
        },
    )  # fmt: skip


def _bend(
    run: Run, slopes: Slopes, plan: Plan, queries: Queries | None, num_groups: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return what the second order adds to every observable, its error, and effective draws.

    `½ (nbeta/n)²·κ₃(phi, Δ, Δ)` with `Δ = Σ_i delta_i l_i`.
    """
    attrs = run.influence.dataset.attrs
    scale = float(attrs["nbeta"]) / int(attrs["num_train"])
    if queries is None:
        queries = {name: [place] for place, name in enumerate(slopes.queries)}
    each = torch.eye(len(slopes.observables), dtype=torch.float64)
    rows = torch.kron(each, means_of_queries(run, queries))
    delta = torch.from_numpy(plan.delta)[None]
    bent, draws, effective = [], [], 0.0
    for group in chain_groups_of(run.traces, rows, delta, num_groups):
        bent.append(0.5 * scale**2 * group.cumulants.third[:, 0])
        draws.append(group.cumulants.draws)
        p = torch.softmax(-scale * group.columns[:, 0], dim=0)
        effective += float(1 / p.square().sum())
    mean, error = mean_of_groups(bent, draws)
    return mean.numpy(), error.numpy(), effective


def train_texts(run: Run) -> dict[str, tuple[str, np.ndarray]]:
    """Return ids and texts of the train columns."""
    dataset = run.influence.dataset
    return {
        str(name): ("train", dataset[name].values)
        for name in dataset.coords
        if dataset[name].dims == ("train",) and name != "train"
    }
