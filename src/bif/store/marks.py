"""Mark which files of a folder bif has made; nothing else there is ever changed or removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from bif.store.folder import (
    CHECKPOINTS,
    LOCK,
    MANIFEST,
    MARK,
    PARTIAL,
    PARTIAL_FILE,
    RANKS_LOCK,
    Folder,
    FolderInUse,
)

_OF_A_BLOCK = re.compile(r"\d{8,}\.(json|safetensors)")
"""Names of a block's commits."""


def marked_names(folder: Folder) -> set[str]:
    """Return the names at the top of a folder that bif has made; none without a mark."""
    if not folder.is_file(MARK):
        return set()
    try:
        found = json.loads(folder.read(MARK))
        return {name for name in found["made_by_bif"] if isinstance(name, str)}
    except (ValueError, TypeError, KeyError, RecursionError):  # a damaged mark marks nothing
        return set()


def mark(folder: Folder, names: Iterable[str]) -> None:
    """Note that bif makes these files or folders, before it does."""
    there = marked_names(folder)
    if not there.issuperset(names):
        _write_mark(folder, there.union(names))


def _write_mark(folder: Folder, names: Iterable[str]) -> None:
    folder.write(MARK, (json.dumps({"made_by_bif": sorted(names)}) + "\n").encode())


def refuse_foreign(folder: Folder, names: Iterable[str]) -> None:
    """Raise where something of one of these names is there that bif has not made.

    Raises:
        FolderInUse: There is; names it.
    """
    there = marked_names(folder)
    for name in names:
        if name not in there and (folder.is_file(name) or folder.is_folder(name)):
            raise FolderInUse(
                f"{folder} holds a {name} that bif has not made: choose another folder, or move it "
                "away."
            )


def split_by_maker(folder: Folder, names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return all names at the top of a folder, and those that bif has not made.

    Half-written files that a killed writer left are bif's, too, and so are mark and lock.
    """
    there, ours = set(folder.names()) - {MARK, LOCK}, marked_names(folder).intersection(names)
    partial = {n for n in there if _whole_name(n) != n and _whole_name(n) in {*names, MARK}}
    finished = {f"{name}{PARTIAL}" for name in ours}
    return there, there - ours - partial - finished


def remove_marked(folder: Folder, names: Iterable[str]) -> None:
    """Remove those of the names that bif has made, in their order, and then their mark.

    Of `checkpoints/`, where people keep their own, only the files that runs write.
    """
    there, names = marked_names(folder), tuple(names)
    for name in names:
        if name not in there:
            continue
        folder.remove(f"{name}{PARTIAL}")
        if name == CHECKPOINTS:
            remove_checkpoints(folder)
        else:
            folder.remove(name)
    for name in folder.names():
        if _whole_name(name) != name and _whole_name(name) in {*names, MARK}:
            folder.remove(name)
    if there.difference(names):
        _write_mark(folder, there.difference(names))
    else:
        folder.remove(MARK)


def remove_checkpoints(folder: Folder, block: str | None = None) -> None:
    """Remove what runs write below `checkpoints/`, of one block or all; other files stay."""
    for child in folder.names(CHECKPOINTS):
        place = f"{CHECKPOINTS}/{child}"
        if re.fullmatch(r"block-\d{3,}", child) and block in (None, child):
            _remove_files(folder, place, _OF_A_BLOCK)
        elif block is None and (
            place == RANKS_LOCK or _whole_name(child) in (MANIFEST, "center.safetensors")
        ):
            folder.remove(place)
    if folder.is_folder(CHECKPOINTS) and not folder.names(CHECKPOINTS):
        folder.remove(CHECKPOINTS)


def _remove_files(folder: Folder, place: str, pattern: re.Pattern[str]) -> None:
    for name in folder.names(place):
        if pattern.fullmatch(_whole_name(name)):
            folder.remove(f"{place}/{name}")
    if folder.is_folder(place) and not folder.names(place):
        folder.remove(place)


def _whole_name(name: str) -> str:
    """Return the name, or of a half-written file the name that it was to have."""
    match = PARTIAL_FILE.fullmatch(name)
    return match["name"] if match else name
