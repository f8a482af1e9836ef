"""Keep banks of retrained networks on disk, opened by their one writer.

A bank's folder holds `bank.json`, the manifest, with a spare, and `bank.zarr` with a group a part.
"""

from __future__ import annotations

import contextlib
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
from bif.store.folder import Folder, FolderInUse, folder_at, name_damage
from bif.store.manifests import FORMAT, FolderKind, differences
from bif.store.marks import mark, marked_names, remove_marked
from bif.store.results import load_dataset, plain

if TYPE_CHECKING:
    import xarray as xr


def _bank_checks(manifest: Mapping[str, Any]) -> dict[str, bool]:
    per_chunk = manifest.get("networks_per_chunk")
    return {
        "token": isinstance(manifest.get("token", ""), str)
        and bool(manifest.get("token")) == (manifest["format"] == FORMAT),
        "identity": isinstance(manifest.get("identity"), dict),
        "plan": isinstance(manifest.get("plan"), dict),
        "hardware": isinstance(manifest.get("hardware", []), list),
        "networks_per_chunk": type(per_chunk) is int and per_chunk > 0,
    }


BANK = FolderKind(
    name="bank",
    manifest="bank.json",
    spare="bank.spare.json",
    ours=("bank.json", "bank.spare.json", BANK_ARRAYS),
    entries=frozenset({"identity", "plan", "format"}),
    checks=_bank_checks,
    reader="bif.bank.load",
    elsewhere="choose another folder",
    instead="choose another folder",
    anew="Remove the folder and train the bank anew.",
)


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
        BANK.write(self.folder, self.manifest)

    def part(self, name: str, layout: BankLayout) -> BankPartStore:
        """Return the arrays of a part, made or lengthened."""
        return BankPartStore(self.folder, name, layout, token=self.manifest["token"])


@contextlib.contextmanager
def open_bank(where: str | Path | Folder, manifest: Mapping[str, Any]) -> Iterator[BankFolder]:
    """Hold a bank's folder as its only writer.

    Args:
        where: A path or fsspec URL; made if need be.
        manifest: Manifest with the `identity` asked for; a bank that is there keeps its
            other entries.

    Raises:
        FolderInUse: Another bank, other files, or another writer.
        DamagedRun: The manifest cannot be read.
    """
    folder = folder_at(where)
    BANK.holds(folder)  # before anything is made there
    with folder.locked():
        expected = plain({"format": FORMAT, **manifest})
        if BANK.holds(folder):
            found = BANK.read(folder)
            _refuse_another(folder, found, expected)
            if not marked_names(folder):
                mark(folder, BANK.ours)
            folder.sweep(marked_names(folder))
            yield BankFolder(folder, found)
            return
        remove_marked(folder, reversed(BANK.ours))  # left over by a process that was killed
        mark(folder, BANK.ours)
        bank = BankFolder(folder, {**expected, "token": uuid.uuid4().hex})
        bank.update({})
        try:
            yield bank
        except BaseException:
            with contextlib.suppress(OSError):  # what cannot be read stays
                if not folder.names(BANK_ARRAYS) or not _has_outcomes(folder):
                    remove_marked(folder, reversed(BANK.ours))
            raise


def read_bank_part(where: str | Path | Folder, part: str, *, token: str) -> xr.Dataset:
    """Return a part's `mask`, `outcome` and `seconds` with their coordinates, in memory.

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
    with name_damage(f"{folder}/{group}"):
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


def _refuse_another(folder: Folder, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    BANK.refuse_format(folder, found)
    named = differences(found["identity"], expected["identity"])
    if named:
        raise FolderInUse(
            f"{folder} holds another bank, with another {', '.join(named)}: choose another folder, "
            "or remove that one. More seeds and more subsets of the same kind are added to a bank."
        )
