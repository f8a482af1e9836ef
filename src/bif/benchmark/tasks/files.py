"""Readers of the standard data files."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np

from bif import store


def find_path(folder: Path, *names: str) -> Path:
    """Return the first of `folder/name` that exists.

    A data set lies in a folder of its own or not.

    Raises:
        FileNotFoundError: None is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"no file {' or '.join(names)} in {folder}: pass the folder that holds it as --data."
    )


def read_gzip(path: Path) -> bytes:
    """Return the content of a gzip file."""
    return gzip.decompress(store.folder_at(path.parent).read(path.name))


def read_csv(path: Path) -> np.ndarray:
    """Return the numbers of a gzipped file of comma-separated values, one row a line."""
    return np.loadtxt(BytesIO(read_gzip(path)), delimiter=",")


def read_idx(path: Path, header: int) -> np.ndarray:
    """Return the bytes of a gzipped idx file after its header."""
    return np.frombuffer(read_gzip(path), dtype=np.uint8, offset=header)
