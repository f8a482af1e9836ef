"""Banks of retrained networks on disk, opened by their one writer: go on, lengthen, or refuse.

A bank's folder holds `bank.json`, the manifest, with a spare, and `bank.zarr` with a group a part.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bif.store.bank_arrays import (
    BANK_ARRAYS,
    BankLayout,
    BankPartStore,
    refuse_missing_chunk,
)
from bif.store.folder import LOCK, PARTIAL, DamagedRun, Folder, FolderInUse, folder_at
from bif.store.results import load_dataset, plain, read_json, write_json
from bif.store.run import differences

if TYPE_CHECKING:
    import xarray as xr

BANK, BANK_SPARE = "bank.json", "bank.spare.json"
BANK_FORMAT = 1
_OURS = (BANK, BANK_SPARE, BANK_ARRAYS)


class BankFolder:
    """A bank's folder that this process may write to.

    Attributes:
        folder: The files.
        manifest: The content of `bank.json`.
    """

    def __init__(self, folder: Folder, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    def update(self, entries: Mapping[str, Any]) -> None:
        """Change entries of the manifest, kept twice."""
        self.manifest = plain({**self.manifest, **entries})
        write_json(self.folder, BANK_SPARE, self.manifest)  # first: it never lags behind
        write_json(self.folder, BANK, self.manifest)

    def part(self, name: str, layout: BankLayout) -> BankPartStore:
        """The arrays of a part, made or lengthened."""
        return BankPartStore(self.folder, name, layout)


@contextlib.contextmanager
def open_bank(where: str | Path | Folder, manifest: Mapping[str, Any]) -> Iterator[BankFolder]:
    """Hold a bank's folder as its only writer.

    Args:
        where: A path or fsspec URL; made if need be.
        manifest: With `identity`, of the bank that is asked for; a bank that is there keeps its
            other entries.

    Raises:
        FolderInUse: Another bank, other files, or another writer.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    holds_bank(folder)  # before anything is made there
    with folder.locked():
        _sweep(folder)
        expected = plain({"format": BANK_FORMAT, **manifest})
        if holds_bank(folder):
            found = read_bank_manifest(folder)
            _refuse_another(folder, found, expected)
            yield BankFolder(folder, found)
            return
        folder.remove(BANK_ARRAYS)  # left over by a process that was killed
        bank = BankFolder(folder, expected)
        bank.update({})
        try:
            yield bank
        except BaseException:
            if not folder.names(BANK_ARRAYS) or not _has_outcomes(folder):
                for name in reversed(_OURS):
                    folder.remove(name)
            raise


def holds_bank(folder: Folder) -> bool:
    """Whether there is a bank.

    Raises:
        FolderInUse: There is something, and it is no bank.
    """
    if folder.is_file(BANK) or folder.is_file(BANK_SPARE):
        return True
    others = [n for n in folder.names() if n not in (LOCK, BANK_ARRAYS) and not _is_left_over(n)]
    if others or folder.is_file(""):
        raise FolderInUse(
            f"{folder} exists and holds no bank: choose another folder, or empty it first."
        )
    return False


def read_bank_manifest(where: str | Path | Folder) -> dict[str, Any]:
    """`bank.json`, or its spare where that is missing or damaged.

    Raises:
        FileNotFoundError: There is neither.
        DamagedRun: Neither can be read.
    """
    folder = folder_at(where)
    names = [name for name in (BANK, BANK_SPARE) if folder.is_file(name)]
    if not names:
        raise FileNotFoundError(f"{folder} holds no bank of bif: it has no {BANK}.")
    for name in names:
        with contextlib.suppress(DamagedRun):
            return _validated(read_json(folder, name))
    raise DamagedRun(
        f"{folder}/{BANK} and its spare are damaged. Remove the folder and train the bank anew."
    )


def read_bank_part(where: str | Path | Folder, part: str) -> xr.Dataset:
    """A part's `mask`, `outcome` and `seconds` with their coordinates, in memory.

    Raises:
        FileNotFoundError: It is not there.
        DamagedRun: It cannot be read.
    """
    folder, group = folder_at(where), f"{BANK_ARRAYS}/{part}"
    found = load_dataset(folder, name=group)
    refuse_missing_chunk(folder, group)
    return found


def _has_outcomes(folder: Folder) -> bool:
    return any(
        folder.names(f"{BANK_ARRAYS}/{part}/outcome/c")
        for part in folder.names(BANK_ARRAYS)
        if folder.is_folder(f"{BANK_ARRAYS}/{part}")
    )


def _is_left_over(name: str) -> bool:
    """Whether it is a file of ours that was being written."""
    return name.endswith(PARTIAL) and any(name.startswith(f"{ours}.") for ours in _OURS)


def _sweep(folder: Folder, name: str = "") -> None:
    """Remove what a killed writer left half-written, among our own names only."""
    for child in folder.names(name):
        inner = f"{name}/{child}" if name else child
        if _is_left_over(child) or (name and child.endswith(PARTIAL)):
            folder.remove(inner)
        elif (name or child == BANK_ARRAYS) and folder.is_folder(inner):
            _sweep(folder, inner)


def _validated(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest itself, if its entries have their types; one of another format as it is.

    Raises:
        DamagedRun: An entry has not.
    """
    if manifest.get("format") != BANK_FORMAT:
        return manifest
    checks = {
        "identity": isinstance(manifest.get("identity"), dict),
        "plan": isinstance(manifest.get("plan"), dict),
        "hardware": isinstance(manifest.get("hardware", []), list),
        "networks_per_chunk": type(manifest.get("networks_per_chunk")) is int
        and manifest["networks_per_chunk"] > 0,
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        raise DamagedRun(f"{BANK} is damaged: its {', '.join(wrong)} cannot be what it says.")
    return manifest


def refuse_other_format(where: str | Path | Folder, manifest: Mapping[str, Any]) -> None:
    """Raise FolderInUse unless the manifest is of the format that this version reads."""
    if manifest.get("format") != BANK_FORMAT:
        raise FolderInUse(
            f"{folder_at(where)} holds a bank of format {json.dumps(manifest.get('format'))}, this "
            f"version of bif reads {BANK_FORMAT}: choose another folder."
        )


def _refuse_another(folder: Folder, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    refuse_other_format(folder, found)
    named = differences(found["identity"], expected["identity"])
    if named:
        raise FolderInUse(
            f"{folder} holds another bank, with another {', '.join(named)}: choose another folder, "
            "or remove that one. More seeds and more subsets of the same kind are added to a bank."
        )
