"""Commit how far a block of chains has come, with all that it takes to go on.

A commit is written in this order: draws, weights, state, record.  What has no record does not
count, so a reader never sees half a draw, and a writer that is killed loses what came after its
last record.  The last two commits are kept, should the newest be damaged.  A record says whose it
is and holds the digests of all draws, so that what lies in another's place is found.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif.store.arrays import DigestTable, DrawArrays
from bif.store.folder import CHECKPOINTS, TRACES, WEIGHTS, Buffer, DamagedRun, Folder, name_damage
from bif.store.marks import remove_checkpoints
from bif.store.seals import digest

_KEPT = 2
"""Commits that are kept, so that one stays if the newest is damaged."""
_FILE = re.compile(r"(\d{8,})\.(json|safetensors)")
"""Names of a commit's files, by its serial."""
_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """A record of how far a block has come.

    Attributes:
        serial: Counts the block's commits.
        step: The step that comes next.
        draws: Draws in the arrays.
        diverged: Chains to the draw at which they diverged.
        seconds: Sampling time so far.
        hardware: Description of the device.
        state_check: CRC-32 of the state file.
        place: Name of the run and block.
        traces: Digests of the draws of every array; None in a record of an older version.
        weights: Digests of the arrays of weights, likewise.
    """

    serial: int
    step: int
    draws: int
    diverged: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    hardware: Mapping[str, str] = field(default_factory=dict)
    state_check: int = 0
    place: str = ""
    traces: Mapping[str, DigestTable] | None = None
    weights: Mapping[str, DigestTable] | None = None

    @classmethod
    def parse(cls, content: bytes) -> Commit:
        """Return the commit of a record's bytes.

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
                place=str(found.get("place", "")),
                traces=_tables(found.get("traces")),
                weights=_tables(found.get("weights")),
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
        """Return a record that `parse` reads."""
        found = json.loads(json.dumps(asdict(self)))  # as it will be read
        return json.dumps({**found, "check": _check(json.dumps(found).encode())}).encode()


class BlockStore:
    """One block of chains on disk.

    Args:
        folder: The run's folder.
        block: The block's index.
        token: The run's own; records of another run do not count. Not compared if empty.
        shard: Of a model that several processes hold: the first has the draws, and each its state.
    """

    def __init__(self, folder: Folder, block: int, *, token: str = "", shard: int = 0) -> None:
        self._folder, self._token = folder, token
        self._name = f"block-{block:03d}" + (f"-shard-{shard:03d}" if shard else "")
        self._place = f"{CHECKPOINTS}/{self._name}"
        self.traces = DrawArrays(folder, f"{TRACES}/{self._name}")
        self.weights = DrawArrays(folder, f"{WEIGHTS}/{self._name}")

    def commits(self) -> list[Commit]:
        """Return the readable records of this run and block, newest first."""
        found = []
        for name in self._folder.names(self._place):
            if name.endswith(".json"):
                try:
                    commit = Commit.parse(self._folder.read(f"{self._place}/{name}"))
                except (DamagedRun, FileNotFoundError, IsADirectoryError):
                    continue
                if name == f"{commit.serial:08d}.json" and self._is_own(commit):
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
            commit: The record, whose `state_check`, place and digests are filled in.
            traces: The draws since the last commit, `[C, d, …]`.
            weights: New draws of the weights, where these are kept.
            state: Everything else that it takes to go on.
        """
        for arrays, new in ((self.traces, traces), (self.weights, weights)):
            if new:
                fresh = next(iter(new.values())).shape[1]
                arrays.append(new, start=commit.draws - fresh)
        content = safetensors(state)
        self._folder.write(f"{self._place}/{commit.serial:08d}.safetensors", *content)
        self._record(replace(commit, state_check=_check(*content)))
        self._folder.renew()
        for name in self._folder.names(self._place):
            match = _FILE.fullmatch(name)
            if match and int(match[1]) <= commit.serial - _KEPT:
                self._folder.remove(f"{self._place}/{name}")

    def amend(self, commit: Commit) -> None:
        """Enter the digests of arrays that were added since into the record."""
        self._record(commit)

    def _record(self, commit: Commit) -> None:
        whole = replace(
            commit,
            place=f"{self._token}/{self._name}",
            traces=self.traces.tables or {},
            weights=self.weights.tables or {},
        )
        self._folder.write(f"{self._place}/{commit.serial:08d}.json", whole.as_bytes())

    def _is_own(self, commit: Commit) -> bool:
        token, _, block = commit.place.partition("/")
        return block in ("", self._name) and (not self._token or token == self._token)

    def _trust(self, commit: Commit) -> None:
        """Hold what is read from now on against the digests of this commit."""
        self.traces.trust(commit.traces)
        self.weights.trust(commit.weights)

    def state(self, commit: Commit) -> dict[str, Tensor]:
        """Return the state of a commit.

        Raises:
            DamagedRun: It is gone or not as it was written.
        """
        from safetensors.torch import load

        name = f"{self._place}/{commit.serial:08d}.safetensors"
        try:
            content = self._folder.read(name)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DamagedRun(f"{name} is missing.") from error
        if _check(content) != commit.state_check:
            raise DamagedRun(f"{name} is not what was written.")
        with name_damage(name):
            return load(content)

    def good_draws(self, traces: list[str], weights: Sequence[str] = ()) -> int:
        """Return up to which draw of the newest commit all these arrays can be read."""
        commits = self.commits()
        if not commits:
            return 0
        self._trust(commits[0])
        return self._good_length(traces, weights, commits[0].draws)

    def segments(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the draws of the newest commit in order, some at a time, `[C, d, …]` by name.

        Each stored chunk is read and compared once, and none waits in memory but the newest.

        Raises:
            DamagedRun: One of them is not what was written.
        """
        commits = self.commits()
        draws = commits[0].draws if commits else 0
        if not draws:
            return
        self._trust(commits[0])
        tables = self.traces.tables or {}
        missing = [name for name in names if name not in tables]
        if missing:
            raise DamagedRun(f"{self._name} has no committed draws of {', '.join(missing)}.")
        open_, read = dict[str, np.ndarray](), dict.fromkeys(names, 0)
        start = 0
        while start < draws:
            for name in names:
                if name not in open_ or not open_[name].shape[1]:
                    stop = min(read[name] + tables[name].unit, draws)
                    open_[name] = self.traces.read(name, read[name], stop)
                    read[name] = stop
            count = min(values.shape[1] for values in open_.values())
            yield {name: values[:, :count] for name, values in open_.items()}
            open_ = {name: values[:, count:] for name, values in open_.items()}
            start += count

    def _good_length(self, traces: list[str], weights: Sequence[str], draws: int) -> int:
        lengths = [self.traces.good_length(name, draws) for name in traces]
        lengths += [self.weights.good_length(name, draws) for name in weights]
        return min(lengths, default=0)

    def usable(
        self, traces: list[str], weights: Sequence[str] = (), *, last_step: int | None = None
    ) -> tuple[Commit, dict[str, Tensor]] | None:
        """Return the newest commit whose state and draws are whole; cut off a damaged tail.

        Args:
            traces: The arrays of traces that must be there.
            weights: The arrays of weights.
            last_step: Step beyond which no commit counts.

        Raises:
            OSError: The files cannot be read now; nothing is cut off.
        """
        commits = self.commits()
        for commit in commits:
            if last_step is not None and commit.step > last_step:
                continue
            self._trust(commit)
            if self._good_length(traces, weights, commit.draws) < commit.draws:
                continue
            try:
                state = self.state(commit)
                if commit is not commits[0]:
                    self.traces.cut(commit.draws)
                    self.weights.cut(commit.draws)
            except DamagedRun:
                continue
            return commit, state
        if commits:
            self.restart()
        else:
            self.traces.trust({})
            self.weights.trust({})
        return None

    def restart(self) -> None:
        """Forget everything about the block."""
        remove_checkpoints(self._folder, self._name)
        for arrays, place in ((self.traces, TRACES), (self.weights, WEIGHTS)):
            self._folder.remove(f"{place}/{self._name}")
            arrays.trust({})


def _tables(found: Any) -> dict[str, DigestTable] | None:
    return None if found is None else {str(n): DigestTable.parse(t) for n, t in found.items()}


def seal_tensors(tensors: Mapping[str, Tensor], *, token: str) -> list[Buffer]:
    """Return a safetensors file that says whose it is, with its content's digest."""
    in_order = dict(sorted(tensors.items()))
    return safetensors(in_order, about={"run": token, "check": digest(*safetensors(in_order))})


def unseal_tensors(content: bytes, place: str, *, token: str) -> dict[str, Tensor]:
    """Return the tensors of a file that `seal_tensors` made.

    Raises:
        DamagedRun: It is not what was written, or of another run.
    """
    from safetensors.torch import load

    with name_damage(place):
        found = load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        check = digest(*safetensors(dict(sorted(found.items()))))
        if (about["run"], about["check"]) != (token, check):
            raise DamagedRun(f"{place} is damaged: it is not what this run has written.")
    return found


def safetensors(
    tensors: Mapping[str, Tensor], *, about: Mapping[str, str] | None = None
) -> list[Buffer]:
    """Return the parts of a safetensors file, without a copy of the tensors.

    The library's own `save` copies everything twice under the interpreter's lock, which stalls the
    sampling; its `load` reads what is made here.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
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
