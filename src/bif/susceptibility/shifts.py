"""Shifts of the training data: items, groups, classes or domains gain or lose weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bif.problem.literals import require_literal
from bif.results.group_sums import members_of, named_sources
from bif.runs.run import Run
from bif.susceptibility.trained import Trained

TotalWeight = Literal["preserved", "added"]
"""Whether weights are normalised to the sum they had, or weight is added."""
Weights = Mapping[str, float] | Sequence[float] | np.ndarray | Tensor
"""Of every train column, or of some by their ids; the others' are 0."""
_ROUNDING = 1e-9
"""Below it weights, in units of an item's, count as 0."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """P directions in which the weights of the train items move: `rho(t) = rho + t·w`.

    With total weight "preserved" they are normalised, `rho(t)·S / (S + t·W)` where `S = Σ rho` and
    `W = Σ w`, as if a network were trained on the mean loss of other data.  The loss then moves on
    a straight line: `n·(L_t - L) = s·Σ_i d_i l_i` with `d = w - (W/S)·rho` and
    `s = t / (1 + t·W/S)`.  With total weight "added", `d = w` and `s = t`.

    Attributes:
        names: Of the shifts.
        weights: w, `[P, N]` float64.
        total_weight: Whether the sum of the weights stays.
        trained: What was trained on.
    """

    names: tuple[str, ...]
    weights: Tensor
    total_weight: TotalWeight
    trained: Trained

    def __post_init__(self) -> None:
        require_literal("total_weight", self.total_weight, TotalWeight)
        if not self.names:
            raise ValueError("no shift was given: name at least one, with its weights or items.")
        bad = [n for n, w in zip(self.names, self.weights, strict=True) if not _finite(w)]
        if bad:
            raise ValueError(f"the weights of {bad[0]!r} are NaN or infinite: give finite numbers.")
        still = [n for n, w in zip(self.names, self.weights, strict=True) if not bool(w.any())]
        if still:
            raise ValueError(
                f"the shift {still[0]!r} moves no item: its weights are all 0, or its group is "
                "empty. Leave it out, or give it items."
            )
        if self.total_weight == "added":
            return
        if self.trained.by_token:
            raise ValueError(
                "total_weight='preserved' is of items, and the run's columns are tokens: use "
                "total_weight='added', or a run of items."
            )
        scale = self.weights.abs().amax(dim=1)
        nothing = self.directions.abs().amax(dim=1) <= _ROUNDING * scale
        if bool(nothing.any()):
            name = self.names[int(nothing.nonzero()[0])]
            raise ValueError(
                f"the shift {name!r} weights all train items alike, so that with "
                "total_weight='preserved' nothing changes: leave some items out, or use "
                "total_weight='added'."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def weight_gained(self) -> Tensor:
        """`W/S`, the weight that a unit of each adds to all, 0 with "added", `[P]`."""
        if self.total_weight == "added":
            return torch.zeros(len(self), dtype=torch.float64)
        return self.weights.sum(dim=1) / self.trained.weights.sum()

    @property
    def directions(self) -> Tensor:
        """d, `[P, N]`: `n` times the change of the mean loss is `s·Σ_i d_i l_i`."""
        return self.weights - self.weight_gained[:, None] * self.trained.weights

    def weights_at(self, size: float) -> Tensor:
        """Return the weights of the columns in training at a size t, `[P, N]`.

        `rho + t·w`, normalised to the sum of rho with total weight "preserved".

        Raises:
            ValueError: A weight below 0.
        """
        self.steps(torch.tensor([size], dtype=torch.float64))
        moved = (self.trained.weights + size * self.weights).clamp(min=0)
        return moved / (1 + self.weight_gained[:, None] * size)

    def steps(self, sizes: Tensor) -> Tensor:
        """Return s of every shift at the sizes t, `[P, Z]`.

        Raises:
            ValueError: A size at which an item's weight is below 0.
        """
        for size in sizes.tolist():
            least = (self.trained.weights + size * self.weights).amin(dim=1)
            place = int(least.argmin())
            if float(least[place]) < -_ROUNDING:
                raise ValueError(
                    f"at size {size:g} the shift {self.names[place]!r} gives an item the weight "
                    f"{float(least[place]):.3g}: weights are at least 0, so take a size nearer to "
                    "0; of a group, -1 removes it."
                )
        return sizes / (1 + self.weight_gained[:, None] * sizes)


def weight_shifts(
    run: Run,
    weights: Mapping[str, Weights],
    *,
    total_weight: TotalWeight = "preserved",
    train_weights: Sequence[float] | Tensor | None = None,
) -> Shifts:
    """Return shifts by the weights that a unit of each gives to the items.

    Args:
        run: Whose train columns.
        weights: By name of the shift: weights of all N columns, or of some by their ids.
        total_weight: "preserved" normalises; "added" does not, and one item of weight 1 is the
            influence.
        train_weights: As the problem's, where it has any.

    Raises:
        KeyError: An id that is not of the run.
        ValueError: Other numbers of weights than columns; NaN; shifts that change nothing.
    """
    trained = Trained.of(run, train_weights)
    rows = [
        weights_of_columns(f"the shift {name!r}", given, trained) for name, given in weights.items()
    ]
    empty = torch.empty(0, len(trained.ids), dtype=torch.float64)
    return Shifts(
        tuple(map(str, weights)), torch.stack(rows) if rows else empty, total_weight, trained
    )


def group_shifts(
    run: Run,
    groups: str | Sequence[str] | Mapping[str, Sequence[int]] = "label",
    *,
    total_weight: TotalWeight = "preserved",
    train_weights: Sequence[float] | Tensor | None = None,
) -> Shifts:
    """Return the shifts that give every item of a group 1 more weight: -1 removes the group.

    Args:
        run: Whose train columns.
        groups: Which text of the items names their groups, such as "label"; or a name for every
            column; or names to positions, which may overlap.
        total_weight: "preserved" normalises; "added" does not.
        train_weights: As the problem's, where it has any.

    Raises:
        KeyError: The items have no such text.
        ValueError: An empty group; one that has all items, with total weight "preserved";
            positions that are not of the run.
    """
    trained = Trained.of(run, train_weights)
    count = len(trained.ids)
    if not isinstance(groups, Mapping):
        groups = named_sources(run.influence.dataset, groups)
    weights = {}
    for name, places in members_of(groups, count).items():
        outside = [place for place in places if not 0 <= place < count]
        if outside:
            raise ValueError(
                f"group {name!r} has position {outside[0]}, and there are {count} train columns: "
                f"give positions from 0 to {count - 1}."
            )
        weights[name] = torch.zeros(count, dtype=torch.float64)
        weights[name][list(places)] = 1.0
    return weight_shifts(run, weights, total_weight=total_weight, train_weights=train_weights)


def weights_of_columns(name: str, given: Weights, trained: Trained) -> Tensor:
    """Return weights of all columns `[N]` from those given by position or by id; others are 0.

    Raises:
        KeyError: An id that is not of the run.
        ValueError: Another number of weights than columns.
    """
    row = torch.zeros(len(trained.ids), dtype=torch.float64)
    if isinstance(given, Mapping):
        places = {one: place for place, one in enumerate(trained.ids)}
        for one, weight in given.items():
            if one not in places:
                raise KeyError(
                    f"{name} weights {one!r}, and there is no such train item: ids are "
                    f"such as {list(trained.ids[:3])}."
                )
            row[places[one]] = float(weight)
        return row
    found = torch.as_tensor(np.asarray(given), dtype=torch.float64)
    if found.shape != row.shape:
        raise ValueError(
            f"{name} has weights of shape {tuple(found.shape)}: expected "
            f"{len(row)}, one a train column, or a mapping from ids."
        )
    return found


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())
