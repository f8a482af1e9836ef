"""Make a map of a loss kernel's items, or of them at several checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.estimate.neighbours import kept_share
from bif.kernel.described import describe
from bif.kernel.layout import (
    LayoutKind,
    layout,
    layout_stability,
    nearest_in_plane,
)
from bif.report.map_source import Frame, ItemMap

if TYPE_CHECKING:
    import xarray as xr

_TEXTS = ("tokens", "text")
"""Labels that are the items themselves: the pieces of a text in JSON, or a text."""


def item_map(
    kernel: LossKernel,
    *,
    described: xr.Dataset | None = None,
    label: str | None = None,
    layouts: Sequence[LayoutKind] = ("umap", "pca"),
    others: Mapping[str, np.ndarray] | None = None,
    pictures: np.ndarray | None = None,
    failed_gates: Sequence[str] = (),
    after: ItemMap | None = None,
    num_seeds: int = 2,
    seed: int = 0,
) -> ItemMap:
    """Return a map of a loss kernel's items.

    Its `figures` are, for each layout, `NAME_shows_neighbours`: the share of an item's nearest
    items by the kernel that are among as many nearest in the plane; and with several seeds
    `umap_keeps_neighbours`: the share of the nearest in the plane that another seed keeps.  By
    chance both are `k / (N - 1)`.

    Args:
        kernel: Of three items and two chains or more.
        described: What `describe` has said of it; by default it is asked.
        label: Which of the items' labels classes are; "label" if there is one.
        layouts: The one shown first first.
        others: Positions of each item's nearest by other measures, `[N, k]`, by their names: shown
            beside those of the kernel.
        pictures: Of the items, as `pictures_of` returns them.
        failed_gates: Of the run, if it is not trusted.
        after: Map of the checkpoint before, at whose places UMAP begins.
        num_seeds: Seeds of UMAP, each compared with the first.
        seed: Of the map.

    Raises:
        KeyError: No such label.
        ValueError: Fewer than three items; no layout; fewer than one seed; a kernel without
            chains; neighbours, pictures, a description or an earlier map of other items.
        ImportError: umap-learn is missing (extra `maps`).
    """
    refuse_without_chains(kernel, "maps of items")
    if num_seeds < 1 or not layouts:
        raise ValueError(f"{num_seeds} seeds and {len(layouts)} layouts, expected one or more.")
    if after is not None and list(after.ids) != list(kernel.ids):
        raise ValueError("the map before is of other items: expected one of the same, in order.")
    if label is not None:
        kernel.labels_of(label)
    found = describe(kernel, label=label)[0] if described is None else described
    if found["item_id"].values.tolist() != list(kernel.ids):
        raise ValueError("other items are described: expected those of the kernel, in order.")
    neighbours = found["neighbour"].values, found["correlation"].values
    begin = None if after is None else after.frames[-1].places.get("umap")
    of_seeds = [
        layout(kernel, "umap", neighbours=neighbours, start=begin, seed=seed + k)
        for k in range(num_seeds if "umap" in layouts else 0)
    ]
    places = {kind: of_seeds[0] if kind == "umap" else layout(kernel, kind) for kind in layouts}
    frame = Frame(
        "", places, *neighbours, kernel.losses.double().mean(dim=1).numpy(),
        kernel.variance.numpy(), found["kept"].values, found["stable"].values,
    )  # fmt: skip
    return ItemMap(
        kernel.ids,
        {n: some for n, some in kernel.labels.items() if n == label or n not in _TEXTS},
        label or ("label" if "label" in kernel.labels else None),
        _texts(kernel), pictures, (frame,), dict(others or {}), tuple(failed_gates),
        _figures(frame, of_seeds),
    )  # fmt: skip


def map_series(maps: Mapping[str, ItemMap]) -> ItemMap:
    """Return maps of the same items at several checkpoints as one, by the checkpoints' names.

    Each layout is turned and mirrored to fit that before, so that clusters stay where they are.
    What is not of a checkpoint is the last map's; a gate is failed that one of them fails.

    Raises:
        ValueError: No maps, other items or layouts.
    """
    several = list(maps.values())
    if not several or any(list(m.ids) != list(several[-1].ids) for m in several):
        raise ValueError(f"{len(several)} maps, expected one or more of the same items, in order.")
    frames: list[Frame] = []
    for name, one in maps.items():
        frame = one.frames[-1]
        if frames and list(frames[-1].places) == list(frame.places):
            turned = {k: _turned(found, frames[-1].places[k]) for k, found in frame.places.items()}
            frame = replace(frame, places=turned)
        frames.append(replace(frame, name=name))
    gates = dict.fromkeys(gate for m in several for gate in m.failed_gates)
    return replace(several[-1], frames=tuple(frames), failed_gates=tuple(gates))


def _turned(places: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return places `[N, 2]` turned, mirrored and moved to fit those before, at their own scale."""
    from scipy.linalg import orthogonal_procrustes

    middle = places.mean(axis=0)
    turn, _ = orthogonal_procrustes(places - middle, before - before.mean(axis=0))
    return ((places - middle) @ turn + before.mean(axis=0)).astype(np.float32)


def _texts(kernel: LossKernel) -> list[str] | None:
    """Return the items' texts, where they are texts."""
    if "tokens" in kernel.labels:
        return [_joined(pieces) for pieces in kernel.labels["tokens"]]
    return list(kernel.labels["text"]) if "text" in kernel.labels else None


def _joined(pieces: str) -> str:
    """Return a text from a JSON list of its pieces; what is no such list is the text itself."""
    try:
        found = json.loads(pieces)
    except ValueError:
        return pieces
    known = isinstance(found, list) and all(isinstance(piece, str) for piece in found)
    return "".join(found) if known else pieces


def _figures(frame: Frame, of_seeds: Sequence[np.ndarray]) -> dict[str, float]:
    count = frame.neighbours.shape[1]
    figures = {
        f"{name}_shows_neighbours": float(
            kept_share(frame.neighbours, nearest_in_plane(places, count)).mean()
        )
        for name, places in frame.places.items()
    }
    if len(of_seeds) > 1:
        kept = [layout_stability(of_seeds[0], other, count=count) for other in of_seeds[1:]]
        figures["umap_keeps_neighbours"] = float(np.mean(kept))
    return figures
