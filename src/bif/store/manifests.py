"""Read and write manifests of runs and of banks, kept twice, and check their types."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bif.store.folder import ABSENT, CHECKPOINTS, MANIFEST, OURS, DamagedRun, Folder, FolderInUse
from bif.store.marks import split_by_maker
from bif.store.results import read_json, write_sealed
from bif.store.seals import CHECK, unseal

FORMAT = 2
"""Format of the folders that are written; other formats but `OLDER` are refused."""
OLDER = 1
"""Format without checksums: its runs are read, but do not go on."""

_MOST_CHAINS = 10**6
"""Chains of a manifest at most: a damaged number must not fill the memory."""
_LONGEST_NAME = 64
"""Letters of an array's name at most, in a manifest."""


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder, a run's or a bank's, with its files and messages.

    Attributes:
        name: "run" or "bank".
        manifest: Name of the file that says what is there.
        spare: Name of its second copy.
        ours: Names of all that bif makes at the top of the folder.
        entries: Entries that tell bif's manifest where there is no mark.
        checks: Function of a manifest: entry -> whether it has its type.
        reader: Name of what reads an older version.
        elsewhere: Advice where something else is there.
        instead: Advice where that may be replaced.
        anew: Advice where neither manifest nor spare can be read.
    """

    name: str
    manifest: str
    spare: str
    ours: tuple[str, ...]
    entries: frozenset[str]
    checks: Callable[[Mapping[str, Any]], Mapping[str, bool]]
    reader: str
    elsewhere: str
    instead: str
    anew: str

    def holds(self, folder: Folder) -> bool:
        """Return whether there is a run, or a bank.

        Raises:
            FolderInUse: There is something, and it is none.
        """
        there, others = split_by_maker(folder, self.ours)
        found = there & {self.manifest, self.spare}
        if found and (not others & found or self._has_manifest(folder)):  # older ones have no mark
            return True
        if others and others <= set(self.ours) and self._has_manifest(folder):  # its spare alone
            return False
        if others or folder.is_file(""):
            raise FolderInUse(
                f"{folder} exists and holds no {self.name} of bif: {self.elsewhere}, or empty it "
                "first."
            )
        return False

    def none_in(self, folder: Folder) -> FileNotFoundError:
        """Return the error that there is no run, or no bank."""
        return FileNotFoundError(
            f"{folder} holds no {self.name} of bif: it has no {self.manifest}."
        )

    def read(self, folder: Folder) -> dict[str, Any]:
        """Read the manifest, or its spare where that is missing or damaged.

        Raises:
            FileNotFoundError: There is neither.
            DamagedRun: Neither can be read.
        """
        damage = None
        for name in (self.manifest, self.spare):
            try:
                return self.read_in(folder, name)
            except DamagedRun as error:
                damage = damage or error
            except ABSENT:
                pass
        if damage is None:
            raise self.none_in(folder)
        raise DamagedRun(f"{damage} {self.anew}") from damage

    def read_in(self, folder: Folder, name: str) -> dict[str, Any]:
        """Read the manifest in this file; one of another format as it is.

        Raises:
            DamagedRun: It is none, not what was written, or an entry has not its type.
            FileNotFoundError: There is no such file.
        """
        found = read_json(folder, name)
        if found.get("format") == FORMAT and CHECK not in found:
            raise DamagedRun(f"{folder}/{name} is damaged: its checksum is gone.")
        found = unseal(found, f"{folder}/{name}")
        if found.get("format") in (OLDER, FORMAT):
            wrong = [entry for entry, fine in self.checks(found).items() if not fine]
            if wrong:
                raise DamagedRun(
                    f"{folder}/{name} is damaged: its {', '.join(wrong)} cannot be what it says."
                )
        return found

    def write(self, folder: Folder, manifest: Mapping[str, Any]) -> None:
        """Write the manifest twice, the spare first: it never lags behind."""
        write_sealed(folder, self.spare, manifest)
        write_sealed(folder, self.manifest, manifest)

    def refuse_format(
        self, folder: Folder, manifest: Mapping[str, Any], *, readable: bool = False
    ) -> None:
        """Raise unless what is there can be gone on with, or, if that is enough, be read.

        Raises:
            FolderInUse: It is of another version of bif.
        """
        found = manifest.get("format")
        if found == OLDER and not readable:
            raise FolderInUse(
                f"{folder} holds a {self.name} of an earlier version of bif, which this one reads "
                f"({self.reader}) but cannot go on with: {self.instead}."
            )
        if found not in (OLDER, FORMAT):
            raise FolderInUse(
                f"{folder} holds a {self.name} of format {json.dumps(found)}, this version of bif "
                f"reads {FORMAT}: {self.instead}."
            )

    def _has_manifest(self, folder: Folder) -> bool:
        """Return whether the manifest or its spare is one of bif's."""
        for name in (self.manifest, self.spare):
            if folder.is_file(name):
                try:
                    found = read_json(folder, name)
                except DamagedRun:
                    continue
                if isinstance(found.get("identity"), Mapping) and self.entries <= set(found):
                    return True
        return False


def differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """Return the dotted names of entries that differ between two JSON values."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return [
            difference
            for key in sorted(set(found) | set(expected))
            for difference in differences(
                found.get(key), expected.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if found == expected else [name]


def in_words_of_today(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with the words of today for what earlier versions called otherwise."""
    response = identity.get("response")
    if isinstance(response, Mapping) and response.get("curvature") == "bregman":
        return {**identity, "response": {**response, "curvature": "gauss_newton"}}
    return dict(identity)


def _run_checks(manifest: Mapping[str, Any]) -> dict[str, bool]:
    arrays = manifest.get("arrays", [])
    return {
        "identity": _is_identity(manifest.get("identity")),
        "keep": manifest.get("keep") in ("traces", "sums", "weights"),
        "complete": isinstance(manifest.get("complete"), bool),
        "settings": isinstance(manifest.get("settings", {}), dict),
        "results": isinstance(manifest.get("results", {}), dict),
        "token": isinstance(manifest.get("token", ""), str),
        "hardware": isinstance(manifest.get("hardware", {}), dict),
        "blocks": _are_blocks(manifest.get("blocks", [])),
        "query_blocks": isinstance(manifest.get("query_blocks", []), list)
        and all(_are_counts(b) and len(b) == 3 for b in manifest.get("query_blocks", [])),
        "solve_serial": _are_counts([manifest.get("solve_serial", 1)]),
        "draws": _are_counts(manifest.get("draws", [])),
        "left_out": _are_counts(manifest.get("left_out", [])),
        "num_weights": _are_counts(
            [manifest.get(name, 0) for name in ("num_weights", "num_moving_weights")]
        ),
        "chains": isinstance(manifest.get("chains", []), list)
        and all(_are_counts(c) and c for c in manifest.get("chains", [])),
        **{
            name: _are_texts(manifest.get(name, []))
            for name in ("explanations", "forecast", "notes", "warnings", "weight_types")
        },
        "arrays": _are_texts(arrays) and all(len(name) <= _LONGEST_NAME for name in arrays),
    }


RUN = FolderKind(
    name="run",
    manifest=MANIFEST,
    spare=f"{CHECKPOINTS}/{MANIFEST}",
    ours=OURS,
    entries=frozenset({"identity", "keep", "format"}),
    checks=_run_checks,
    reader="bif.load, bif show",
    elsewhere="choose another --out",
    instead="choose another --out, or pass --overwrite to replace it",
    anew="Pass --overwrite to begin the run anew.",
)


def _is_identity(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(found.get(name), Mapping) for name in ("settings", "queries", "candidates")
    )


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(x, str) for x in found)


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(x) is int and x >= 0 for x in found)


def _are_blocks(found: Any) -> bool:
    """Return whether they are `[start, stop]`, the chains from 0 on without a gap."""
    if not isinstance(found, list) or not all(_are_counts(b) and len(b) == 2 for b in found):
        return False
    edges = [0, *(stop for _, stop in found)]
    rising = all(a < b for a, b in pairwise(edges))
    return rising and edges[-1] <= _MOST_CHAINS and [b[0] for b in found] == edges[:-1]
