"""Items to look at: outliers, items that may be mislabelled, and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bif.estimate.item_kernel import classes_of
from bif.estimate.loss_kernel import LossKernel
from bif.kernel.neighbours import Neighbours, find_neighbours

if TYPE_CHECKING:
    import xarray as xr

_ROWS = 1024
"""Items whose losses are compared at a time."""


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
    * `twin`, that of the nearest whose losses are closest; `loss_gap`, the root mean square of the
      difference of their losses, by that of their standard deviations; and `is_duplicate`, whether
      this is at most `tolerance`.  Both losses are read at the same draws, so items that are the
      same have a gap of rounding alone, with however few draws.

    `loss_variance`, `mean_loss` and `class_margin` have a standard error by the spread of the
    chains, `…_standard_error`; the class of the maximum is held.

    Args:
        kernel: Of at least two chains.
        label: Which of the items' labels classes are; "label" if there is one.  Without classes, or
            with a single one, there are no scores of them.
        count: Nearest items of each; all others where there are fewer.
        tolerance: Of `loss_gap`.
        neighbours: Of each item, if they are known.

    Returns:
        Variables `[item]`.

    Raises:
        KeyError: No such labels.
        ValueError: Fewer than two items or chains; a negative tolerance; neighbours of others.
    """
    import xarray as xr

    labels = kernel.labels.get("label") if label is None else kernel.labels_of(label)
    if len(kernel) < 2 or tolerance < 0:
        raise ValueError(
            f"{len(kernel)} items and tolerance {tolerance:g}, expected two items and 0 or more."
        )
    neighbours = _of_items(kernel, neighbours, count)
    scores = _twins(kernel, neighbours, tolerance)
    classes = None if labels is None or len(set(labels)) < 2 else _Classes.of_kernel(kernel, labels)
    if classes is not None:
        scores |= classes.scores(neighbours)
    scores |= _with_errors(kernel, classes)
    return xr.Dataset(
        {name: ("item", values) for name, values in sorted(scores.items())},
        coords={"item_id": ("item", np.array(kernel.ids))},
        attrs={"tolerance": tolerance},
    )


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
        means: Mean correlation with the other items of each class, NaN where there is none,
            `[N, C]`.
        best: The other class of the largest mean, `[N]`.
        worst: That of the smallest, `[N]`.
    """

    names: np.ndarray
    index: torch.Tensor
    means: np.ndarray
    best: np.ndarray
    worst: np.ndarray

    @classmethod
    def of_kernel(cls, kernel: LossKernel, labels: Sequence[str]) -> _Classes:
        names, index = classes_of(labels, len(kernel))
        means = _class_means(kernel, index)
        others = means.copy()
        others[np.arange(len(means)), index.numpy()] = np.nan
        return cls(
            np.array(names), index, means,
            np.nanargmax(others, axis=1), np.nanargmin(others, axis=1),
        )  # fmt: skip

    def margin(self, kernel: LossKernel) -> np.ndarray:
        """Return how much more an item moves with its class than with the best other one here."""
        means, rows = _class_means(kernel, self.index), np.arange(len(kernel))
        return means[rows, self.index.numpy()] - means[rows, self.best]

    def scores(self, neighbours: Neighbours) -> dict[str, np.ndarray]:
        place = self.index.numpy()
        weights = np.maximum(neighbours.values.astype(float), 0.0)
        other = (place[neighbours.places] != place[:, None]) * weights
        total = weights.sum(axis=1)
        return {
            "moves_with": self.names[self.best],
            "moves_against": self.names[self.worst],
            "opposition": -self.means[np.arange(len(place)), self.worst],
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


def _class_means(kernel: LossKernel, index: torch.Tensor) -> np.ndarray:
    """Return mean correlations with the other items of each class, NaN without any, `[N, C]`."""
    x, counts = kernel.embedding(), index.bincount().numpy()
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, index, x)
    total, place = (x @ sums.T).double().numpy(), index.numpy()
    rows = np.arange(len(x))
    total[rows, place] -= x.double().square().sum(dim=1).numpy()
    number = np.tile(counts.astype(float), (len(x), 1))
    number[rows, place] -= 1
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
