"""Commits: how far a block of chains has come, and all that it takes to go on to the last bit.

A commit is written in this order: draws, weights, state, record.  What has no record does not
count, so a reader never sees half a draw, and a writer that is killed loses what came after its
last record.  The last two commits are kept, should the newest be damaged.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif.store.arrays import DrawArrays
from bif.store.folder import CHECKPOINTS, TRACES, WEIGHTS, Buffer, DamagedRun, Folder

_KEPT = 2
_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


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
        state_check: CRC-32 of the state file.
    """

    serial: int
    step: int
    draws: int
    diverged: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    hardware: Mapping[str, str] = field(default_factory=dict)
    state_check: int = 0

    @classmethod
    def parsed(cls, content: bytes) -> Commit:
        """From a record's bytes.

        Raises:
            DamagedRun: They are no record.
        """
        try:
            found = json.loads(content)
            check = int(found.pop("check"))
            commit = cls(
                serial=int(found["serial"]),
                step=int(found["step"]),
                draws=int(found["draws"]),
                diverged={int(c): int(d) for c, d in found["diverged"].items()},
                seconds=float(found["seconds"]),
                hardware={str(k): str(v) for k, v in found["hardware"].items()},
                state_check=int(found["state_check"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError,
                RecursionError) as error:  # fmt: skip
            raise DamagedRun(f"a commit record is damaged: {error!r}.") from error
        if check != _check(json.dumps(found).encode()):
            raise DamagedRun("a commit record is not what was written.")
        if min(commit.serial, commit.step, commit.draws) < 0:
            raise DamagedRun("a commit record counts below zero.")
        return commit

    def as_bytes(self) -> bytes:
        """A record that `parsed` reads."""
        found = json.loads(json.dumps(asdict(self)))  # as it will be read
        return json.dumps({**found, "check": _check(json.dumps(found).encode())}).encode()


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
            commit: Its `state_check` is filled in.
            traces: The draws since the last commit, `[C, d, …]`.
            weights: The same of the weights, where they are kept.
            state: Everything else that it takes to go on.
        """
        for arrays, new in ((self.traces, traces), (self.weights, weights)):
            if new:
                fresh = next(iter(new.values())).shape[1]
                arrays.append(new, start=commit.draws - fresh)
        place = f"{self._place}/{commit.serial:08d}"
        content = safetensors(state)
        self._folder.write(f"{place}.safetensors", *content)
        whole = replace(commit, state_check=_check(*content))
        self._folder.write(f"{place}.json", whole.as_bytes())
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
        if _check(content) != commit.state_check:
            raise DamagedRun(f"{name} is not what was written.")
        try:
            return load(content)
        except Exception as error:  # whatever a reader says of bytes that are not its own
            raise DamagedRun(f"{name} is damaged: {error}.") from error

    def good_draws(self, traces: list[str], weights: Sequence[str] = ()) -> int:
        """Committed draws up to which all these arrays can be read."""
        commits = self.commits()
        if not commits:
            return 0
        newest = commits[0].draws
        lengths = [self.traces.good_length(name, newest) for name in traces]
        lengths += [self.weights.good_length(name, newest) for name in weights]
        return min(lengths, default=0)

    def usable(
        self, traces: list[str], weights: Sequence[str] = ()
    ) -> tuple[Commit, dict[str, Tensor]] | None:
        """The newest commit whose state and draws are whole; a damaged tail is cut off.

        Args:
            traces: The arrays of traces that must be there.
            weights: The arrays of weights.
        """
        commits = self.commits()
        good = self.good_draws(traces, weights)
        for commit in commits:
            if commit.draws > good:
                continue
            try:
                state = self.state(commit)
                if good < commits[0].draws or commit is not commits[0]:
                    self.traces.cut(commit.draws)
                    self.weights.cut(commit.draws)
            except DamagedRun:
                continue
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


def safetensors(tensors: Mapping[str, Tensor]) -> list[Buffer]:
    """The parts of a safetensors file, without a copy of the tensors.

    The library's own `save` copies everything twice under the interpreter's lock, which stalls the
    sampling; its `load` reads what is made here.
    """
    header: dict[str, Any] = {}
    parts: list[Buffer] = []
    start = 0
    for name, x in tensors.items():
        data = x.contiguous().reshape(-1).view(torch.uint8).numpy().data
        stop = start + data.nbytes
        header[name] = {
            "dtype": _DTYPES[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [start, stop],
        }
        parts.append(data)
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _check(*parts: Buffer) -> int:
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    return check
