"""Arrays `[C, D, …]` of one block of chains that grow by draws.

Zarr, third format: shards of whole draws, checksummed and compressed chunks inside.  A shard is
written in one piece, so draws that were there stay there whatever happens to the next ones.  A
table has a digest of every chunk's values, by which a chunk is known to be in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bif.store.folder import DamagedRun, Folder, name_damage, name_failures
from bif.store.results import open_array
from bif.store.seals import digest

_CHUNK_BYTES = 2 * 2**20
"""Bytes of a chunk, the smallest part of an array that is read."""
_SHARD_BYTES = 32 * 2**20
"""Bytes of a shard, a file of several chunks."""
_DRAWS = 1
"""The axis of draws, along which arrays grow."""


@dataclass(frozen=True)
class DigestTable:
    """The digests of the values of one array.

    Attributes:
        unit: Draws of one digest; the last digest may have fewer.
        draws: Draws of all digests together.
        digests: The digests, in the order of the draws.
    """

    unit: int
    draws: int
    digests: tuple[str, ...]

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> DigestTable:
        """Return the table of a JSON object.

        Raises:
            ValueError, TypeError, KeyError: It is no table.
        """
        table = cls(
            int(found["unit"]), int(found["draws"]), tuple(str(d) for d in found["digests"])
        )
        if table.unit < 1 or len(table.digests) != -(-table.draws // table.unit):
            raise ValueError("a table of digests does not cover its draws")
        return table

    def extended(self, values: np.ndarray, start: int) -> DigestTable:
        """Return a table with draws `[C, d, …]` from `start` on, a unit's first, replaced."""
        fresh = [
            _digest(values[:, i : i + self.unit]) for i in range(0, values.shape[_DRAWS], self.unit)
        ]
        kept = self.digests[: start // self.unit]
        return DigestTable(self.unit, start + values.shape[_DRAWS], (*kept, *fresh))

    def cut(self, draws: int) -> DigestTable:
        """Return the table of the first draws only, a number of whole units."""
        return DigestTable(self.unit, draws, self.digests[: draws // self.unit])


class DrawArrays:
    """The arrays of one zarr group, all of the same chains and draws.

    It is one class because growing, reading and comparing share the open arrays and the digests.

    Args:
        folder: Folder that holds the group.
        name: The group's name, such as `traces.zarr/block-000`.

    Attributes:
        tables: Digests of every array; None where they are not known and nothing is compared.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._open: dict[str, Any] = {}
        self._last: dict[str, np.ndarray] = {}
        """Values of each array's last unit."""
        self._seen: set[tuple[str, int]] = set()
        """Units that have been compared."""
        self.tables: dict[str, DigestTable] | None = None

    def trust(self, tables: Mapping[str, DigestTable] | None) -> None:
        """Hold what is read from now on against these digests; None: against nothing."""
        self.tables = None if tables is None else dict(tables)
        self._last.clear()
        self._seen.clear()

    def names(self) -> list[str]:
        """Return the names of what is there; nothing that cannot be opened."""
        return sorted(
            n for n in self._folder.names(self._name) if self._folder.is_folder(f"{self._name}/{n}")
        )

    def length(self, name: str) -> int:
        """Return the draws in an array; 0 if it is missing or cannot be opened."""
        try:
            return self._open_array(name).shape[_DRAWS]
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
            place = f"{self._name}/{name}"
            array = self._open_or_make(name, values)
            stop = start + values.shape[_DRAWS]
            shape = array.shape
            if shape[_DRAWS] < start:
                raise DamagedRun(f"{place} holds {shape[_DRAWS]} draws, expected {start} or more.")
            if start:
                self.refuse_missing(name, start, since=start - 1)
            table, unit_values = self._extended(array, name, values, start)
            shards = self._shards(array, name, start, stop)
            for shard in shards:  # a link that leads elsewhere is refused
                self._folder.is_file(shard)
            with name_failures(f"{self._folder}/{place}"):
                array.resize((shape[0], stop, *shape[2:]))
                array[:, start:stop] = values
            self.tables = {**(self.tables or {}), name: table}
            self._last[name] = unit_values
            self._seen = {(n, u) for n, u in self._seen if n != name or u < start // table.unit}
            written += [f"{place}/zarr.json", *shards]
        with name_failures(f"{self._folder}/{self._name}"):
            self._folder.synchronise(written)

    def _extended(
        self, array: Any, name: str, values: np.ndarray, start: int
    ) -> tuple[DigestTable, np.ndarray]:
        """Return the table with new draws, and the values of its last unit."""
        table = (self.tables or {}).get(name) or DigestTable(array.chunks[_DRAWS], 0, ())
        begin = start // table.unit * table.unit
        if begin < start:
            before = self._last.get(name)
            if before is None or table.draws != start:
                before = self.read(name, begin, start)
            values = np.concatenate([before, values], axis=_DRAWS)
        table = table.extended(values, begin)
        open_draws = table.draws % table.unit
        return table, values[:, values.shape[_DRAWS] - open_draws :].copy()

    def refuse_missing(self, name: str, num_draws: int, *, since: int = 0) -> None:
        """Raise unless the files of draws are there that have been written.

        Raises:
            DamagedRun: Somebody has removed one; names it.
        """
        metadata = f"{self._name}/{name}/zarr.json"
        if not self._folder.is_file(metadata):
            raise DamagedRun(
                f"{self._folder}/{metadata} is missing: somebody has removed it while the run was "
                "going on. The same call goes on from what is left."
            )
        array = self._open.get(name) or self._open_array(name)
        self._refuse_missing_shards(array, name, since, num_draws)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return draws of one array, `[C, stop - start, …]`.

        Raises:
            DamagedRun: They are not all there, or not as they were written.
        """
        return self._read(self._open_array(name), name, start, stop)

    def good_length(self, name: str, stop: int) -> int:
        """Return up to which draw everything can be read, at most `stop`."""
        try:
            array = self._open_array(name)
        except (DamagedRun, FileNotFoundError):
            return 0
        stop = min(stop, array.shape[_DRAWS])
        if self.tables is not None:
            table = self.tables.get(name)
            stop = min(stop, table.draws if table else 0)
        good = stop
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
            known = self.tables is None or name in self.tables
            try:
                if not known:  # added, and never entered into a record
                    raise DamagedRun(f"{self._name}/{name} is in no record.")
                array = self._open_array(name)
            except DamagedRun:
                self._folder.remove(f"{self._name}/{name}")
                continue
            shape, draws = array.shape, array.shards[_DRAWS]
            if shape[_DRAWS] <= num_draws:
                continue
            whole = num_draws // draws * draws
            kept = self.read(name, whole, num_draws)
            if self.tables is not None:
                self.tables[name] = self.tables[name].cut(whole)
            self._last.pop(name, None)
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
        table = None if self.tables is None else self.tables.get(name)
        first, last = start, stop
        if self.tables is not None:
            if table is None or table.draws < stop:
                draws = table.draws if table else 0
                raise DamagedRun(
                    f"{self._name}/{name} has {draws} committed draws, expected {stop}."
                )
            first, last = self._whole_units(name, table, start, stop)
        self._refuse_missing_shards(array, name, first, last)
        with name_damage(f"{self._name}/{name}"):
            values = np.asarray(array[:, first:last])
        if table is not None:
            self._compare(name, table, values, first, last)
        return values[:, start - first : values.shape[_DRAWS] - (last - stop)]

    def _whole_units(self, name: str, table: DigestTable, start: int, stop: int) -> tuple[int, int]:
        """Return draws to read so that every unit not compared yet is whole."""
        if start >= stop:
            return start, stop
        first, last = start // table.unit, (stop - 1) // table.unit
        if (name, first) not in self._seen:
            start = first * table.unit
        if (name, last) not in self._seen:
            stop = min((last + 1) * table.unit, table.draws)
        return start, stop

    def _compare(
        self, name: str, table: DigestTable, values: np.ndarray, start: int, stop: int
    ) -> None:
        """Raise where values are not those of the table."""
        for unit in range(start // table.unit, -(-stop // table.unit)):
            if (name, unit) in self._seen:
                continue
            begin = unit * table.unit - start
            if _digest(values[:, begin : begin + table.unit]) != table.digests[unit]:
                raise DamagedRun(
                    f"{self._name}/{name} is damaged: draws from {unit * table.unit} on are not "
                    "what was written there."
                )
            self._seen.add((name, unit))

    def _refuse_missing_shards(self, array: Any, name: str, start: int, stop: int) -> None:
        """Raise where a shard is gone, which would read as NaN."""
        for shard in self._shards(array, name, start, stop):
            if not self._folder.size(shard):
                raise DamagedRun(f"{shard} is missing or empty, but holds committed draws.")

    def _shards(self, array: Any, name: str, start: int, stop: int) -> list[str]:
        """Return the files of some draws."""
        draws, rest = array.shards[_DRAWS], "/0" * (len(array.shape) - 2)
        return [
            f"{self._name}/{name}/c/0/{shard}{rest}"
            for shard in range(start // draws, -(-stop // draws))
        ]

    def _open_array(self, name: str) -> Any:
        place = f"{self._name}/{name}"
        array = open_array(self._folder, place)
        with name_damage(place):
            if array.ndim < 3 or array.shards is None or array.dtype.kind not in "fiu":
                raise DamagedRun(f"{place} is no array of draws.")
        return array

    def _open_or_make(self, name: str, values: np.ndarray) -> Any:
        """Return the array, made for values of this shape where there is none."""
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        try:
            array = self._open.get(name) or self._open_array(name)
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


def _digest(values: np.ndarray) -> str:
    """Return the digest of values `[C, d, …]`, in whatever way they are stored."""
    kind = values.dtype.newbyteorder("<")
    about = f"{kind.str}{values.shape}".encode()
    return digest(about, np.ascontiguousarray(values, dtype=kind).reshape(-1).view(np.uint8).data)


def _dimensions(name: str, num: int) -> list[str]:
    """Return chain, draw, and an item's axes: those of queries start with the observable."""
    kind, _, index = name.partition("-")
    if kind == "train_loss" and num == 3:
        return ["chain", "draw", f"train-{index}"]
    if kind == "query_value" and num == 4:
        return ["chain", "draw", "observable", f"query-{index}"]
    return ["chain", "draw", *(f"{name}.{axis}" for axis in range(num - 2))]
