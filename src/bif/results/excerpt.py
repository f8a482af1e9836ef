"""Excerpt a result that is too large for a page."""

from __future__ import annotations

from typing import get_args

import numpy as np

from bif.results.group_sums import Side, columns_of_items
from bif.results.influence import Influence
from bif.results.top_influence import SIDES

_MOST_PAIRS = 2**22
"""Scores of an excerpt at most, unless its first query or item has more."""
_MOST_QUERIES = 8
"""Items whose queries are in an excerpt, at most."""


def excerpt(influence: Influence) -> Influence:
    """Return all scores of the clearest queries on whole items among their strongest columns.

    Of at most eight queries and four million pairs, for a page.

    Args:
        influence: Influence of a run made with `top`, with its traces.
    """
    strongest = influence.dataset.isel(observable=0).sel(kind="strongest")
    sizes = influence.dataset.sizes
    column = strongest["column"].values.reshape(sizes["query"], -1)
    ratio = np.abs(strongest["influence"].values) / strongest["standard_error"].values
    clarity = np.nan_to_num(ratio.reshape(column.shape), nan=-1, posinf=-1).max(axis=1)
    items = [_columns_by_item(influence, side) for side in get_args(Side)]
    owner = np.empty(sizes["train"], dtype=int)
    for item, columns in enumerate(items[0]):
        owner[columns] = item
    clearest = sorted((q for q in items[1] if q), key=lambda q: -clarity[q].max())
    rows: list[int] = []
    for place, queries in enumerate(clearest[:_MOST_QUERIES]):
        if place and len(rows) + len(queries) > _MOST_PAIRS**0.5:
            break
        rows += queries
    # Rank by rank: the strongest of every row first.
    by_rank = column[rows].reshape(len(rows), len(SIDES), -1).transpose(2, 0, 1).ravel()
    train: list[int] = []
    for item in dict.fromkeys(owner[by_rank[by_rank >= 0]].tolist()):
        if train and (len(train) + len(items[0][item])) * len(rows) > _MOST_PAIRS:
            break
        train += items[0][item]
    found = influence.part(query=sorted(rows), train=sorted(train or items[0][0]))
    found.dataset.attrs["excerpt"] = (
        f"An excerpt: of {sizes['query']:,} rows of queries and {sizes['train']:,} train "
        f"columns, the run kept the {influence.kept} strongest pairs of each row either way. This "
        "page shows the clearest queries and what moves them most."
    )
    return found


def _columns_by_item(influence: Influence, side: Side) -> list[list[int]]:
    """Return positions of every item's columns: its tokens', or its own."""
    members = columns_of_items(influence.dataset, side)
    if members is None:
        return [[i] for i in range(influence.dataset.sizes[side])]
    return [list(columns) for columns in members.values()]
