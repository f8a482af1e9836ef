"""The folder of a series of checkpoints: a run's folder for each, and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bif.store.folder import REPORT, Folder, FolderInUse, folder_at
from bif.store.manifests import differences
from bif.store.marks import mark, refuse_foreign
from bif.store.results import load_dataset, plain

STAGES = "stages.json"
TRAJECTORY = "trajectory.zarr"
_RUNS, _SECOND = "checkpoints", "second_gamma"
_OURS = (STAGES, TRAJECTORY, REPORT, _RUNS, _SECOND)


class StagesFolder:
    """A folder that is written to.

    Attributes:
        chosen: What the runs have in common, as kept by an earlier call; None before that.
    """

    def __init__(self, where: str | Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = folder_at(where), plain(identity)
        refuse_foreign(self._folder, _OURS)
        self.chosen: dict[str, Any] | None = None
        if self._folder.is_file(STAGES):
            there = json.loads(self._folder.read(STAGES))
            named = differences(there["identity"], self._identity)
            if named:
                raise FolderInUse(
                    f"{self._folder} holds a series already, with another {', '.join(named)}: "
                    "choose another folder, or remove it first."
                )
            self.chosen = there["chosen"]
        mark(self._folder, _OURS)

    def keep(self, chosen: Mapping[str, Any]) -> None:
        """Write what the runs have in common."""
        self.chosen = plain(chosen)
        text = json.dumps({"identity": self._identity, "chosen": self.chosen}, indent=1)
        self._folder.write(STAGES, text.encode())

    def run(self, name: str, *, second: bool = False) -> str:
        """Return the place of a checkpoint's run, or of that with a second gamma."""
        return _place(self._folder, name, _SECOND if second else _RUNS)

    def write_report(self, page: str) -> None:
        """Write the page of the trajectory."""
        self._folder.write(REPORT, page.encode())

    def replace_trajectory(self) -> str:
        """Return the place of the trajectory, empty."""
        if self._folder.is_folder(TRAJECTORY):
            self._folder.remove(TRAJECTORY)
        return f"{self._folder}/{TRAJECTORY}"


def stage_runs(where: str | Path) -> dict[str, str]:
    """Return the places of a series' runs by the checkpoints' names, in the order of their steps.

    Raises:
        FileNotFoundError: No series is there, or one that has not come to its end.
    """
    folder = folder_at(where)
    if not folder.is_file(STAGES):
        raise FileNotFoundError(f"{folder} holds no series of checkpoints.")
    if not folder.is_folder(TRAJECTORY):
        raise FileNotFoundError(
            f"the series at {folder} is unfinished: give the same `bif stages` again first."
        )
    names = [str(name) for name in load_dataset(folder, name=TRAJECTORY)["name"].values]
    return {name: _place(folder, name) for name in names}


def holds_stages(where: str | Path) -> bool:
    """Return whether a folder holds a series of checkpoints."""
    return folder_at(where).is_file(STAGES)


def _place(folder: Folder, name: str, kind: str = _RUNS) -> str:
    return f"{folder}/{kind}/{name.replace('/', '-')}"


@contextmanager
def open_stages(
    where: str | Path, identity: Mapping[str, Any], *, alone: bool = True
) -> Iterator[StagesFolder]:
    """Hold the folder of a series.

    Args:
        where: The folder.
        identity: Of the series.
        alone: Whether as its only writer; runs of checkpoints have locks of their own.

    Raises:
        FolderInUse: Another series, other files, or another writer.
    """
    with folder_at(where).locked() if alone else nullcontext():
        yield StagesFolder(where, identity)
