"""Describe items beside the numbers: values at w*, groups, labels, texts and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.dataset import ScoreAxes
from bif.problem.columns import Columns
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.results.group_sums import Side
from bif.runs.classes import classes_in_words
from bif.runs.numbers import numbers_in_words
from bif.sampling.observer import Observer

if TYPE_CHECKING:
    import xarray as xr

_AXES = ("row", "column", "channel")


def score_axes(problem: Problem, nbeta: float) -> ScoreAxes:
    """Return the names of the rows and columns of a problem's scores."""
    return ScoreAxes(
        observables={o.name: o.better for o in problem.observables},
        query_ids=problem.query_ids,
        query_groups=problem.query_group_names,
        train_ids=problem.scored_ids,
        nbeta=nbeta,
        num_train=problem.num_train,
    )


def describe_items(dataset: xr.Dataset, problem: Problem, observer: Observer) -> xr.Dataset:
    """Add what is known of the items behind rows and columns.

    Where tokens have columns of their own, `train_item` and `train_token` say whose they are and
    where they stand, `train_text` what they stand for; what is known of the items themselves is on
    an axis of its own, `train_parent`.  The same for queries.  The pieces of each item's text are a
    list in JSON, `train_tokens` or `train_parent_tokens`.

    Args:
        dataset: Scores from `influence_dataset`.
        problem: Whose items.
        observer: Of these items.
    """
    shape = (len(problem.observables), problem.num_queries)
    dataset = dataset.assign(
        train_center_loss=("train", observer.train_center.numpy()),
        query_center=(("observable", "query"), observer.query_center.reshape(shape).numpy()),
    )
    dataset = dataset.assign_coords(through=("observable", problem.proxy_names))
    if problem.candidate_groups:
        dataset = dataset.assign_coords(train_group=("train", problem.scored_group_names))
    dataset = _of_items(dataset, "train", problem.scored_groups, problem.scored_columns)
    dataset = _of_items(dataset, "query", problem.query_groups, problem.query_columns)
    if problem.train_by_token and problem.candidate_groups:
        names = problem.by_item().scored_group_names
        dataset = dataset.assign_coords(train_parent_group=("train_parent", names))
    if problem.query_by_token:
        names = problem.by_item().query_group_names
        dataset = dataset.assign_coords(query_parent_group=("query_parent", names))
    # Labels that were given with the items go first: they may tell more than the class.
    words = {
        **classes_in_words(problem, observer.settings, observer.device),
        **numbers_in_words(problem, observer.settings, observer.device),
    }
    texts = {n: (n.partition("_")[0], x) for n, x in words.items() if n not in dataset.coords}
    return _with_pictures(dataset.assign_coords(texts), problem)


def _of_items(
    dataset: xr.Dataset, side: Side, groups: Mapping[str, Items], columns: Columns
) -> xr.Dataset:
    axis = side if columns.token is None else f"{side}_parent"
    items = list(groups.values())
    texts: dict[str, np.ndarray] = {}
    if all(group.labels is not None for group in items):
        texts["label"] = np.concatenate([np.asarray(group.labels) for group in items])
    for name in sorted(set.intersection(*(set(group.about) for group in items))):
        texts[name] = np.concatenate([group.about[name] for group in items])
    pieces = [piece for group in items for piece in group.tokens or ()]
    known = len(pieces) == len(columns.item_ids)
    if known:  # as JSON: lists of different lengths are no array
        texts["tokens"] = np.asarray([json.dumps(p) for p in pieces], object)
    if columns.token is not None:
        texts["id"] = columns.item_ids
        dataset = dataset.assign_coords(
            {
                f"{side}_item": (side, columns.item_ids[columns.item]),
                f"{side}_token": (side, columns.token),
            }
        )
        if known:
            at = zip(columns.item.tolist(), columns.token.tolist(), strict=True)
            shown = [pieces[i][t] if t < len(pieces[i]) else "" for i, t in at]
            dataset = dataset.assign_coords({f"{side}_text": (side, np.asarray(shown, object))})
    return dataset.assign_coords({f"{axis}_{n}": (axis, values) for n, values in texts.items()})


def _with_pictures(dataset: xr.Dataset, problem: Problem) -> xr.Dataset:
    sides = (
        ("train", problem.scored_groups, problem.train_by_token),
        ("query", problem.query_groups, problem.query_by_token),
    )
    for side, groups, by_token in sides:
        shapes = {None if i.images is None else i.images.shape[1:] for i in groups.values()}
        expected = problem.train.images
        if expected is not None and shapes == {expected.shape[1:]} and not by_token:
            pictures = np.concatenate([np.asarray(items.images) for items in groups.values()])
            named = (side, *_AXES[: pictures.ndim - 1])
            dataset = dataset.assign({f"{side}_image": (named, pictures)})
    return dataset
