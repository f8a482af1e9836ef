"""Ids as indexes of a dataset of scores, in memory: `scores.sel(query="q-3", train="row-5")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_SIDES = ("query", "train")


def with_id_indexes(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose queries and train columns are selected by their ids, which are texts.

    A number selects nothing, whatever the ids are: positions are for `isel`.
    """
    missing = [s for s in _SIDES if f"{s}_id" in dataset.coords and s not in dataset.coords]
    return dataset.assign_coords(
        {s: (s, np.asarray([str(i) for i in dataset[f"{s}_id"].values], object)) for s in missing}
    )


def without_id_indexes(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset as it is written: the ids once."""
    return dataset.drop_vars([side for side in _SIDES if side in dataset.coords])
