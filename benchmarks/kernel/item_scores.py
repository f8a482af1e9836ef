"""Scores of single items by a kernel: how odd an item is, and how alike to known ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bif.evaluate import auroc
from bif.kernel import ItemKernel

_FALSE_ALARMS = 0.05


def neighbour_disagreement(kernel: ItemKernel, labels: Sequence[str], count: int) -> np.ndarray:
    """Return the share of an item's nearest items that have another label, `[N]`."""
    places = kernel.nearest(min(count, len(kernel) - 1))[0]
    named = np.asarray(labels)
    return (named[places] != named[:, None]).mean(axis=1)


def class_gap(kernel: ItemKernel, labels: Sequence[str]) -> np.ndarray:
    """Return the mean correlation with the best other class less that with the own, `[N]`.

    No item is paired with itself; one that is alone in its class has 0 with it.
    """
    _, place = np.unique(np.asarray(labels), return_inverse=True)
    x, index = kernel.embedding().double(), torch.from_numpy(place)
    counts = index.bincount().double()
    sums = x @ x.new_zeros(len(counts), x.shape[1]).index_add_(0, index, x).T
    items = torch.arange(len(x))
    own = (sums[items, index] - x.square().sum(dim=1)) / (counts[index] - 1).clamp(min=1)
    others = sums / counts
    others[items, index] = -torch.inf
    return (others.amax(dim=1) - own).numpy()


def mean_correlation(kernel: ItemKernel, known: np.ndarray) -> np.ndarray:
    """Return the mean correlation with some items, `[N]`."""
    x = kernel.embedding().double()
    return (x @ x[torch.from_numpy(known)].mean(dim=0)).numpy()


def detection(scores: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """Return how well scores find items: AUROC, and the share found at 5 % false alarms."""
    threshold = np.quantile(scores[~positives], 1 - _FALSE_ALARMS)
    return {
        "auroc": float(auroc(scores, positives)),
        "found": float((scores[positives] > threshold).mean()),
    }
