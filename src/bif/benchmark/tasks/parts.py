"""What tasks share: items dealt into train, queries and tuning; a classifier's problem."""

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
    """Positions of the train items, the reported queries and the tuning queries, shuffled.

    Args:
        total: Items that there are.
        train: Train items.
        queries: Reported queries.
        tuning: Tuning queries.
        seed: Of the shuffle.
        what: Where the items are from and what they are, with their number, for the error.

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
    """Loss and margin of a classifier on the reported queries."""
    return Problem(
        model,
        cross_entropy,
        train=parts["train"],
        queries=parts["queries"],
        observables=[LOSS, MARGIN],
    )
