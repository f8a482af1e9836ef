"""What influence says of shifted data, without retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import bif
from benchmarks.common import trust_figures
from benchmarks.shifts.setting import Setting, posed
from bif import Items
from bif.susceptibility import Shifts, group_shifts, predicted_change
from bif.susceptibility.trained import Trained

ORDERS = ("first", "second", "reweighted")
GAUSS_NEWTON = "Gauss-Newton"
NO_CHANGE = "no change"
_RESIDUAL = 0.02
"""Of the solver; an error of 2 % of a change is far below what an R² of .9 allows."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one method with one nbeta and gamma predicts.

    Attributes:
        method: Name of the method.
        nbeta: In train items.
        damping: gamma in nbeta.
        changes: Of the losses of all queries, `[G, Z, Q]`.
        figures: Of trust, and seconds.
        errors: Standard errors of `changes` by the draws, `[G, Z, Q]`; None without draws.
    """

    method: str
    nbeta: float
    damping: float
    changes: np.ndarray
    figures: dict[str, Any]
    errors: np.ndarray | None = None


def sampled(
    setting: Setting, model: nn.Module, inside: Items, outside: Items | None,
    shifted: Sequence[str], sizes: Sequence[float], posterior: tuple[float, float], seed: int,
) -> list[Prediction]:  # fmt: skip
    """Return the predictions of draws, to first and second order and re-weighted."""
    nbeta, damping = posterior
    scale = nbeta * len(inside)
    settings = bif.Settings(
        estimator="covariance", nbeta=scale, gamma=damping * scale, chains=setting.chains,
        draws=setting.draws, weight_decay=setting.weight_decay, seed=seed,
    )  # fmt: skip
    run = bif.attribute(posed(setting, model, inside, outside), settings)
    found = predicted_change(run, group_shifts(run, _members(run, shifted)), sizes)
    left = found["effective_draws"].sel(shift=list(shifted)).mean("shift").values
    figures = {
        **trust_figures(run), "seconds": float(run.summary["seconds"]),
        "draws": setting.chains * setting.draws, "effective_draws": left.tolist(),
    }  # fmt: skip
    return [
        Prediction(
            order, nbeta, damping, _ordered(found[order], shifted), figures,
            _ordered(found[f"{order}_error"], shifted),
        )
        for order in ORDERS
    ]  # fmt: skip


def solved(
    setting: Setting, model: nn.Module, inside: Items, outside: Items | None,
    shifted: Sequence[str], sizes: Sequence[float], damping: float,
) -> Prediction:  # fmt: skip
    """Return the linear prediction of Gauss-Newton influence, with the total weight preserved."""
    settings = bif.Settings(
        estimator="response", nbeta=float(len(inside)), gamma=damping * len(inside),
        weight_decay=setting.weight_decay, solver_residual=_RESIDUAL,
    )  # fmt: skip
    run = bif.attribute(posed(setting, model, inside, outside), settings)
    shifts = _of_solved(run, shifted, len(inside))
    influence = run.influence.dataset["influence"].values[0]  # [Q, N], of the summed loss
    directions = shifts.directions.numpy() @ influence.T  # nbeta is n, so this is the derivative
    steps = shifts.steps(torch.tensor(sizes, dtype=torch.float64)).numpy()
    changes = steps[:, :, None] * directions[:, None]
    figures = {"trusted": run.summary["trusted"], "failed_gates": run.failed_gates}
    return Prediction(GAUSS_NEWTON, 1.0, damping, changes, figures)


def _members(run: bif.Run, shifted: Sequence[str]) -> dict[str, list[int]]:
    found = run.influence.dataset["train_label"].values.astype(str)
    return {name: np.flatnonzero(found == name).tolist() for name in shifted}


def _of_solved(run: bif.Run, shifted: Sequence[str], count: int) -> Shifts:
    """Return the shifts of a run without draws; items after the first `count` have no weight."""
    ids = tuple(run.influence.dataset["train_id"].values.astype(str))
    places = torch.arange(len(ids))
    members = torch.zeros(len(shifted), len(ids), dtype=torch.float64)
    for row, some in zip(members, _members(run, shifted).values(), strict=True):
        row[some] = 1.0
    trained = Trained(ids, (places < count).double(), float(count), count, by_token=False)
    return Shifts(tuple(shifted), members, "preserved", trained)


def _ordered(values: Any, shifted: Sequence[str]) -> np.ndarray:
    """Return a prediction as `[G, Z, Q]`."""
    one = values.sel(shift=list(shifted)).isel(observable=0)
    return np.asarray(one.transpose("shift", "size", "query").values)
