"""Write and read results: datasets, JSON and the page, each written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.store.folder import (
    CALIBRATION,
    DIAGNOSTICS,
    INFLUENCE,
    MANIFEST,
    OURS,
    REPORT,
    SUMMARY,
    DamagedRun,
    Folder,
    FolderInUse,
    folder_at,
    name_damage,
    name_failures,
)
from bif.store.marks import mark, marked_names, refuse_foreign
from bif.store.seals import files_digests, refuse_other_files, seal

if TYPE_CHECKING:
    import xarray as xr

_RESULTS = (INFLUENCE, DIAGNOSTICS, REPORT, SUMMARY)
"""Files and folders of results."""
_CODECS = {"blosc", "bytes", "crc32c", "sharding_indexed", "transpose", "vlen-utf8", "zstd"}
"""Codecs that this library writes; others could run code of their own."""
_DEEPEST = 4
"""Depth of nested codecs at most: a hostile file could nest them without end."""


def write_results(
    folder: Folder,
    *,
    manifest: Mapping[str, Any],
    influence: xr.Dataset,
    diagnostics: xr.Dataset,
    summary: Mapping[str, Any],
    report: str,
    spare: str | None = None,
) -> dict[str, Any]:
    """Write or replace a run's results; the manifest, which says that they are whole, comes last.

    Locally everything is written beside its place first and moved there when it is complete.

    Args:
        spare: Name of the manifest's second copy, which calls the run not complete.

    Returns:
        The manifest with `results`, the digests of all files.

    Raises:
        FolderInUse: A file of a result's name is there that bif has not made.
    """
    refuse_foreign(folder, _RESULTS)
    mark(folder, (MANIFEST, *_RESULTS))
    for dataset, name in ((influence, INFLUENCE), (diagnostics, DIAGNOSTICS)):
        with folder.replacing(name) as fresh:
            save_dataset(dataset, folder, name=fresh)
    folder.write(REPORT, report.encode())
    write_json(folder, SUMMARY, summary)
    whole = plain({**manifest, "results": files_digests(folder, *_RESULTS)})
    if spare:
        write_sealed(folder, spare, {**whole, "complete": False})
    write_sealed(folder, MANIFEST, whole)
    return whole


def refuse_damaged_results(
    folder: Folder, manifest: Mapping[str, Any], *, report: bool = False
) -> None:
    """Raise unless the results are those that the manifest tells of; older ones say nothing.

    Args:
        report: Check the page as well.

    Raises:
        DamagedRun: A file is missing, another, or one too many; names it.
    """
    table = manifest.get("results")
    if table is not None:
        names = _RESULTS if report else tuple(n for n in _RESULTS if n != REPORT)
        refuse_other_files(folder, table, *names)


def write_calibration(
    where: str | Path | Folder, *, settings: Mapping[str, Any], explanations: Sequence[str]
) -> None:
    """Write what was chosen and why, `calibration.json`; one of bif's that is there is replaced.

    Raises:
        FolderInUse: There is one that bif has not made.
    """
    folder = folder_at(where)
    refuse_foreign_calibration(folder)
    mark(folder, (CALIBRATION,))
    write_json(folder, CALIBRATION, {"settings": settings, "explanations": list(explanations)})


def refuse_foreign_calibration(where: str | Path | Folder) -> None:
    """Raise where there is a `calibration.json` that bif has not made.

    Raises:
        FolderInUse: There is.
    """
    folder = folder_at(where)
    if folder.is_file(CALIBRATION) and CALIBRATION not in marked_names(folder):
        try:
            found = set(read_json(folder, CALIBRATION))
        except DamagedRun:
            found = set()
        if found == {"settings", "explanations"}:  # of a version that made no marks
            return
    refuse_foreign(folder, (CALIBRATION,))


def adopt(folder: Folder) -> None:
    """Mark what is there of a run that has lost its mark, or that an older version made."""
    if MANIFEST not in marked_names(folder):
        mark(folder, [name for name in OURS if folder.is_file(name) or folder.is_folder(name)])


def save_dataset(dataset: xr.Dataset, where: str | Path | Folder, *, name: str = "") -> None:
    """Write a dataset as a zarr folder, compressed and checksummed.

    Raises:
        FileExistsError: There is something already.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    folder = folder_at(where)
    place = f"{folder}/{name}" if name else str(folder)
    if folder.names(name) or folder.is_file(name):
        raise FileExistsError(f"{place} exists: choose another path, or remove it first.")
    # Zarr's third format has no strings of fixed length; and of such as UTF-8 cannot hold, what
    # happens depends on whether pandas has pyarrow.
    texts = {
        n: (v.dims, _in_utf8(v.values), v.attrs)
        for n, v in dataset.variables.items()
        if v.dtype.kind == "U"
    }
    codecs = {"compressors": (ZstdCodec(level=3), Crc32cCodec())}
    with name_failures(place):
        dataset.assign(texts).drop_encoding().to_zarr(
            folder.zarr(name),
            mode="w-",
            consolidated=False,
            zarr_format=3,
            encoding={str(n): codecs for n in dataset.variables},
        )


def _in_utf8(texts: np.ndarray) -> np.ndarray:
    """Return texts as objects, with halves of surrogate pairs written out."""
    plain = [text.encode("utf-8", "backslashreplace").decode() for text in texts.ravel().tolist()]
    return np.asarray(plain, dtype=object).reshape(texts.shape)


def load_dataset(where: str | Path | Folder, *, name: str) -> xr.Dataset:
    """Read a zarr folder, or `name` inside a run's folder, into memory.

    Raises:
        FileNotFoundError: Neither is there.
        DamagedRun: It cannot be read, or asks for codecs that this library never writes.
    """
    import xarray as xr

    folder = folder_at(where)
    chosen = name if folder.is_folder(name) else ""
    if not folder.is_file(f"{chosen}/zarr.json" if chosen else "zarr.json"):
        raise FileNotFoundError(f"no {name} at {folder}: expected a zarr folder or a run's folder.")
    refuse_foreign_zarr(folder, chosen)
    with name_damage(f"{folder}/{chosen or name}"):
        store = folder.zarr(chosen, read_only=True)
        with xr.open_zarr(store, consolidated=False, zarr_format=3) as dataset:
            return dataset.load()


def open_array(folder: Folder, place: str) -> Any:
    """Open a zarr array to be read and written.

    Raises:
        FileNotFoundError: It is not there.
        DamagedRun: It cannot be opened, or asks for codecs that this library never writes.
    """
    import zarr

    if not folder.is_file(f"{place}/zarr.json"):
        raise FileNotFoundError(f"{folder} has no array {place}.")
    refuse_foreign_zarr(folder, place)
    with name_damage(place):
        return zarr.open_array(folder.zarr(place), mode="r+", zarr_format=3)


def refuse_foreign_zarr(folder: Folder, name: str) -> None:
    """Raise unless every array at `name` is of zarr's third format, with codecs of this library.

    Zarr takes codecs from plug-ins by their name, so a foreign name could run foreign code.

    Raises:
        DamagedRun: Another format, another codec, or no metadata.
    """
    for place, metadata in _metadata(folder, name, _DEEPEST):
        if metadata.get("zarr_format") != 3:
            raise DamagedRun(f"{folder}/{place} is not of zarr's third format: refused.")
        for codec in _codec_names(metadata.get("codecs")):
            if codec not in _CODECS:
                raise DamagedRun(
                    f"{folder}/{place} asks for the codec {codec!r}, which bif never writes: "
                    "refused."
                )


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        DamagedRun: It holds something else.
    """
    try:
        found = json.loads(folder.read(name))
    except (ValueError, RecursionError) as error:
        raise DamagedRun(f"{folder}/{name} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise DamagedRun(f"{folder}/{name} is damaged: it holds no JSON object.")
    return found


def write_summary(
    where: str | Path,
    content: Mapping[str, Any],
    *,
    files: Mapping[str, str | bytes | None] | None = None,
    datasets: Mapping[str, xr.Dataset] | None = None,
) -> None:
    """Write figures as `summary.json`, and files and datasets beside it by their names.

    A file that is None is removed if an earlier call has written it.

    Raises:
        FolderInUse: The folder holds a run, whose summary would be lost, or something else.
    """
    folder, files, datasets = folder_at(where), files or {}, datasets or {}
    written = {name: held for name, held in files.items() if held is not None}
    claim_summary(where, [*written, *datasets])
    for name in (files.keys() - written) & marked_names(folder):
        folder.remove(name)
    for name, held in written.items():
        folder.write(name, held.encode() if isinstance(held, str) else held)
    for name, dataset in datasets.items():
        if folder.is_folder(name):
            folder.remove(name)
        save_dataset(dataset, folder, name=name)
    write_json(folder, SUMMARY, plain(content))


def claim_summary(where: str | Path, names: Iterable[str] = ()) -> None:
    """Note that a summary is written to a folder, and files beside it, before it takes long.

    Args:
        where: The folder, which is made.
        names: Files and folders beside the summary.

    Raises:
        FolderInUse: The folder holds a run, whose summary would be lost, or something else.
        OSError: It cannot be written to.
    """
    folder, every = folder_at(where), [SUMMARY, *names]
    if folder.is_file(MANIFEST):
        raise FolderInUse(f"{folder} holds a run: choose another folder.")
    refuse_foreign(folder, every)
    mark(folder, every)


def write_json(folder: Folder, name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON object to a file; NaN and infinities, which JSON lacks, become null."""
    folder.write(name, (json.dumps(plain(content), indent=2) + "\n").encode())


def write_sealed(folder: Folder, name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of its content."""
    write_json(folder, name, seal(plain(content)))


def plain(value: Any) -> Any:
    """Return numbers, strings, lists and dicts that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item") and callable(value.item):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _metadata(folder: Folder, name: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    place = f"{name}/zarr.json" if name else "zarr.json"
    if not folder.is_file(place):
        raise DamagedRun(f"{folder}/{place} is missing.")
    metadata = read_json(folder, place)
    yield place, metadata
    if metadata.get("node_type") != "array" and depth:
        for child in folder.names(name):
            inner = f"{name}/{child}" if name else child
            if folder.is_folder(inner):
                yield from _metadata(folder, inner, depth - 1)


def _codec_names(codecs: Any) -> Iterator[str]:
    """Yield names of codecs at every depth of a sharding codec's own lists."""
    if isinstance(codecs, Mapping):
        if "name" in codecs:
            yield str(codecs["name"])
        for value in codecs.values():
            yield from _codec_names(value)
    elif isinstance(codecs, list):
        for codec in codecs:
            if isinstance(codec, str):
                yield codec
            else:
                yield from _codec_names(codec)
