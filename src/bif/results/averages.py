"""Average the scores of several trained models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.intervals import t_quantile
from bif.results.influence import Influence

if TYPE_CHECKING:
    import xarray as xr

_AVERAGED = ("influence", "derivative", "correlation", "linear", "self_influence",
             "train_mean_loss", "train_center_loss", "query_mean", "query_center")  # fmt: skip


def average(scores: Sequence[Influence]) -> Influence:
    """Return the mean over several trained models of their scores of the same items and queries.

    What one network learned by chance goes out, and what such networks have in common stays; a
    network that is retrained from scratch is another one, too.  Errors are those of the mean over
    models, `std over models / sqrt(K)`, and so hold the noise of each run as well.

    Args:
        scores: `run.influence` of K runs, at least 2, one a model.

    Returns:
        Scores, with `attrs["num_models"]`; trusted if every run is.

    Raises:
        ValueError: Fewer than two; other items, queries, observables or a run made with `top`.
    """
    if len(scores) < 2:
        raise ValueError(f"an average takes the scores of two models or more, got {len(scores)}.")
    datasets = [one.dataset for one in scores]
    first = datasets[0]
    for number, other in enumerate(datasets):
        _refuse_other(first, other, number)
    names = [n for n in _AVERAGED if all(n in d for d in datasets)]
    mean = {n: (first[n].dims, np.mean([d[n].values for d in datasets], axis=0)) for n in names}
    spread = np.std([d["influence"].values for d in datasets], axis=0, ddof=1)
    error = (spread / np.sqrt(len(datasets))).astype(first["influence"].dtype)
    lost = [str(n) for n in first.data_vars if n not in names and "train" in first[n].dims
            and n != "standard_error" and first[n].dtype.kind == "f"]  # fmt: skip
    found = first.drop_vars(lost).assign(mean).assign(
        standard_error=(first["influence"].dims, error)
    )  # fmt: skip
    return Influence(
        found.assign_attrs(
            num_models=len(datasets), error_quantile=t_quantile(len(datasets)),
            trusted=int(all(one.trusted for one in scores)),
            complete=int(all(d.attrs.get("complete", 1) for d in datasets)),
        )
    )  # fmt: skip


def _refuse_other(first: xr.Dataset, other: xr.Dataset, number: int) -> None:
    """Raise unless two results have the same rows and columns."""
    if "rank" in {*first.dims, *other.dims}:
        raise ValueError("runs made with top lack most scores: average runs that keep all.")
    for name in ("observable", "query_id", "train_id"):
        if first[name].values.tolist() != other[name].values.tolist():
            raise ValueError(
                f"model {number} was asked about another {name} than model 0: average scores of "
                "the same train items, queries and observables, in the same order."
            )
