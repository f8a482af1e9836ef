"""What a loss kernel says of its items, as a dataset, and of all of them, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.estimate.neighbours import Neighbours, Stability, find_neighbours, neighbour_stability
from bif.estimate.suspects import suspects, told_classes
from bif.kernel.clustering import clusters, linkage_of_means

if TYPE_CHECKING:
    import xarray as xr


def describe(
    kernel: LossKernel, *, count: int = 15, label: str | None = None
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return each item's neighbours and how far they can be trusted, and the figures of all.

    Args:
        kernel: Of at least two chains.
        count: Neighbours of an item; all others where there are fewer.
        label: Which of the items' labels classes are, as for `suspects`.

    Returns:
        A dataset with `neighbour` (positions) and `correlation` `[item, rank]`; `kept`: the share
        of an item's neighbours that both halves of the chains name, and `stable`: whether that is
        more than chance gives, at 1 % of false alarms; `cluster` `[item]`, and what `suspects` has.
        With classes `class_correlation` and its standard error `[class, other_class]`, and how
        average linkage joins classes, `class_join` `[join, part]`.  And figures: items, draws,
        chains, the mean of `kept`, what it is by chance and by what is near to all, the share of
        stable items, clusters and their agreement between halves, duplicates, and the mean
        correlations within and across classes.

    Raises:
        KeyError: No such labels.
        ValueError: Fewer than two items or chains; losses that never move; too many classes.
    """
    import xarray as xr

    refuse_without_chains(kernel, "descriptions")
    labels = told_classes(kernel, label)
    if len(kernel) < 2 or not bool((kernel.variance > 0).any()):
        raise ValueError(
            f"of {len(kernel)} items no loss moves with another: expected two items or more, and a "
            "loss that is not the same at all draws. Look at what is sampled: which weights move, "
            "and the step size."
        )
    count = min(count, len(kernel) - 1)
    found = find_neighbours(kernel, count)
    stability = neighbour_stability(kernel, count)
    dataset = xr.Dataset(
        {
            "neighbour": (("item", "rank"), found.places),
            "correlation": (("item", "rank"), found.values),
            "kept": ("item", stability.kept),
            "stable": ("item", stability.stable),
        },
        coords={"item_id": ("item", np.array(kernel.ids))},
    )
    dataset = dataset.assign(suspects(kernel, label=label, neighbours=found).data_vars)
    figures = _of_all(kernel, found, stability)
    figures["items_with_a_duplicate"] = int(dataset["is_duplicate"].sum())
    if len(kernel) > 2:
        groups = clusters(kernel)
        dataset["cluster"] = ("item", groups.labels)
        figures |= {"clusters": groups.count, "cluster_agreement": groups.agreement}
    if labels is not None:
        blocks, about = _classes(kernel, labels)
        dataset, figures = dataset.merge(blocks), figures | about
    return dataset, figures


def _of_all(kernel: LossKernel, found: Neighbours, stability: Stability) -> dict[str, Any]:
    count = found.places.shape[1]
    return {
        "items": len(kernel),
        "draws": len(kernel.chains),
        "chains": len(kernel.chains.unique()),
        "neighbours": count,
        "recall": found.recall,
        "neighbours_kept": float(stability.kept.mean()),
        "kept_by_chance": count / (len(kernel) - 1),
        "kept_by_hubs": float(stability.by_hubs.mean()),
        "items_with_stable_neighbours": float(stability.stable.mean()),
        "items_that_never_move": int((kernel.variance == 0).sum()),
    }


def top_suspects(dataset: xr.Dataset, count: int = 3) -> dict[str, str]:
    """Return the items that stand out most, in words, by what they stand out.

    Args:
        dataset: Of `describe`.
        count: Items of each list.
    """
    ids = dataset["item_id"].values.astype(str)

    def first(values: np.ndarray) -> list[int]:
        order = np.argsort(values, kind="stable")  # NaN last
        return [int(i) for i in order[:count] if np.isfinite(values[i])]

    found = {"largest_variance": ", ".join(ids[first(-dataset["loss_variance"].values)])}
    if "class_margin" in dataset:
        found["lowest_class_margin"] = ", ".join(
            f"{ids[i]} ({dataset['item_class'].values[i]}, moves against "
            f"{dataset['moves_against'].values[i]})"
            for i in first(dataset["class_margin"].values)
        )
    twins = np.flatnonzero(dataset["is_duplicate"].values)[:count]
    if len(twins):
        found["duplicates"] = ", ".join(
            f"{ids[i]} of {ids[dataset['twin'].values[i]]}" for i in twins
        )
    return found


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
            "class_join": (("join", "part"), linkage_of_means(means)),
            "item_class": ("item", np.array(labels)),
        },
        coords={"class": names, "other_class": names},
    )

    def of_kinds(kernel: LossKernel) -> np.ndarray:
        found = kernel.class_blocks(labels)[1]
        within = found[own][np.isfinite(found[own])]  # classes of two items and more
        return np.array([within.mean() if len(within) else np.nan, found[~own].mean()])

    values, spread = kernel.jackknife(of_kinds)
    figures = {}
    for name, value, error in zip(("within", "across"), values, spread, strict=True):
        figures[f"{name}_classes"] = float(value)
        figures[f"{name}_classes_error"] = float(error)
    return blocks, figures
