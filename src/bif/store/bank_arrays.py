"""The arrays of a part of a bank: they grow by seeds and by subsets.

`outcome` is NaN where a network is still to be trained: the array is its own record of how far the
bank has come. Chunks are checksummed and written whole, so one that is missing or damaged costs
the networks that it held and no others. `check` binds every network to its bank, seed and subset.
Everything else follows from the problem and the plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.store.folder import DamagedRun, Folder, FolderInUse, name_damage, name_failures
from bif.store.results import open_array, read_json

BANK_ARRAYS = "bank.zarr"
"""Zarr folder of a bank's arrays."""
_AXES = ("observable", "seed", "subset", "query")
"""Axes of the outcomes."""
_SMALL = {"mask": 2, "seed": 1, "observable": 1, "train_id": 1, "query_id": 1}
"""Number of axes of the arrays that are one chunk each."""


@dataclass(frozen=True, eq=False)
class BankLayout:
    """The axes that a part's arrays are to have.

    Attributes:
        observables: Names, [A].
        seeds: [S]; those that are there already come first.
        masks: bool [M, N]; those that are there already come first.
        train_ids: [N].
        query_ids: [Q].
        networks_per_chunk: Subsets of one seed that are stored together.
    """

    observables: list[str]
    seeds: list[int]
    masks: np.ndarray
    train_ids: list[str]
    query_ids: list[str]
    networks_per_chunk: int


class BankPartStore:
    """The arrays of one part.

    Args:
        folder: The bank's folder, held by this process.
        part: "reported" or "tuning".
        layout: Layout to which the arrays are made, lengthened or mended.
        token: The bank's own.

    Raises:
        FolderInUse: The networks that are there were trained on other subsets.
    """

    def __init__(self, folder: Folder, part: str, layout: BankLayout, *, token: str) -> None:
        self._folder, self._place = folder, f"{BANK_ARRAYS}/{part}"
        self._layout, self._part = layout, f"{token}/{part}"
        self._make_groups(part)
        self._refuse_other_masks()
        self._keep("mask", layout.masks, ("subset", "train"))
        self._keep("seed", np.asarray(layout.seeds, dtype=np.int64), ("seed",))
        for name, texts, axis in (
            ("observable", layout.observables, "observable"),
            ("train_id", layout.train_ids, "train"),
            ("query_id", layout.query_ids, "query"),
        ):
            self._keep(name, np.asarray(texts, dtype=object), (axis,))
        per_chunk, (num_subsets, _) = layout.networks_per_chunk, layout.masks.shape
        a, s, q = len(layout.observables), len(layout.seeds), len(layout.query_ids)
        self._outcome = self._lengthen(
            "outcome", (a, s, num_subsets, q), (a, 1, per_chunk, q), _AXES
        )
        self._seconds = self._lengthen("seconds", (s, num_subsets), (1, per_chunk), _AXES[1:3])
        self._check = self._lengthen(
            "check", (s, num_subsets, 2), (1, per_chunk, 2), (*_AXES[1:3], "checked"), kind=np.int64
        )

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return outcomes [A, S, M, Q] and seconds [S, M], NaN where there is no network.

        Chunks that cannot be read are removed, and networks that are not what was written there
        are none.
        """
        outcome = self._read_chunks(self._outcome, "outcome")
        seconds = self._read_chunks(self._seconds, "seconds")
        check = self._read_chunks(self._check, "check")
        fine = check == self._checks(outcome, seconds)
        outcome[:, ~fine[..., 0]] = seconds[~fine[..., 1]] = np.nan
        return outcome, seconds

    def _checks(
        self, outcome: np.ndarray, seconds: np.ndarray, *, seed: int = 0, subset: int = 0
    ) -> np.ndarray:
        """Return the checks of networks [A, S, M, Q] from these positions on, [S, M, 2]."""
        layout = self._layout
        return network_checks(
            outcome,
            seconds,
            part=self._part,
            seeds=layout.seeds[seed : seed + outcome.shape[1]],
            masks=layout.masks[subset : subset + outcome.shape[2]],
            names=[layout.observables, layout.train_ids, layout.query_ids],
        )

    def write(self, seed: int, subset: int, outcome: np.ndarray, seconds: float) -> None:
        """Keep networks of one seed and consecutive subsets, durably.

        Args:
            seed: The position of the seed.
            subset: The position of the first subset.
            outcome: [A, G, Q].
            seconds: Seconds of each network.

        Raises:
            OSError: They cannot be written; what was there stays.
        """
        stop, per_chunk = subset + outcome.shape[1], self._layout.networks_per_chunk
        chunks = range(subset // per_chunk, -(-stop // per_chunk))
        files = [_chunk(f"{self._place}/outcome", (0, seed, k, 0)) for k in chunks]
        files += [_chunk(f"{self._place}/seconds", (seed, k)) for k in chunks]
        files += [_chunk(f"{self._place}/check", (seed, k, 0)) for k in chunks]
        for file in files:  # a link that leads elsewhere is refused
            self._folder.is_file(file)
        check = self._checks(
            outcome[:, None], np.full((1, outcome.shape[1]), seconds), seed=seed, subset=subset
        )
        with name_failures(f"{self._folder}/{self._place}"):
            self._seconds[seed, subset:stop] = seconds
            self._check[seed, subset:stop] = check[0]
            self._outcome[:, seed, subset:stop] = outcome
            self._folder.synchronise(files)
        self._folder.renew()

    def _make_groups(self, part: str) -> None:
        import zarr

        titles: dict[str, Any] = {"purpose": part, "coordinates": "train_id query_id"}
        for name, attributes in ((BANK_ARRAYS, {}), (self._place, titles)):
            try:
                _refuse_foreign_group(self._folder, name)
                if self._folder.is_file(f"{name}/zarr.json"):
                    with name_damage(name):
                        zarr.open_group(self._folder.zarr(name), mode="r", zarr_format=3)
            except DamagedRun:
                self._folder.remove(f"{name}/zarr.json")
            zarr.open_group(
                self._folder.zarr(name), mode="a", zarr_format=3, attributes=attributes or None
            )

    def _refuse_other_masks(self) -> None:
        """Raise where networks are on other subsets than the plan's."""
        try:
            there = self._small("mask")
        except (DamagedRun, FileNotFoundError):
            return  # made anew
        common = min(len(there), len(self._layout.masks))
        if not np.array_equal(there[:common], self._layout.masks[:common]):
            raise FolderInUse(
                f"{self._folder}/{self._place} holds networks of other subsets than this plan "
                "draws, although everything else agrees: more reported subsets would now meet "
                "those of the tuning part, or another version of numpy draws others. Choose "
                "another folder."
            )

    def _keep(self, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
        """Write a small array that follows from the problem and the plan, where it differs."""
        with contextlib.suppress(DamagedRun, FileNotFoundError):
            there = self._small(name)
            if there.shape == values.shape and (there == values).all():
                return
        place = f"{self._place}/{name}"
        self._folder.remove(place)
        array = self._made(
            name,
            shape=values.shape,
            chunks=tuple(max(1, n) for n in values.shape),
            dtype=str if values.dtype == object else values.dtype,
            dimension_names=dimensions,
        )
        array[...] = values
        self._folder.synchronise(
            [f"{place}/zarr.json", _chunk(place, tuple(0 for _ in values.shape))]
        )

    def _small(self, name: str) -> np.ndarray:
        values = self._open_array(name)[...]
        return values if values.dtype.kind in "biuf" else values.astype(object)

    def _open_array(self, name: str) -> Any:
        array = open_array(self._folder, f"{self._place}/{name}")
        if name in _SMALL:
            refuse_missing_chunk(self._folder, self._place, name)
            with name_damage(f"{self._place}/{name}"):
                array[...]  # to be read whole
        return array

    def _made(self, name: str, **layout: Any) -> Any:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        return zarr.create_array(
            self._folder.zarr(f"{self._place}/{name}"),
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
            zarr_format=3,
            **layout,
        )

    def _lengthen(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dims: tuple[str, ...],
        kind: type[np.generic] = np.float64,
    ) -> Any:  # fmt: skip
        """Return an array of this shape; its metadata are mended, its chunks stay."""
        place = f"{self._place}/{name}"
        try:
            array = self._open_array(name)
            if (array.chunks, array.dtype, array.metadata.dimension_names) != (
                chunks, np.dtype(kind), dims,
            ):  # fmt: skip
                raise DamagedRun(f"{place} is no array of a bank.")
        except FileNotFoundError:
            pass
        except DamagedRun:
            self._folder.remove(f"{place}/zarr.json")
        else:
            if array.shape != shape:
                array.resize(shape)
            return array
        array = self._made(
            name,
            shape=shape,
            chunks=chunks,
            dtype=kind,
            fill_value=0 if kind is np.int64 else float("nan"),
            dimension_names=dims,
        )
        self._folder.synchronise([f"{place}/zarr.json"])
        return array

    def _read_chunks(self, array: Any, name: str) -> np.ndarray:
        try:
            with name_damage(name):
                return np.asarray(array[...])
        except DamagedRun:  # which chunk?
            values = np.full(array.shape, array.fill_value, dtype=array.dtype)
        sides = list(zip(array.shape, array.chunks, strict=True))
        for position in np.ndindex(*(-(-length // side) for length, side in sides)):
            part = tuple(
                slice(p * c, (p + 1) * c) for p, c in zip(position, array.chunks, strict=True)
            )
            try:
                with name_damage(name):
                    values[part] = array[part]
            except DamagedRun:
                self._folder.remove(_chunk(f"{self._place}/{name}", position))
        return values


def network_checks(
    outcome: np.ndarray,
    seconds: np.ndarray,
    *,
    part: str,
    seeds: Sequence[int],
    masks: np.ndarray,
    names: Sequence[Sequence[str]],
) -> np.ndarray:
    """Return what binds networks to their places, int64 [S, M, 2]; 0 only where none is.

    The last axis is of outcomes and of seconds, which may be lost without the network.

    Args:
        outcome: [A, S, M, Q].
        seconds: [S, M].
        part: The bank's token and the part.
        seeds: [S].
        masks: bool [M, N].
        names: Names of observables, train items and queries.
    """
    common = hashlib.sha256(json.dumps([part, *map(list, names)]).encode())
    found = np.zeros((*seconds.shape, 2), dtype=np.int64)
    for m, mask in enumerate(masks):
        of_subset = common.copy()
        of_subset.update(np.packbits(np.asarray(mask, dtype=bool)).tobytes())
        for s, seed in enumerate(seeds):
            for kind, values in enumerate((outcome[:, s, m], seconds[s, m])):
                one = of_subset.copy()
                one.update(f"{seed}|{kind}|{values.dtype.str}".encode())
                one.update(np.ascontiguousarray(values).tobytes())
                found[s, m, kind] = int.from_bytes(one.digest()[:8], "little", signed=True) | 1
    return found


def refuse_missing_chunk(folder: Folder, group: str, *names: str) -> None:
    """Raise DamagedRun where the one chunk of a small array is gone: it would read as zeros."""
    for name in names or _SMALL:
        chunk = _chunk(f"{group}/{name}", (0,) * _SMALL[name])
        if not folder.size(chunk):
            raise DamagedRun(f"{folder}/{chunk} is missing or empty.")


def _refuse_foreign_group(folder: Folder, name: str) -> None:
    """Raise DamagedRun where a group's metadata are there and no group's of the third format."""
    place = f"{name}/zarr.json"
    if folder.is_file(place):
        found = read_json(folder, place)
        if (found.get("zarr_format"), found.get("node_type")) != (3, "group"):
            raise DamagedRun(f"{folder}/{place} is no group of zarr's third format.")


def _chunk(place: str, position: tuple[int, ...]) -> str:
    """Return the file of a chunk."""
    return "/".join([place, "c", *map(str, position)])
