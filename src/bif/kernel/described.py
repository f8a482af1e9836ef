"""What a loss kernel says of its items, as a dataset, and of all of them, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bif.estimate.loss_kernel import LossKernel

if TYPE_CHECKING:
    import xarray as xr


def describe(
    kernel: LossKernel, *, count: int = 15, label: str | None = None
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return each item's neighbours and how far they can be trusted, and the figures of all.

    Args:
        kernel: Of at least two chains.
        count: Neighbours of an item; all others where there are fewer.
        label: Which of the items' labels classes are; "label" if there is one.

    Returns:
        A dataset with `loss_variance` `[item]`, `neighbour` (positions) and `correlation`
        `[item, rank]`, and `kept`: the share of an item's neighbours that both halves of the chains
        name; with classes `class_correlation` and its standard error `[class, other_class]`.  And
        figures: items, draws, chains, the mean of `kept` and what it is by chance, and the mean
        correlations within and across classes.

    Raises:
        KeyError: No such labels.
        ValueError: Fewer than two items or chains.
    """
    import xarray as xr

    labels = kernel.labels.get("label") if label is None else kernel.labels_of(label)
    count = min(count, len(kernel) - 1)
    places, values = kernel.nearest(count)
    kept = kernel.stability(count)
    dataset = xr.Dataset(
        {
            "loss_variance": ("item", kernel.variance.numpy()),
            "neighbour": (("item", "rank"), places),
            "correlation": (("item", "rank"), values),
            "kept": ("item", kept),
        },
        coords={"item_id": ("item", np.array(kernel.ids))},
    )
    figures: dict[str, Any] = {
        "items": len(kernel), "draws": len(kernel.chains),
        "chains": len(kernel.chains.unique()), "neighbours": count,
        "neighbours_kept": float(kept.mean()), "kept_by_chance": count / (len(kernel) - 1),
        "items_that_never_move": int((kernel.variance == 0).sum()),
    }  # fmt: skip
    if labels is not None and len(set(labels)) > 1:
        blocks, about = _classes(kernel, labels)
        dataset, figures = dataset.merge(blocks), figures | about
    return dataset, figures


def _classes(kernel: LossKernel, labels: tuple[str, ...]) -> tuple[xr.Dataset, dict[str, Any]]:
    import xarray as xr

    names = sorted(set(labels))
    own = np.eye(len(names), dtype=bool)
    means, errors = kernel.jackknife(lambda k: k.class_blocks(labels)[1])
    axes = ("class", "other_class")
    blocks = xr.Dataset(
        {
            "class_correlation": (axes, means),
            "class_correlation_standard_error": (axes, errors),
            "item_class": ("item", np.array(labels)),
        },
        coords={"class": names, "other_class": names},
    )

    def of_kinds(kernel: LossKernel) -> np.ndarray:
        found = kernel.class_blocks(labels)[1]
        return np.array([np.nanmean(found[own]), found[~own].mean()])

    values, spread = kernel.jackknife(of_kinds)
    figures = {}
    for name, value, error in zip(("within", "across"), values, spread, strict=True):
        figures[f"{name}_classes"] = float(value)
        figures[f"{name}_classes_error"] = float(error)
    return blocks, figures
