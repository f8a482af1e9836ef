"""Lay items out in the plane, so that what a loss kernel calls alike is near."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch

from bif.estimate.item_kernel import ItemKernel
from bif.estimate.neighbours import kept_share
from bif.estimate.parallel import threads_of_torch
from bif.extras import needs_extra

LayoutKind = Literal["umap", "pca"]
_WIDE = 10.0
"""Half the width of the places that UMAP starts from: its own."""
_NOISE = 1e-4
"""Standard deviation of what is added to them, so that items of one trace come apart."""
_EXACT = 4096
"""Items, or draws, up to which a spectrum is computed whole."""


def layout(
    kernel: ItemKernel,
    method: LayoutKind = "umap",
    *,
    neighbours: tuple[np.ndarray, np.ndarray] | None = None,
    count: int = 15,
    start: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return a place in the plane for each item, `[N, 2]` float32.

    `"pca"`: the first two principal components of the embedding `X / |X|`, whose inner products are
    the correlations `R`.  The same for every seed.  `"umap"`: UMAP of the neighbours, at distance
    `sqrt(2 - 2 R)`, which is that of the embedding; it begins with the principal components.

    Args:
        kernel: Of three items or more.
        method: Of the two.
        neighbours: For UMAP: positions and correlations of each item's nearest, `[N, k]`, as
            `LossKernel.nearest` returns them; by default those of the kernel.
        count: Neighbours by default, at most all others.
        start: For UMAP: places to begin with, `[N, 2]`, such as those of the checkpoint before.
        seed: Of UMAP.

    Raises:
        ValueError: Fewer than three items; neighbours or places of another shape; an unknown
            method.
        ImportError: umap-learn is missing (extra `maps`).

    Source: McInnes, Healy & Melville 2018, arXiv 1802.03426; begun with principal components as in
    Kobak & Linderman 2021, "Initialization is critical for preserving global data structure".
    """
    if len(kernel) < 3:
        raise ValueError(f"a map needs three items, and the kernel has {len(kernel)}.")
    if method == "pca":
        return _principal(kernel, seed)
    if method != "umap":
        raise ValueError(f"no layout {method!r}: expected 'umap' or 'pca'.")
    places, values = _neighbours(kernel, neighbours, count)
    begin = _principal(kernel, seed) if start is None else np.asarray(start, np.float32)
    if begin.shape != (len(kernel), 2):
        raise ValueError(f"start is {begin.shape}, expected ({len(kernel)}, 2): a place an item.")
    return _umap(places, values, begin, seed)


def layout_stability(first: np.ndarray, second: np.ndarray, *, count: int = 15) -> np.ndarray:
    """Return which share of its nearest items in the plane each keeps in another layout, `[N]`.

    By chance it is `count / (N - 1)`, with all other items as `count` where there are fewer.

    Args:
        first: Places, `[N, 2]`.
        second: Of the same items, such as by another seed.
        count: Nearest items.

    Raises:
        ValueError: Other shapes; fewer than two items.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(
            f"layouts are {first.shape} and {second.shape}, expected [N, 2] of the same two items "
            "or more."
        )
    return kept_share(nearest_in_plane(first, count), nearest_in_plane(second, count))


def nearest_in_plane(places: np.ndarray, count: int = 15) -> np.ndarray:
    """Return positions of the items that are nearest to each in the plane, `[N, k]`."""
    from scipy.spatial import KDTree

    count = min(count, len(places) - 1)
    found = np.asarray(KDTree(places).query(places, k=count + 1)[1])
    # Where items share a place, an item need not be the first of its own nearest.
    own = found == np.arange(len(places))[:, None]
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(places), count)


def _neighbours(
    kernel: ItemKernel, given: tuple[np.ndarray, np.ndarray] | None, count: int
) -> tuple[np.ndarray, np.ndarray]:
    if given is None:
        return kernel.nearest(min(count, len(kernel) - 1))
    places, values = (np.asarray(part) for part in given)
    wanted = places.ndim == 2 and len(places) == len(kernel) and places.shape[1] > 0
    if not wanted or places.shape != values.shape:
        raise ValueError(
            f"neighbours are {places.shape} and {values.shape}, expected positions and "
            f"correlations [{len(kernel)}, k] as LossKernel.nearest returns them."
        )
    if places.min() < 0 or places.max() >= len(kernel):
        raise ValueError(
            f"neighbours are {places.min()} to {places.max()}, expected positions of "
            f"{len(kernel)} items."
        )
    return places, values


def _principal(kernel: ItemKernel, seed: int) -> np.ndarray:
    """Return the first two principal components of the embedding, `[N, 2]`."""
    x = kernel.embedding()
    x = x - x.mean(dim=0)
    if min(x.shape) > _EXACT:
        with torch.random.fork_rng(devices=[]):  # torch's own has no generator of its own
            torch.manual_seed(seed)
            left, singular, _ = torch.svd_lowrank(x, q=12, niter=8)
        found = (left * singular)[:, :2].double()
    elif x.shape[0] <= x.shape[1]:
        values, vectors = torch.linalg.eigh((x @ x.T).double())
        found = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh((x.T @ x).double())
        found = (x @ vectors[:, -2:].flip(1).to(x)).double()
    if found.shape[1] < 2:
        found = torch.nn.functional.pad(found, (0, 2 - found.shape[1]))
    largest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    return (found * torch.where(largest < 0, -1.0, 1.0)).float().numpy()


def _umap(places: np.ndarray, values: np.ndarray, begin: np.ndarray, seed: int) -> np.ndarray:
    with needs_extra("maps", "UMAP needs umap-learn"):
        from umap import UMAP

    own = np.arange(len(places))[:, None]
    places, values = places[:, : len(places) - 2], values[:, : len(places) - 2]  # with own, N - 1
    indices = np.hstack([own, places]).astype(np.int64)
    distances = np.sqrt(np.clip(2 - 2 * values, 0, None))
    distances = np.hstack([np.zeros_like(own), distances]).astype(np.float32)
    source = np.random.default_rng(seed)
    begin = _WIDE * begin / max(float(np.abs(begin).max()), 1e-12)
    begin = begin + source.normal(scale=_NOISE, size=begin.shape)
    with threads_of_torch(), warnings.catch_warnings():
        # Nothing is transformed later, so that no index of a search is needed.
        warnings.filterwarnings("ignore", message="precomputed_knn")
        made = UMAP(
            n_neighbors=indices.shape[1], precomputed_knn=(indices, distances),
            init=begin.astype(np.float32),  # pyright: ignore[reportArgumentType]
            random_state=seed, n_jobs=1,
        )  # fmt: skip
        return np.asarray(made.fit_transform(begin), dtype=np.float32)
