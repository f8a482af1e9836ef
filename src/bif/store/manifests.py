"""Manifests as they are read: whatever a file holds, what comes out has its types."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from bif.store.folder import CHECKPOINTS, MANIFEST, DamagedRun, Folder
from bif.store.results import read_json
from bif.store.seals import CHECK, unsealed

FORMAT = 2
"""Of the folder; a run of another format is refused."""
OLDER = 1
"""The format without checksums: its runs are read, and none is gone on with."""

SPARE = f"{CHECKPOINTS}/{MANIFEST}"
_MOST_CHAINS = 10**6
_LONGEST_NAME = 64


def read_manifest(folder: Folder) -> dict[str, Any]:
    """`run.json`, or its spare where that is missing or damaged.

    Raises:
        DamagedRun: Neither can be read.
    """
    try:
        return manifest_in(folder, MANIFEST)
    except (DamagedRun, FileNotFoundError) as error:
        if folder.is_file(SPARE):
            with contextlib.suppress(DamagedRun):
                return manifest_in(folder, SPARE)
        raise DamagedRun(f"{error} Pass --overwrite to begin the run anew.") from error


def manifest_in(folder: Folder, name: str) -> dict[str, Any]:
    """The manifest in this file.

    Raises:
        DamagedRun: It is none, or not what was written.
        FileNotFoundError: There is no such file.
    """
    found = read_json(folder, name)
    if found.get("format") == FORMAT and CHECK not in found:
        raise DamagedRun(f"{folder}/{name} is damaged: its checksum is gone.")
    return validated(unsealed(found, f"{folder}/{name}"))


def validated(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest itself, if its entries have their types; one of another format as it is.

    Raises:
        DamagedRun: An entry has not.
    """
    if manifest.get("format") not in (OLDER, FORMAT):
        return manifest
    checks = {
        "identity": _is_identity(manifest.get("identity")),
        "keep": manifest.get("keep") in ("traces", "sums", "weights"),
        "complete": isinstance(manifest.get("complete"), bool),
        "settings": isinstance(manifest.get("settings", {}), dict),
        "results": isinstance(manifest.get("results", {}), dict),
        "token": isinstance(manifest.get("token", ""), str),
        "hardware": isinstance(manifest.get("hardware", {}), dict),
        "blocks": _are_blocks(manifest.get("blocks", [])),
        "draws": _are_counts(manifest.get("draws", [])),
        "left_out": _are_counts(manifest.get("left_out", [])),
        "num_weights": _are_counts(
            [manifest.get(name, 0) for name in ("num_weights", "num_moving_weights")]
        ),
        "chains": isinstance(manifest.get("chains", []), list)
        and all(_are_counts(c) and c for c in manifest.get("chains", [])),
        **{
            name: _are_texts(manifest.get(name, []))
            for name in ("arrays", "explanations", "forecast", "notes", "warnings", "weight_types")
        },
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        raise DamagedRun(f"{MANIFEST} is damaged: its {', '.join(wrong)} cannot be what it says.")
    if any(len(name) > _LONGEST_NAME for name in manifest.get("arrays", [])):
        raise DamagedRun(f"{MANIFEST} is damaged: it names arrays that bif never writes.")
    return manifest


def _is_identity(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(found.get(name), Mapping) for name in ("settings", "queries", "candidates")
    )


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(x, str) for x in found)


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(x) is int and x >= 0 for x in found)


def _are_blocks(found: Any) -> bool:
    """Whether they are `[start, stop]`, the chains from 0 on without a gap."""
    if not isinstance(found, list) or not all(_are_counts(b) and len(b) == 2 for b in found):
        return False
    edges = [0, *(stop for _, stop in found)]
    rising = all(a < b for a, b in pairwise(edges))
    return rising and edges[-1] <= _MOST_CHAINS and [b[0] for b in found] == edges[:-1]
