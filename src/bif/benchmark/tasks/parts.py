"""Functions that tasks share: items split into train, queries and tuning; a classifier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from bif.problem.items import Items
from bif.problem.losses import cross_entropy
from bif.problem.problem import MARGIN, Observable, Problem

LOSS = Observable("loss", cross_entropy, "lower")


def split_positions(total: int, *, train: int, queries: int, tuning: int, seed: int, what: str
          ) -> dict[str, np.ndarray]:  # fmt: skip
    """Return shuffled positions of train items, reported queries and tuning queries.

    Args:
        total: Number of items that there are.
        train: Number of train items.
        queries: Number of reported queries.
        tuning: Number of tuning queries.
        seed: Seed of the shuffle.
        what: Origin, kind and number of the items, for the error.

    Raises:
        ValueError: More are asked for than there are.
    """
    if train + queries + tuning > total:
        raise ValueError(
            f"{what}, but {train:,} train items, {queries} queries and {tuning} tuning queries are "
            "asked for: ask for a smaller size."
        )
    order = np.random.default_rng(seed).permutation(total)
    ends = np.cumsum([train, queries, tuning])
    found = np.split(order, ends)
    return dict(zip(("train", "queries", "tuning"), found, strict=False))


def classification_problem(model: nn.Module, parts: Mapping[str, Items]) -> Problem:
    """Return a classifier's problem with the observables loss and margin."""
    return Problem(
        model,
        cross_entropy,
        train=parts["train"],
        queries=parts["queries"],
        observables=[LOSS, MARGIN],
    )
