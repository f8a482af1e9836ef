"""What is kept of a kernel for its agreement with a tree, and for a map."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bif import store
from bif.kernel import ItemKernel
from bif.kernel.class_similarity import Sample

_SEED = 0
"""Of the pairs of items: the same of all kernels, and of their scores."""
MAP_DIMENSIONS = 256
"""Of the rows kept for a map; principal components where there are more."""


@dataclass(frozen=True, eq=False)
class StoredKernel(ItemKernel):
    """The means of classes and the correlations of some pairs, by all chains and without some.

    Attributes:
        ids: Names of the items.
        labels: Of each item.
        blocks: Mean correlations of classes, `[1 + G, C, C]`: by all chains, and without each
            group of them; G is 0 for a kernel without chains.
        codes: `first · N + second` of the pairs of items, rising, `[U]`.
        values: Their correlations, `[1 + G, U]`.
        part: Which of these the kernel is.
    """

    ids: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    blocks: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    part: int = 0

    @property
    def factor(self) -> Tensor:
        self._refuse("rows")

    def of_items(self, items: Sequence[int] | np.ndarray) -> NoReturn:
        self._refuse("a part of the items")

    def class_blocks(
        self, labels: Sequence[str], *, kind: Any = "correlation"
    ) -> tuple[list[str], np.ndarray]:
        return sorted(set(labels)), self.blocks[self.part].astype(float)

    def at_pairs(
        self, first: np.ndarray, second: np.ndarray, *, kind: Any = "correlation"
    ) -> np.ndarray:
        asked = np.asarray(first) * len(self) + np.asarray(second)
        places = np.searchsorted(self.codes, asked)
        if (places == len(self.codes)).any() or (self.codes[places] != asked).any():
            self._refuse("other pairs")
        return self.values[self.part, places].astype(float)

    def jackknife(
        self, statistic: Callable[[StoredKernel], float | np.ndarray], *, num_groups: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        value, count = np.asarray(statistic(self)), len(self.blocks) - 1
        if not count:
            return value, np.full(value.shape, np.nan)
        without = [np.asarray(statistic(replace(self, part=1 + g))) for g in range(count)]
        return value, np.sqrt(np.var(without, axis=0) * (count - 1))

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"a stored kernel has no {what}: take the kernel itself.")


def stored(kernel: ItemKernel, *, pairs: int, label: str = "label") -> dict[str, Any]:
    """Return what `StoredKernel` needs of a kernel, as arrays."""
    labels = kernel.labels_of(label)
    sample = Sample.draw(labels, most=pairs, seed=_SEED)
    i, j, k = sample.item_triplets.T
    both = np.concatenate([sample.item_pairs, np.stack([i, j], 1), np.stack([i, k], 1)])
    codes = np.unique(both[:, 0] * len(kernel) + both[:, 1])
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(one: ItemKernel) -> float:
        first, second = np.divmod(codes, len(kernel))
        found.append((one.class_blocks(labels)[1], one.at_pairs(first, second)))
        return 0.0

    kernel.jackknife(measure)  # which asks for the kernel itself first
    return {
        "blocks": np.stack([blocks for blocks, _ in found]).astype(np.float32),
        "codes": codes.astype(np.int32),  # N² is below 2^31
        "values": np.stack([values for _, values in found]).astype(np.float32),
    }


def rows_of_map(kernel: ItemKernel) -> dict[str, np.ndarray]:
    """Return rows whose inner products are the correlations, `[N, d]` in half precision.

    With more columns than 256 the principal ones, not centred: the nearest kernel of that rank.
    """
    x = kernel.embedding().float()
    if x.shape[1] > MAP_DIMENSIONS:
        values, vectors = torch.linalg.eigh(x.double().T @ x.double())
        x = x @ vectors[:, -MAP_DIMENSIONS:].to(x)
    return {"rows": x.half().numpy()}


class Bundle:
    """Arrays and rows of one study in one file, written anew after every row.

    Args:
        path: The file.
        about: Versions, hardware, seeds and the like.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        if path.exists():
            found = read(path)
            if found.about["plan"] != self.about["plan"]:
                raise ValueError(f"{path} is of another plan: choose another folder for --out.")
            self.rows, self.arrays = found.rows, found.arrays

    def has(self, name: str) -> bool:
        """Return whether a row of this name is there."""
        return any(row["name"] == name for row in self.rows)

    def add(self, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Add a row and its arrays, tell it and write the file."""
        self.rows.append(dict(row))
        self.arrays |= {f"{row['name']}/{name}": array for name, array in arrays.items()}
        told = {k: v for k, v in row.items() if not isinstance(v, list | dict)}
        print(", ".join(f"{k} {_short(v)}" for k, v in told.items()), flush=True)
        self.write()

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add arrays of the study itself."""
        self.arrays |= dict(arrays)

    def of(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of a row."""
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}

    def write(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(store.plain({"about": self.about, "rows": self.rows}))
        part = self.path.with_suffix(".part.npz")
        arrays: Any = {"about": np.array(text), **self.arrays}
        np.savez(part, **arrays)
        os.replace(part, self.path)


def read(path: Path) -> Bundle:
    """Read the file of a study."""
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    text = json.loads(str(arrays.pop("about")))
    made = object.__new__(Bundle)
    made.path, made.about, made.rows, made.arrays = path, text["about"], text["rows"], arrays
    return made


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
