"""Sum over columns of scores: of groups of items, of sources, of the tokens of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from bif.estimate.dataset import summed_influence
from bif.estimate.traces import LossTraces

if TYPE_CHECKING:
    import xarray as xr

Side = Literal["train", "query"]
Members = dict[str, Sequence[int]]

_SUMMABLE = {
    "train": ("influence", "derivative", "train_mean_loss", "train_center_loss"),
    "query": ("influence", "derivative", "query_mean", "query_center"),
}
_LOST = {
    "train": ("standard_error", "correlation", "self_influence", "self_influence_standard_error"),
    "query": ("standard_error", "correlation"),
}


def members_of(
    groups: Sequence[str] | Mapping[str, Sequence[int]], count: int, side: str = "train"
) -> Members:
    """Return positions by group, in order of their names where every item is given one.

    Raises:
        ValueError: Another number of names than there are columns on this side.
    """
    if isinstance(groups, Mapping):
        return {str(name): positions for name, positions in groups.items()}
    names = np.asarray([str(getattr(g, "item", lambda g=g: g)()) for g in groups])
    if len(names) != count:
        what = "groups" if side == "train" else "query_groups"
        raise ValueError(
            f"{what} names {len(names)} items, but there are {count}: give one name an item."
        )
    return {str(name): np.flatnonzero(names == name).tolist() for name in np.unique(names)}


def columns_of_items(dataset: xr.Dataset, side: Side) -> Members | None:
    """Return positions of each item's token columns; None where columns are items."""
    if f"{side}_item" not in dataset.coords:
        return None
    members: dict[str, list[int]] = {str(i): [] for i in dataset[f"{side}_parent_id"].values}
    for position, name in enumerate(dataset[f"{side}_item"].values.tolist()):
        members[str(name)].append(position)
    return dict(members)


def named_sources(dataset: xr.Dataset, labels: str | Sequence[str]) -> Sequence[str]:
    """Return the source of every train column.

    Args:
        dataset: Scores.
        labels: A name for every item or column, or which of the items' texts names it.

    Raises:
        KeyError: The train items have no such text.
        ValueError: Another number of names than there are items.
    """
    kind = "train_parent" if "train_item" in dataset.coords else "train"
    if isinstance(labels, str):
        if f"{kind}_{labels}" not in dataset.coords:
            known = [str(n).removeprefix(f"{kind}_") for n in dataset.coords
                     if str(n).startswith(f"{kind}_")]  # fmt: skip
            raise KeyError(
                f"the train items have no {labels!r} to be summed by; they have {known}. Pass a "
                "name for every item."
            )
        name, labels = labels, [str(v) for v in dataset[f"{kind}_{labels}"].values]
        if not any(labels):
            raise KeyError(
                f"the {name!r} of every train item is empty: give it with the documents or items, "
                "or pass a name for every item."
            )
    if kind == "train_parent" and len(labels) == dataset.sizes["train_parent"]:
        position = {str(n): i for i, n in enumerate(dataset["train_parent_id"].values)}
        return [labels[position[str(n)]] for n in dataset["train_item"].values]
    return labels


def source_text(dataset: xr.Dataset) -> str | None:
    """Return which text of the train items tells their sources apart: fewer than items.

    The first of "source", "label" and "group" that does, or None.
    """
    kind = "train_parent" if "train_item" in dataset.coords else "train"
    for name in ("source", "label", "group"):
        if f"{kind}_{name}" in dataset.coords:
            values = {str(v) for v in dataset[f"{kind}_{name}"].values}
            if 1 < len(values) < dataset.sizes[kind]:
                return name
    return None


def summed(
    dataset: xr.Dataset,
    traces: LossTraces | None,
    *,
    train: Members | None = None,
    query: Members | None = None,
) -> tuple[xr.Dataset, LossTraces | None]:
    """Return scores of sums over train columns and on sums over queries, with their traces.

    Without traces the errors, which are those of correlated columns, are NaN; those of a solved
    run, which has none, are at most the sums of the columns' and are given as such.

    Args:
        dataset: Scores of columns.
        traces: Behind them, where at hand.
        train: Names to positions of train columns, or None to leave them.
        query: Groups of queries.
    """
    members: dict[Side, Members] = {}
    if train is not None:
        members["train"] = train
    if query is not None:
        members["query"] = query
    additive = dataset[[n for n in dataset if str(n).startswith("control_") or n == "linear"]]
    if traces is not None:
        found, traces = summed_influence(dataset, traces, train, queries=query)
        found = found.drop_vars([n for n in additive if n in found])
    else:
        found = dataset.drop_vars(list(additive))
        for side, groups in members.items():
            found = _sum_without_traces(found, side, groups)
    for side, groups in members.items():
        additive = additive.map(_summed_columns, side=side, groups=groups)
    return found.assign({n: (x.dims, x.values) for n, x in additive.items()}), traces


def with_items(summed: xr.Dataset, columns: xr.Dataset, side: Side) -> xr.Dataset:
    """Give sums over tokens what was known of their items: labels, groups, texts, values at w*.

    Args:
        summed: Scores of items, from `columns_of_items`.
        columns: Scores of tokens.
        side: Side of the items.
    """
    kind = f"{side}_parent"
    texts = {
        str(name).replace(kind, side): (side, columns[name].values)
        for name in columns.coords
        if str(name).startswith(f"{kind}_") and name != f"{kind}_id"
    }
    if f"{kind}" in summed.dims:
        summed = summed.drop_dims(kind)
    center = "train_center_loss" if side == "train" else "query_center"
    members = columns_of_items(columns, side)
    if center in columns and center not in summed and members is not None:
        parts = [columns[center].isel({side: list(m)}).sum(side).values for m in members.values()]
        summed = summed.assign({center: (columns[center].dims, np.stack(parts, axis=-1))})
    return summed.assign_coords(texts)


def _summed_columns(scores: xr.DataArray, side: Side, groups: Members) -> xr.DataArray:
    import xarray as xr

    if side not in scores.dims:
        return scores
    parts = [scores.isel({side: list(m)}).sum(side) for m in groups.values()]
    return xr.concat(parts, side).transpose(*scores.dims)


def _sum_without_traces(dataset: xr.Dataset, side: Side, members: Members) -> xr.Dataset:
    names = [n for n in (*_SUMMABLE[side], *_LOST[side]) if n in dataset]
    sums = {name: _summed_columns(dataset[name], side, members) for name in names}
    result = dataset.drop_dims(side).assign(sums)
    solved = dataset.attrs.get("estimator") == "response"
    for name in _LOST[side]:
        if name in result and not (solved and name == "standard_error"):
            result[name] = result[name] * np.nan
    ids = {f"{side}_id": (side, list(members))}
    if side == "query":
        ids["query_group"] = (side, ["query"] * len(members))
    return result.assign_coords(ids)
