"""Which train items of a run may be mislabelled, duplicated or out of place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.suspects import plain_suspects
from bif.results.suspects import Suspects, listed_suspects
from bif.runs.loss_kernel import loss_kernel
from bif.runs.run import Run

if TYPE_CHECKING:
    import xarray as xr

_TOLERANCE = 0.01
"""Largest gap of duplicates' losses, by their standard deviation."""


def suspects_of(run: Run, k: int) -> Suspects:
    """Return the most suspicious train items; see `Run.suspects`."""
    scores = run.influence.by_item("train")
    if scores is not run.influence and scores.traces is not None:
        run = replace(run, influence=scores, traces=scores.traces)
    count = int(scores.dataset.attrs["num_train"])
    names = scores.dataset[["train_id"]].isel(train=slice(count))
    if "train_label" in scores.dataset.coords:
        names = names.assign_coords(train_label=scores.dataset["train_label"][:count])
    if run.summary.solved or run.manifest.keep == "sums" or not run.traces.blocks:
        found, left_out = _without_draws(scores.dataset, count)
    else:
        found, left_out = _by_draws(run, count), ""
    values = {name: ("train", value) for name, value in found.items()}
    return listed_suspects(names.assign(values), k, left_out=left_out)


def _by_draws(run: Run, count: int) -> dict[str, np.ndarray]:
    found = plain_suspects(loss_kernel(run).of_items(range(count)), tolerance=_TOLERANCE)
    scores = {
        "loss": found["mean_loss"],
        "isolation": found["isolation"],
        "twin": np.where(found["is_duplicate"], found["twin"], -1),
        "loss_gap": found["loss_gap"],
    }
    if "moves_against" in found:
        scores["likely_label"] = found["moves_against"]
    return scores


def _without_draws(dataset: xr.Dataset, count: int) -> tuple[dict[str, np.ndarray], str]:
    """Return what losses at w*, or their means, and scores on the queries tell."""
    name = "train_center_loss" if "train_center_loss" in dataset else "train_mean_loss"
    found = {"loss": dataset[name].values[:count].astype(float)}
    why = ("Items that are out of place, and classes of wrong labels, take the draws of a run "
           "with Settings(estimator='covariance') and keep='traces'.")  # fmt: skip
    if "influence" in dataset and "rank" not in dataset.dims:
        columns = dataset["influence"].values.reshape(-1, dataset.sizes["train"]).T[:count]
        found |= _equal_columns(columns, found["loss"])
    return found, why


def _equal_columns(columns: np.ndarray, loss: np.ndarray) -> dict[str, np.ndarray]:
    """Return each item's twin, another whose loss and scores on all queries are as its own.

    Up to 1 % of their size, which is rounding where passes hold other items.

    Args:
        columns: Scores `[N, A·Q]`.
        loss: `[N]`.
    """
    twin, gap = np.full(len(loss), -1), np.full(len(loss), np.nan)
    order = np.argsort(loss, kind="stable")  # equal items are neighbours
    for one, other in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        size = np.linalg.norm(columns[one])
        far = np.linalg.norm(columns[one] - columns[other])
        near = abs(loss[one] - loss[other]) <= _TOLERANCE * abs(loss[one])
        if near and 0 < size and far <= _TOLERANCE * size:
            twin[one], gap[one] = other, far / size
    return {"twin": twin, "loss_gap": gap}
