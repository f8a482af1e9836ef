"""Scores from any source: plain files, our own runs, and the folders of other libraries."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bif.interop.bergson import holds_bergson_scores, read_bergson_scores
from bif.interop.kronfluence import PART, WHOLE, holds_kronfluence_scores, read_kronfluence_scores
from bif.interop.scores import ImportedScores, Sign, as_signed, parent_and_name
from bif.interop.tensor_files import from_numpy, from_safetensors
from bif.store import INFLUENCE, Folder, folder_at, load_dataset
from bif.types import Better

_IDS = ("query_ids", "train_ids")
_QUERY_COLUMN = "query_id"


def read_scores(
    path: str | Path,
    *,
    sign: Sign | None = None,
    better: Better = "lower",
    observable: str | None = None,
) -> ImportedScores:
    """Read a matrix of scores [Q, N] from whatever holds one.

    * `.npy`: the matrix. `.npz`, `.safetensors`: the array named "scores", or the only matrix;
      names in arrays `query_ids`, `train_ids`, for safetensors JSON lists in the metadata.
    * `.csv`: numbers; if the first line is not, it names the train items, and if it begins with
      "query_id" or an empty cell, the first column names the queries.
    * A run's folder or a `.zarr` of its own: `derivative` of an observable.
    * A score folder of kronfluence or bergson: as their readers do.

    Args:
        path: A file, a folder or an fsspec URL.
        sign: How a plain file is signed: "loss" as the BIF (positive = the observable rises with
            the item), "helpful" = larger for items that help more. Nothing in a file tells, so it
            must be said. Our own runs and kronfluence have a fixed sign; bergson's says its own.
        better: Which way the observable is better, for "helpful".
        observable: Which one of a run; needed if there are several.

    Returns:
        The scores and, where there are any, the names of their rows and columns.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If the sign is missing or not needed, or what is there is no matrix of finite
            numbers. Python objects are refused: nothing is unpickled.
    """
    folder, name = parent_and_name(path)
    if not folder.is_file(name):
        return _read_folder(folder_at(path), sign, observable)
    if name == WHOLE or PART.fullmatch(name):
        _refuse_sign(sign, "kronfluence's scores are signed as +gᵀH⁻¹g")
        return read_kronfluence_scores(path)
    if sign is None:
        raise ValueError(
            f"{path}: a plain file does not say how it is signed; pass sign='loss' (positive = "
            "the observable rises with the item) or sign='helpful' (positive = the item helps)."
        )
    source, content = f"{folder}/{name}", folder.read(name)
    ids: Mapping[str, Any] = {}
    if name.endswith((".npy", ".npz")):
        arrays = from_numpy(content, source)
        ids, matrix = arrays, _only_matrix(arrays, source)
    elif name.endswith(".safetensors"):
        arrays, metadata = from_safetensors(content, source)
        matrix = _only_matrix(arrays, source)
        ids = {key: _parse_names(metadata[key], key, source) for key in _IDS if key in metadata}
    elif name.endswith(".csv"):
        matrix, ids = _parse_csv(content, source)
    else:
        raise ValueError(
            f"{path} ends in none of .npy, .npz, .safetensors, .csv; convert it to one of these."
        )
    return ImportedScores(
        scores=as_signed(matrix, sign, better),
        query_ids=_as_names(ids.get("query_ids")),
        train_ids=_as_names(ids.get("train_ids")),
        source=f"{source}, read as {sign!r}",
    )


def _read_folder(folder: Folder, sign: Sign | None, observable: str | None) -> ImportedScores:
    if holds_bergson_scores(folder):
        return read_bergson_scores(str(folder), sign=sign)
    if holds_kronfluence_scores(folder):
        _refuse_sign(sign, "kronfluence's scores are signed as +gᵀH⁻¹g")
        return read_kronfluence_scores(str(folder))
    if not (folder.is_file("zarr.json") or folder.is_folder(INFLUENCE)):
        raise FileNotFoundError(
            f"no scores at {folder}: expected a file (.npy, .npz, .safetensors, .csv), a run's "
            "folder, a .zarr, or a score folder of kronfluence or bergson."
        )
    _refuse_sign(sign, "our own runs are signed as the BIF")
    return _read_run(folder, observable)


def _read_run(folder: Folder, observable: str | None) -> ImportedScores:
    dataset = load_dataset(folder, name=INFLUENCE)
    missing = {"derivative", "observable", "query_id", "train_id"} - set(dataset.variables)
    if missing:
        raise ValueError(f"{folder} holds no influence dataset: it lacks {sorted(missing)}.")
    if "rank" in dataset.dims:
        raise ValueError(
            f"{folder} keeps the strongest scores of every query only (top=…), and a matrix needs "
            "all: use a run without top."
        )
    names = [str(name) for name in dataset["observable"].values]
    if observable is None and len(names) > 1:
        raise ValueError(f"{folder} has several observables: pass observable= one of {names}.")
    chosen = names[0] if observable is None else observable
    if chosen not in names:
        raise ValueError(f"{folder} has no observable {chosen!r}; there are {names}: name one.")
    scores = dataset["derivative"].isel(observable=names.index(chosen))
    return ImportedScores(
        scores=scores.transpose("query", "train").values.astype(np.float64),
        query_ids=tuple(str(i) for i in dataset["query_id"].values),
        train_ids=tuple(str(i) for i in dataset["train_id"].values),
        source=f"derivative of {chosen!r} at {folder}",
    )


def _as_names(found: Any) -> tuple[str, ...] | None:
    return None if found is None else tuple(str(name) for name in found)


def _refuse_sign(sign: Sign | None, reason: str) -> None:
    if sign is not None:
        raise ValueError(f"sign is {sign!r}, but {reason} and need none: leave it out.")


def _only_matrix(arrays: Mapping[str, np.ndarray], source: str) -> np.ndarray:
    """Return the array "scores", or the only one with two axes; [N] becomes [1, N]."""
    found = arrays.get("scores")
    if found is None:
        matrices = [name for name, array in arrays.items() if array.ndim == 2]
        if len(matrices) != 1:
            raise ValueError(
                f"{source} holds { {name: array.shape for name, array in arrays.items()} }; "
                'expected one matrix [Q, N], or one named "scores".'
            )
        found = arrays[matrices[0]]
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{source} holds {found.dtype}; expected real numbers.")
    return found[None] if found.ndim == 1 else found


def _parse_names(text: str, key: str, source: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ValueError(
            f"{source}: {key} in the metadata is no JSON list of names: write one there."
        )
    return found


def _parse_csv(content: bytes, source: str) -> tuple[np.ndarray, dict[str, list[str] | None]]:
    try:
        lines = [line for line in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is no csv file in UTF-8: {error}.") from error
    if not lines:
        raise ValueError(f"{source} is empty; expected numbers [Q, N].")
    header = None if all(_is_number(cell) for cell in lines[0]) else lines[0]
    rows = lines if header is None else lines[1:]
    query_ids = None
    if header is not None and header[0].strip() in ("", _QUERY_COLUMN):
        header, query_ids = header[1:], [row[0] for row in rows]
        rows = [row[1:] for row in rows]
    if not rows:
        raise ValueError(
            f"{source} holds no line of numbers, only {lines[0][:3]}; expected [Q, N]."
        )
    widths = {len(row) for row in rows} | ({len(header)} if header is not None else set())
    if len(widths) != 1:
        raise ValueError(f"{source} has lines of {sorted(widths)} cells; expected one width.")
    try:
        matrix = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{source} holds a cell that is no number: {error}.") from error
    return matrix, {"query_ids": query_ids, "train_ids": header}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
