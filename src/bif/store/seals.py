"""Seal content by digests, so that what is read is known to be what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from bif.store.folder import Buffer, DamagedRun, Folder

CHECK = "check"
"""Entry of a sealed object that holds its digest."""
_DIGITS = 32
"""Hexadecimal digits of a digest."""


def digest(*parts: Buffer) -> str:
    """Return the first half of the SHA-256 of bytes, in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:_DIGITS]


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of all the rest as its `check`."""
    rest = {name: value for name, value in content.items() if name != CHECK}
    return {**rest, CHECK: digest(_canonical(rest))}


def unseal(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a JSON object without its `check`; older versions wrote none.

    Raises:
        DamagedRun: It is not what was written.
    """
    rest = {name: value for name, value in content.items() if name != CHECK}
    if CHECK in content and content[CHECK] != digest(_canonical(rest)):
        raise DamagedRun(f"{place} is damaged: it is not what was written.")
    return rest


def files_digests(folder: Folder, *names: str) -> dict[str, str]:
    """Return file -> digest, of files and of all that zarr reads in folders."""
    return {file: digest(folder.read(file)) for name in names for file in _files(folder, name)}


def refuse_other_files(folder: Folder, expected: Mapping[str, str], *names: str) -> None:
    """Raise unless files and folders are what `files_digests` found.

    Raises:
        DamagedRun: One is missing, was changed, or is there though it was not; names it.
    """
    mine = {
        file: check
        for file, check in expected.items()
        if any(file == name or file.startswith(f"{name}/") for name in names)
    }
    there = {file for name in names for file in _files(folder, name)}
    for file in sorted(mine.keys() | there):
        if file not in there:
            raise DamagedRun(f"{folder}/{file} is damaged: it is missing.")
        if file not in mine:
            raise DamagedRun(f"{folder}/{file} is damaged: it is no part of what was written.")
        if digest(folder.read(file)) != mine[file]:
            raise DamagedRun(f"{folder}/{file} is damaged: it is not what was written.")


def _files(folder: Folder, name: str) -> Iterator[str]:
    for file in folder.files(name):
        if file == name or "/c/" in file or file.endswith(("/c", "/zarr.json")):
            yield file


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
