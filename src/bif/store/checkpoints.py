"""Commits: how far a block of chains has come, and all that it takes to go on to the last bit.

A commit is written in this order: draws, weights, state, record.  What has no record does not
count, so a reader never sees half a draw, and a writer that is killed loses what came after its
last record.  The last two commits are kept, should the newest be damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import Tensor

from bif.store.arrays import DrawArrays
from bif.store.folder import DamagedRun, Folder
from bif.store.results import CHECKPOINTS, TRACES, WEIGHTS

_KEPT = 2


@dataclass(frozen=True)
class Commit:
    """How far a block has come.

    Attributes:
        serial: Counts the block's commits.
        step: The step that comes next.
        draws: Draws in the arrays.
        diverged: Chains to the draw at which they diverged.
        seconds: Sampling time so far.
        hardware: On what.
        sha256: Of the state file.
    """

    serial: int
    step: int
    draws: int
    diverged: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    hardware: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def parsed(cls, content: bytes) -> Commit:
        """From a record's bytes.

        Raises:
            DamagedRun: They are no record.
        """
        try:
            found = json.loads(content)
            commit = cls(
                serial=int(found["serial"]),
                step=int(found["step"]),
                draws=int(found["draws"]),
                diverged={int(c): int(d) for c, d in found["diverged"].items()},
                seconds=float(found["seconds"]),
                hardware={str(k): str(v) for k, v in found["hardware"].items()},
                sha256=str(found["sha256"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise DamagedRun(f"a commit record is damaged: {error!r}.") from error
        if min(commit.serial, commit.step, commit.draws) < 0:
            raise DamagedRun("a commit record counts below zero.")
        return commit


class BlockStore:
    """One block of chains on disk.

    Args:
        folder: The run's folder.
        block: The block's index.
    """

    def __init__(self, folder: Folder, block: int) -> None:
        self._folder = folder
        self._place = f"{CHECKPOINTS}/block-{block:03d}"
        self.traces = DrawArrays(folder, f"{TRACES}/block-{block:03d}")
        self.weights = DrawArrays(folder, f"{WEIGHTS}/block-{block:03d}")

    def commits(self) -> list[Commit]:
        """The records that can be read, newest first."""
        found = []
        for name in self._folder.names(self._place):
            if name.endswith(".json"):
                try:
                    commit = Commit.parsed(self._folder.read(f"{self._place}/{name}"))
                except (DamagedRun, OSError):
                    continue
                if name == f"{commit.serial:08d}.json":
                    found.append(commit)
        return sorted(found, key=lambda c: -c.serial)

    def commit(
        self,
        commit: Commit,
        *,
        traces: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        state: Mapping[str, Tensor],
    ) -> None:
        """Make `commit` the newest: its new draws, then the state, then the record.

        Args:
            commit: Without the state's hash.
            traces: The draws since the last commit, `[C, d, …]`.
            weights: The same of the weights, where they are kept.
            state: Everything else that it takes to go on.
        """
        from safetensors.torch import save

        for arrays, new in ((self.traces, traces), (self.weights, weights)):
            if new:
                fresh = next(iter(new.values())).shape[1]
                arrays.append(new, start=commit.draws - fresh)
        place = f"{self._place}/{commit.serial:08d}"
        content = save({n: x.contiguous() for n, x in state.items()})
        self._folder.write(f"{place}.safetensors", content)
        record = {**asdict(commit), "sha256": hashlib.sha256(content).hexdigest()}
        self._folder.write(f"{place}.json", json.dumps(record).encode())
        self._folder.renew()
        for name in self._folder.names(self._place):
            serial = name.partition(".")[0]
            if serial.isdigit() and int(serial) <= commit.serial - _KEPT:
                self._folder.remove(f"{self._place}/{name}")

    def state(self, commit: Commit) -> dict[str, Tensor]:
        """The state of a commit.

        Raises:
            DamagedRun: It is gone or not as it was written.
        """
        from safetensors.torch import load

        name = f"{self._place}/{commit.serial:08d}.safetensors"
        try:
            content = self._folder.read(name)
        except OSError as error:
            raise DamagedRun(f"{name} cannot be read: {error}.") from error
        if hashlib.sha256(content).hexdigest() != commit.sha256:
            raise DamagedRun(f"{name} is not what was written.")
        return load(content)

    def good_draws(self, names: list[str]) -> int:
        """Committed draws up to which all these traces can be read."""
        commits = self.commits()
        if not commits or not names:
            return 0
        newest = commits[0].draws
        return min(self.traces.good_length(name, newest) for name in names)

    def usable(self, names: list[str]) -> tuple[Commit, dict[str, Tensor]] | None:
        """The newest commit whose state and traces are whole; a damaged tail is cut off.

        Args:
            names: The traces that must be there.
        """
        commits = self.commits()
        good = self.good_draws(names)
        for commit in commits:
            if commit.draws > good:
                continue
            try:
                state = self.state(commit)
            except DamagedRun:
                continue
            if good < commits[0].draws or commit is not commits[0]:
                self.traces.cut(commit.draws)
                self.weights.cut(commit.draws)
            return commit, state
        if commits:
            self.restart()
        return None

    def restart(self) -> None:
        """Forget everything about the block."""
        for name in (self._place, f"{TRACES}/{self._name}", f"{WEIGHTS}/{self._name}"):
            self._folder.remove(name)

    @property
    def _name(self) -> str:
        return self._place.rpartition("/")[2]
