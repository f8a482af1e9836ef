"""Maps of the studies' kernels: a page to explore, and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom

from benchmarks.common import print_table, write
from benchmarks.kernel import images
from benchmarks.kernel.plan import Plan
from benchmarks.kernel.stored import Bundle, read
from bif import Items
from bif.kernel import FeatureKernel, layout, layout_stability
from bif.report.map_source import Frame, ItemMap

_NEIGHBOUR = "neighbour by "
_FALSE_ALARMS = 0.01
"""Items of noise, as a share, that are not drawn grey."""


def draw(traces: Path, arguments: argparse.Namespace) -> None:
    """Write `map-NETWORK.html` and `.png` for every network whose first seed has rows of a map.

    How many of the neighbours have an item's own label is in `kernel-maps-DATE.json`.
    """
    out, rows = arguments.out, []
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(traces.glob("*.npz")):
        bundle = read(path)
        for row in bundle.rows:
            arrays = bundle.of(row["name"])
            if "rows" not in arrays:
                continue
            made = _map(row, arrays, _items(bundle, arguments.data))
            place = out / f"map-{row['network']}"
            place.with_suffix(".html").write_text(made.page(), encoding="utf-8")
            place.with_suffix(".png").write_bytes(made.figure("png"))
            rows += [{"network": row["network"], "figure": name, "value": value}
                     for name, value in made.figures.items()]  # fmt: skip
    print_table(rows)
    write("kernel-maps", arguments, rows)


def _items(bundle: Bundle, data: Path) -> Items:
    plan = Plan(**bundle.about["plan"])
    found = images.read(data, bundle.about["study"], plan.train, plan.items, "cpu")
    return found.train if found.others is None else found.others


def _map(row: dict[str, Any], arrays: dict[str, np.ndarray], items: Items) -> ItemMap:
    ids = tuple(map(str, items.ids))
    assert items.labels is not None
    labels = tuple(map(str, items.labels))
    kernel = FeatureKernel(torch.from_numpy(arrays["rows"]).float(), ids, {"label": labels})
    neighbours = arrays["neighbour"].astype(np.int64), arrays["correlation"]
    places = [layout(kernel, "umap", neighbours=neighbours, seed=seed) for seed in range(2)]
    kept, loss = arrays["kept"], arrays["center_loss"] + arrays["mean_loss_gain"]
    frame = Frame(
        "", {"umap": places[0], "pca": layout(kernel, "pca")}, *neighbours, loss,
        arrays["loss_variance"], kept, _stable(neighbours[0], kept),
    )  # fmt: skip
    others = {
        name.removeprefix(_NEIGHBOUR): found.astype(np.int64)
        for name, found in arrays.items()
        if name.startswith(_NEIGHBOUR)
    }
    pixels = images.inputs_and_classes(items)[0].flatten(1)
    pixels = FeatureKernel(pixels - pixels.mean(dim=0), ids, {})
    others["pixels"] = pixels.nearest(neighbours[0].shape[1])[0]
    figures = {
        "kept": float(kept.mean()),
        "umap_keeps_neighbours": float(layout_stability(*places).mean()),
        **{f"own class by {name}": _own_class(found, labels) for name, found in others.items()},
        "own class by loss": _own_class(neighbours[0], labels),
    }
    return ItemMap(
        ids, {"label": labels}, "label", None, items.images, (frame,), others,
        tuple(row["failed_gates"]), figures,
    )  # fmt: skip


def _stable(neighbours: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return which items keep more neighbours than by chance, as `neighbour_stability` has it.

    How often an item is in a list is counted in those of the whole run.
    """
    count, lists = neighbours.shape[1], np.bincount(neighbours.ravel(), minlength=len(neighbours))
    by_hubs = np.minimum(lists[neighbours].mean(axis=1) / (len(neighbours) - 1), 1.0)
    tail = binom.sf(np.round(kept * count) - 1, count, by_hubs)
    return np.asarray(tail) <= _FALSE_ALARMS


def _own_class(neighbours: np.ndarray, labels: tuple[str, ...]) -> float:
    """Return the share of neighbours with the item's own label."""
    known = np.array(labels)
    return float((known[neighbours] == known[:, None]).mean())
