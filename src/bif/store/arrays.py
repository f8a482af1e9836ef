"""Arrays `[C, D, …]` of one block of chains that grow by draws.

Zarr, third format: shards of whole draws, checksummed and compressed chunks inside.  A shard is
written in one piece, so draws that were there stay there whatever happens to the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from bif.store.folder import DamagedRun, Folder
from bif.store.results import refuse_foreign_zarr

_CHUNK_BYTES, _SHARD_BYTES = 2 * 2**20, 32 * 2**20
_DRAWS = 1  # the axis along which everything grows


class DrawArrays:
    """The arrays of one zarr group, all of the same chains and draws.

    Args:
        folder: Where.
        name: The group's name, such as `traces.zarr/block-000`.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._open: dict[str, Any] = {}

    def names(self) -> list[str]:
        """What there is; nothing that cannot be opened."""
        return sorted(
            n for n in self._folder.names(self._name) if self._folder.is_folder(f"{self._name}/{n}")
        )

    def length(self, name: str) -> int:
        """Draws in an array; 0 if it is missing or cannot be opened."""
        try:
            return self._opened(name).shape[_DRAWS]
        except (DamagedRun, FileNotFoundError):
            return 0

    def append(self, arrays: Mapping[str, np.ndarray], *, start: int) -> None:
        """Write draws `start, start + 1, …`; whatever was there from `start` on is replaced.

        Args:
            arrays: Names to `[C, d, …]`.
            start: At most the array's length.
        """
        written = []
        for name, values in arrays.items():
            array = self._opened_or_made(name, values)
            stop = start + values.shape[_DRAWS]
            shape = array.shape
            if shape[_DRAWS] < start:
                raise DamagedRun(
                    f"{self._name}/{name} holds {shape[_DRAWS]} draws, expected {start} or more."
                )
            shards = self._shards(array, name, start, stop)
            for shard in shards:  # a link that leads elsewhere is refused
                self._folder.is_file(shard)
            array.resize((shape[0], stop, *shape[2:]))
            array[:, start:stop] = values
            written += [f"{self._name}/{name}/zarr.json", *shards]
        self._folder.synchronise(written)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Draws of one array, `[C, stop - start, …]`.

        Raises:
            DamagedRun: They are not all there, or not as they were written.
        """
        return self._read(self._opened(name), name, start, stop)

    def good_length(self, name: str, stop: int) -> int:
        """The number of draws up to which everything can be read, at most `stop`."""
        try:
            array = self._opened(name)
        except (DamagedRun, FileNotFoundError):
            return 0
        stop = good = min(stop, array.shape[_DRAWS])
        for step in (array.shards[_DRAWS], array.chunks[_DRAWS]):  # which shard, which chunk in it
            begin = good // step * step if good < stop else 0
            for start in range(begin, stop, step):
                good = min(start + step, stop)
                try:
                    self._read(array, name, start, good)
                except DamagedRun:
                    good = start
                    break
            if good == stop:
                break
        return good

    def cut(self, num_draws: int) -> None:
        """Drop everything from draw `num_draws` on, damaged shards included."""
        self._open.clear()
        for name in self.names():
            try:
                array = self._opened(name)
            except DamagedRun:
                self._folder.remove(f"{self._name}/{name}")
                continue
            shape, draws = array.shape, array.shards[_DRAWS]
            if shape[_DRAWS] <= num_draws:
                continue
            whole = num_draws // draws * draws
            kept = self.read(name, whole, num_draws)
            array.resize((shape[0], whole, *shape[2:]))  # removes the shards from there on
            if num_draws > whole:
                self.append({name: kept}, start=whole)

    def remove(self, name: str) -> None:
        """Remove an array."""
        self._open.pop(name, None)
        self._folder.remove(f"{self._name}/{name}")

    def _read(self, array: Any, name: str, start: int, stop: int) -> np.ndarray:
        if array.shape[_DRAWS] < stop:
            raise DamagedRun(
                f"{self._name}/{name} holds {array.shape[_DRAWS]} draws, expected {stop}."
            )
        self._refuse_missing_shards(array, name, start, stop)
        try:
            return np.asarray(array[:, start:stop])
        except MemoryError:
            raise
        except Exception as error:  # whatever a codec says of bytes that are not its own
            raise DamagedRun(f"{self._name}/{name} is damaged: {error}") from error

    def _refuse_missing_shards(self, array: Any, name: str, start: int, stop: int) -> None:
        """A shard that is gone would read as NaN."""
        for shard in self._shards(array, name, start, stop):
            if not self._folder.size(shard):
                raise DamagedRun(f"{shard} is missing or empty.")

    def _shards(self, array: Any, name: str, start: int, stop: int) -> list[str]:
        """The files of some draws."""
        draws, rest = array.shards[_DRAWS], "/0" * (len(array.shape) - 2)
        return [
            f"{self._name}/{name}/c/0/{shard}{rest}"
            for shard in range(start // draws, -(-stop // draws))
        ]

    def _opened(self, name: str) -> Any:
        import zarr

        place = f"{self._name}/{name}"
        if not self._folder.is_file(f"{place}/zarr.json"):
            raise FileNotFoundError(f"{self._folder} has no array {place}.")
        refuse_foreign_zarr(self._folder, place)
        try:
            array = zarr.open_array(self._folder.zarr(place), mode="r+", zarr_format=3)
            fine = array.ndim >= 3 and array.shards is not None and array.dtype.kind in "fiu"
        except Exception as error:
            raise DamagedRun(f"{place} is damaged: {error}") from error
        if not fine:
            raise DamagedRun(f"{place} is no array of draws.")
        return array

    def _opened_or_made(self, name: str, values: np.ndarray) -> Any:
        """The array, made for values of this shape where there is none."""
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        try:
            array = self._open.get(name) or self._opened(name)
        except FileNotFoundError:
            pass
        else:
            self._open[name] = array
            if (array.shape[0], *array.shape[2:]) != (values.shape[0], *values.shape[2:]):
                raise DamagedRun(
                    f"{self._name}/{name} has shape {array.shape}, got draws of {values.shape}."
                )
            return array
        num_chains, _, *rest = values.shape
        size = max(1, num_chains * prod(rest) * values.dtype.itemsize)
        per_chunk = max(1, _CHUNK_BYTES // size)
        per_shard = per_chunk * max(1, _SHARD_BYTES // (size * per_chunk))
        sides = [max(1, n) for n in rest]
        zarr.open_group(self._folder.zarr(self._name), mode="a", zarr_format=3)
        return zarr.create_array(
            self._folder.zarr(f"{self._name}/{name}"),
            shape=(num_chains, 0, *rest),
            chunks=(num_chains, per_chunk, *sides),
            shards=(num_chains, per_shard, *sides),
            dtype=values.dtype,
            compressors=[
                BloscCodec(
                    cname="lz4", clevel=1, shuffle="shuffle", typesize=values.dtype.itemsize
                ),
                Crc32cCodec(),
            ],
            fill_value=float("nan") if values.dtype.kind == "f" else 0,
            dimension_names=_dimensions(name, values.ndim),
            config={"write_empty_chunks": True},
            zarr_format=3,
        )


def _dimensions(name: str, num: int) -> list[str]:
    """chain, draw, and the axes of an item: those of queries start with the observable."""
    kind, _, index = name.partition("-")
    if kind == "train_loss" and num == 3:
        return ["chain", "draw", f"train-{index}"]
    if kind == "query_value" and num == 4:
        return ["chain", "draw", "observable", f"query-{index}"]
    return ["chain", "draw", *(f"{name}.{axis}" for axis in range(num - 2))]
