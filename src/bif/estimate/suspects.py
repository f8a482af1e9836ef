"""Items to look at: outliers, items that may be mislabelled, and duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bif.estimate.item_kernel import classes_of
from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.estimate.neighbours import Neighbours, find_neighbours

if TYPE_CHECKING:
    import xarray as xr

_ROWS = 1024
"""Items of a block."""
MOST_CLASSES = 2000
"""Classes of a label at most: each item has a mean with each, and each class with each other."""


def suspects(
    kernel: LossKernel,
    *,
    label: str | None = None,
    count: int = 15,
    tolerance: float = 0.01,
    neighbours: Neighbours | None = None,
) -> xr.Dataset:
    """Return scores of each item by which outliers, wrong labels and duplicates stand out.

    With `m_ic` the mean correlation of item i with the other items of class c, and y its class:

    * `loss_variance`: `K_ii`, and `mean_loss`, over the draws.  Both are large for outliers and for
      wrong labels.
    * `class_margin`: `m_iy - max_{c≠y} m_ic`, and `moves_with`, the class of that maximum.  Low for
      wrong labels.
    * `opposition`: `-min_{c≠y} m_ic`, and `moves_against`, the class of that minimum.  An item with
      a wrong label loses what its true class gains, so this class is often the true one.
    * `label_disagreement`: share of the `count` nearest with another label, each by its correlation
      where that is positive, NaN where none is.
    * `isolation`: 1 less the mean correlation with the `count` nearest.  Large for items that are
      out of place: their losses move with those of no other.
    * `twin`, that of the nearest whose losses are closest; `loss_gap`, the root mean square of the
      difference of their losses, by that of their standard deviations; and `is_duplicate`, whether
      this is at most `tolerance`.  Both losses are read at the same draws, so items that are the
      same have a gap of rounding alone, with however few draws.

    `loss_variance`, `mean_loss` and `class_margin` have a standard error by the spread of the
    chains, `…_standard_error`; the class of the maximum is held.

    Args:
        kernel: Of at least two chains.
        label: Which of the items' labels classes are; "label" if there is one, of at most 2,000
            classes.  Without classes, or with a single one, there are no scores of them.
        count: Nearest items of each; all others where there are fewer.
        tolerance: Of `loss_gap`.
        neighbours: Of each item, if they are known.

    Returns:
        Variables `[item]`.

    Raises:
        KeyError: No such labels.
        ValueError: Fewer than two items or chains; a negative tolerance; neighbours of others; a
            named label of more than 2,000 classes.
    """
    import xarray as xr

    refuse_without_chains(kernel, "suspects")
    scores, classes = _without_errors(kernel, label, count, tolerance, neighbours)
    scores |= _with_errors(kernel, classes)
    return xr.Dataset(
        {name: ("item", values) for name, values in sorted(scores.items())},
        coords={"item_id": ("item", np.array(kernel.ids))},
        attrs={"tolerance": tolerance},
    )


def plain_suspects(kernel: LossKernel, *, tolerance: float = 0.01) -> dict[str, np.ndarray]:
    """Return the scores of `suspects` that have no errors, and `mean_loss`; faster by ten times.

    Raises: as `suspects`.
    """
    scores, _ = _without_errors(kernel, None, 15, tolerance, None)
    return {**scores, "mean_loss": kernel.losses.mean(dim=1, dtype=torch.float64).numpy()}


def _without_errors(
    kernel: LossKernel, label: str | None, count: int, tolerance: float,
    neighbours: Neighbours | None,
) -> tuple[dict[str, np.ndarray], _Classes | None]:  # fmt: skip
    labels = told_classes(kernel, label)
    if len(kernel) < 2 or tolerance < 0:
        raise ValueError(
            f"{len(kernel)} items and tolerance {tolerance:g}, expected two items and 0 or more."
        )
    neighbours = _of_items(kernel, neighbours, count)
    scores = _twins(kernel, neighbours, tolerance)
    scores["isolation"] = 1 - neighbours.values.mean(axis=1, dtype=float)
    classes = None if labels is None else _Classes.of_kernel(kernel, labels)
    if classes is not None:
        scores |= classes.scores(neighbours)
    return scores, classes


def told_classes(kernel: LossKernel, label: str | None) -> tuple[str, ...] | None:
    """Return the labels that classes are, `[N]`; None without any, or with a single class.

    Raises:
        KeyError: No such labels.
        ValueError: More than 2,000 classes of a label that is named; by default they are none.
    """
    labels = kernel.labels.get("label") if label is None else kernel.labels_of(label)
    count = 0 if labels is None else len(set(labels))
    if label is not None and count > MOST_CLASSES:
        raise ValueError(
            f"label {label!r} has {count:,} classes of {len(kernel):,} items, expected at most "
            f"{MOST_CLASSES:,}: name a coarser one."
        )
    return labels if 2 <= count <= MOST_CLASSES else None


def _of_items(kernel: LossKernel, neighbours: Neighbours | None, count: int) -> Neighbours:
    """Return the neighbours, found where they were not given.

    Raises:
        ValueError: They are of another number of items.
    """
    if neighbours is None:
        return find_neighbours(kernel, min(count, len(kernel) - 1))
    if len(neighbours.places) != len(kernel):
        raise ValueError(
            f"neighbours of {len(neighbours.places)} items, expected of {len(kernel)}: leave them "
            "out to have them found."
        )
    return neighbours


@dataclass(frozen=True, eq=False)
class _Classes:
    """How items move with classes.

    Attributes:
        names: Of the classes.
        index: Class of each item, `[N]`.
        best: The other class with whose items the mean correlation is largest, `[N]`.
        worst: That with which it is smallest, `[N]`.
        least: This smallest mean, `[N]`.
    """

    names: np.ndarray
    index: torch.Tensor
    best: np.ndarray
    worst: np.ndarray
    least: np.ndarray

    @classmethod
    def of_kernel(cls, kernel: LossKernel, labels: Sequence[str]) -> _Classes:
        names, index = classes_of(labels, len(kernel))
        found = []
        for part, means in _class_means(kernel, index):
            means[np.arange(len(means)), part] = np.nan
            found.append((np.nanargmax(means, 1), np.nanargmin(means, 1), np.nanmin(means, 1)))
        best, worst, least = (np.concatenate(some) for some in zip(*found, strict=True))
        return cls(np.array(names), index, best, worst, least)

    def margin(self, kernel: LossKernel) -> np.ndarray:
        """Return how much more an item moves with its class than with the best other one here."""
        found, start = [], 0
        for part, means in _class_means(kernel, self.index):
            rows, best = np.arange(len(part)), self.best[start : start + len(part)]
            found.append(means[rows, part] - means[rows, best])
            start += len(part)
        return np.concatenate(found)

    def scores(self, neighbours: Neighbours) -> dict[str, np.ndarray]:
        place = self.index.numpy()
        weights = np.maximum(neighbours.values.astype(float), 0.0)
        other = (place[neighbours.places] != place[:, None]) * weights
        total = weights.sum(axis=1)
        return {
            "moves_with": self.names[self.best],
            "moves_against": self.names[self.worst],
            "opposition": -self.least,
            "label_disagreement": np.divide(
                other.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
            ),
        }


def _with_errors(kernel: LossKernel, classes: _Classes | None) -> dict[str, np.ndarray]:
    """Return the scores that have a standard error by the spread of the chains, and it."""

    def of_chains(kernel: LossKernel) -> np.ndarray:
        mean = kernel.losses.mean(dim=1, dtype=torch.float64)
        margin = [] if classes is None else [classes.margin(kernel)]
        return np.stack([kernel.variance.numpy(), mean.numpy(), *margin])

    scores = {}
    names = ("loss_variance", "mean_loss", "class_margin")
    for name, value, error in zip(names, *kernel.jackknife(of_chains), strict=False):
        scores[name], scores[f"{name}_standard_error"] = value, error
    return scores


def _twins(kernel: LossKernel, neighbours: Neighbours, tolerance: float) -> dict[str, np.ndarray]:
    """Return each item's twin, their gap and whether it is small."""
    places = neighbours.places
    variance = kernel.variance.numpy()
    mean = kernel.losses.mean(dim=1, dtype=torch.float64).numpy()
    product = np.sqrt(variance[:, None] * variance[places]) * neighbours.values
    both = variance[:, None] + variance[places]
    far = both - 2 * product + (mean[:, None] - mean[places]) ** 2
    ratio = np.divide(far, both, out=np.full(far.shape, np.inf), where=both > 0)
    twin = places[np.arange(len(places)), ratio.argmin(axis=1)]
    squares = []
    for start in range(0, len(twin), _ROWS):  # anew, since the sum above cancels for twins
        other = torch.from_numpy(twin[start : start + _ROWS])
        away = kernel.losses[start : start + _ROWS].double() - kernel.losses[other].double()
        squares.append(away.square().mean(dim=1).numpy())
    spread = (variance + variance[twin]) / 2
    moves = (variance > 0) & (variance[twin] > 0)
    gap = np.sqrt(np.divide(np.concatenate(squares), spread, out=spread * np.nan, where=moves))
    return {"twin": twin, "loss_gap": gap, "is_duplicate": gap <= tolerance}


def _class_means(
    kernel: LossKernel, index: torch.Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the classes of some items, and their mean correlations with the items of each class.

    1,024 items at a time, `[B]` and `[B, C]`.  No item is paired with itself; NaN where a class has
    no other item.
    """
    x, counts = kernel.embedding(), index.bincount().double().numpy()
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, index, x)
    for part, classes in zip(x.split(_ROWS), index.split(_ROWS), strict=True):
        total, place, own = (part @ sums.T).double().numpy(), classes.numpy(), np.arange(len(part))
        total[own, place] -= part.double().square().sum(dim=1).numpy()
        number = np.tile(counts, (len(part), 1))
        number[own, place] -= 1
        yield place, np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
