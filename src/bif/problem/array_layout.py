"""The division of traces into groups of items, each stored as an array of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bif.problem.columns import num_columns
from bif.problem.items import Items
from bif.problem.problem import Problem

_NAME = re.compile(r"(train_loss|query_value|anchor)-(0|[1-9]\d*)")


@dataclass(frozen=True)
class Panels:
    """Sizes of the groups of items behind the columns, which are items or tokens.

    Args:
        train: Columns of the train set and of each group of candidates.
        query: Queries of each group.
        num_observables: A; the columns of queries are observable-major, A·Q of them.
        anchored: Whether each query column has an anchor, in another A·Q columns behind them.
    """

    train: tuple[int, ...]
    query: tuple[int, ...]
    num_observables: int
    anchored: bool = False

    @classmethod
    def of(cls, problem: Problem, *, anchored: bool = False) -> Panels:
        """Return the sizes of a problem's groups."""
        return cls(
            _sizes(problem.scored_groups, by_token=problem.train_by_token),
            _sizes(problem.query_groups, by_token=problem.query_by_token),
            len(problem.observables),
            anchored,
        )

    @property
    def names(self) -> list[str]:
        """Names of the arrays, one a group: `train_loss-0`, `query_value-0`, `anchor-0`, …."""
        sides = [("train_loss", self.train), ("query_value", self.query)]
        sides += [("anchor", self.query)] if self.anchored else []
        return [f"{kind}-{i}" for kind, sizes in sides for i in range(len(sizes))]

    def split(self, train: Tensor, query: Tensor) -> dict[str, np.ndarray]:
        """Return traces `[C, d, N]` and `[C, d, A·Q]` as an array for each group.

        Arrays are `[C, d, N_g]` of train items and `[C, d, A, Q_g]` of queries and of anchors,
        which are behind the queries' columns.
        """
        parts = [train[..., part] for part in _slices(self.train)]
        for side in query.chunk(2, dim=2) if self.anchored else [query]:
            by_observable = side.unflatten(2, (self.num_observables, sum(self.query)))
            parts += [by_observable[..., part] for part in _slices(self.query)]
        return {name: x.numpy() for name, x in zip(self.names, parts, strict=True)}


def join_panels(arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return traces `[C, D, N]` and `[C, D, A·Q]` from the arrays of all groups.

    Anchors, where there are some, are behind the queries' columns.
    """
    joined = {
        kind: np.concatenate([arrays[name] for name in names], axis=-1)
        for kind, names in by_kind(arrays).items()
        if names
    }
    # Copies: torch aligns its memory, and the last bits of a product may depend on that.
    sides = [torch.tensor(joined[k]).flatten(2) for k in ("query_value", "anchor") if k in joined]
    return torch.tensor(joined["train_loss"]), torch.cat(sides, dim=2)


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Return array names of train items, queries and anchors, in the order of their groups."""
    found: dict[str, list[tuple[int, str]]] = {"train_loss": [], "query_value": [], "anchor": []}
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found[match[1]].append((int(match[2]), name))
    return {kind: [name for _, name in sorted(places)] for kind, places in found.items()}


def _sizes(groups: Mapping[str, Items], *, by_token: bool) -> tuple[int, ...]:
    return tuple(num_columns(items, by_token=by_token) for items in groups.values())


def _slices(sizes: tuple[int, ...]) -> list[slice]:
    edges = np.cumsum((0, *sizes)).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]
