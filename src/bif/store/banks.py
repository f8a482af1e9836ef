"""Banks of retrained networks on disk, opened by their one writer: go on, lengthen, or refuse.

A bank's folder holds `bank.json`, the manifest, with a spare, and `bank.zarr` with a group a part.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.store.bank_arrays import (
    BANK_ARRAYS,
    BankLayout,
    BankPartStore,
    network_checks,
    refuse_missing_chunk,
)
from bif.store.folder import DamagedRun, Folder, FolderInUse, damage_named, folder_at
from bif.store.marks import mark, marked, remove_marked, whose
from bif.store.results import load_dataset, plain, read_json, write_sealed
from bif.store.run import differences
from bif.store.seals import CHECK, unsealed

if TYPE_CHECKING:
    import xarray as xr

BANK, BANK_SPARE = "bank.json", "bank.spare.json"
BANK_FORMAT, _OLDER = 2, 1
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
        write_sealed(self.folder, BANK_SPARE, self.manifest)  # first: it never lags behind
        write_sealed(self.folder, BANK, self.manifest)

    def part(self, name: str, layout: BankLayout) -> BankPartStore:
        """The arrays of a part, made or lengthened."""
        return BankPartStore(self.folder, name, layout, token=self.manifest["token"])


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
        expected = plain({"format": BANK_FORMAT, **manifest})
        if holds_bank(folder):
            found = read_bank_manifest(folder)
            _refuse_another(folder, found, expected)
            if not marked(folder):
                mark(folder, _OURS)
            folder.sweep(marked(folder))
            yield BankFolder(folder, found)
            return
        remove_marked(folder, reversed(_OURS))  # left over by a process that was killed
        mark(folder, _OURS)
        bank = BankFolder(folder, {**expected, "token": uuid.uuid4().hex})
        bank.update({})
        try:
            yield bank
        except BaseException:
            with contextlib.suppress(OSError):  # what cannot be looked at stays
                if not folder.names(BANK_ARRAYS) or not _has_outcomes(folder):
                    remove_marked(folder, reversed(_OURS))
            raise


def holds_bank(folder: Folder) -> bool:
    """Whether there is a bank.

    Raises:
        FolderInUse: There is something, and it is no bank.
    """
    there, others = whose(folder, _OURS)
    if there & {BANK, BANK_SPARE} and (not others & set(_OURS) or _is_bank(folder)):
        return True
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
            found = read_json(folder, name)
            if found.get("format") == BANK_FORMAT and CHECK not in found:
                raise DamagedRun(f"{folder}/{name} is damaged: its checksum is gone.")
            return _validated(unsealed(found, f"{folder}/{name}"))
    raise DamagedRun(
        f"{folder}/{BANK} and its spare are damaged. Remove the folder and train the bank anew."
    )


def read_bank_part(where: str | Path | Folder, part: str, *, token: str) -> xr.Dataset:
    """A part's `mask`, `outcome` and `seconds` with their coordinates, in memory.

    Networks that are not what was written there are NaN.

    Args:
        token: The bank's own; "" of a bank of an older version, of which nothing is known.

    Raises:
        FileNotFoundError: It is not there.
        DamagedRun: It cannot be read.
    """
    folder, group = folder_at(where), f"{BANK_ARRAYS}/{part}"
    found = load_dataset(folder, name=group)
    refuse_missing_chunk(folder, group)
    if not token:
        return found
    with damage_named(f"{folder}/{group}"):
        names = ("observable", "train_id", "query_id")
        fine = found["check"].values == network_checks(
            found["outcome"].values,
            found["seconds"].values,
            part=f"{token}/{part}",
            seeds=found["seed"].values.tolist(),
            masks=found["mask"].values,
            names=[[str(x) for x in found[name].values] for name in names],
        )
        outcome = np.where(fine[None, :, :, None, 0], found["outcome"].values, np.nan)
        seconds = np.where(fine[..., 1], found["seconds"].values, np.nan)
    return found.assign(
        outcome=(found["outcome"].dims, outcome), seconds=(found["seconds"].dims, seconds)
    )


def _has_outcomes(folder: Folder) -> bool:
    return any(
        folder.names(f"{BANK_ARRAYS}/{part}/outcome/c")
        for part in folder.names(BANK_ARRAYS)
        if folder.is_folder(f"{BANK_ARRAYS}/{part}")
    )


def _is_bank(folder: Folder) -> bool:
    """Whether the manifest or its spare is one of bif's."""
    for name in (BANK, BANK_SPARE):
        if folder.is_file(name):
            with contextlib.suppress(DamagedRun):
                return {"identity", "plan", "format"} <= set(read_json(folder, name))
    return False


def _validated(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest itself, if its entries have their types; one of another format as it is.

    Raises:
        DamagedRun: An entry has not.
    """
    if manifest.get("format") not in (_OLDER, BANK_FORMAT):
        return manifest
    checks = {
        "token": isinstance(manifest.get("token", ""), str)
        and bool(manifest.get("token")) == (manifest["format"] == BANK_FORMAT),
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
    """Raise FolderInUse unless the manifest is of a format that this version reads."""
    if manifest.get("format") not in (_OLDER, BANK_FORMAT):
        raise FolderInUse(
            f"{folder_at(where)} holds a bank of format {json.dumps(manifest.get('format'))}, this "
            f"version of bif reads {BANK_FORMAT}: choose another folder."
        )


def _refuse_another(folder: Folder, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    refuse_other_format(folder, found)
    if found["format"] == _OLDER:
        raise FolderInUse(
            f"{folder} holds a bank of an earlier version of bif, which this one reads "
            "(bif.bank.load) but cannot go on with: choose another folder."
        )
    named = differences(found["identity"], expected["identity"])
    if named:
        raise FolderInUse(
            f"{folder} holds another bank, with another {', '.join(named)}: choose another folder, "
            "or remove that one. More seeds and more subsets of the same kind are added to a bank."
        )
