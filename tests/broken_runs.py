"""Runs on disk that end too early, and what can happen to their files afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import cli
from bif.runs import block_run
from bif.sampling.engine import Engine
from bif.store import BlockStore, DamagedRun, FolderInUse, arrays
from bif.store.folder import LocalFolder
from bif.types import Batch
from small_problems import TINY, classification, nothing_measured

SETTINGS = replace(TINY, block_size=2, burn_in=2)
"""Two blocks of two chains, six draws of each."""


class Crash(Exception):
    """Something that ends a run without ceremony."""


class Calls:
    """Counts calls of the loss, and crashes one of them."""

    def __init__(self) -> None:
        self.count, self.crash_at, self.scale = 0, -1, 1.0
        self.before: int | None = None
        """Calls that preceded the first step."""

    @property
    def walking(self) -> int:
        """Calls since the chains set out."""
        return 0 if self.before is None else self.count - self.before


CALLS = Calls()


def fragile(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy that looks at global variables, which fingerprints do not see."""
    CALLS.count += 1
    if CALLS.count == CALLS.crash_at:
        raise Crash
    return CALLS.scale * bif.losses.cross_entropy(model, batch)


def problem(**changed: Any) -> bif.Problem:
    return classification(**{"loss": fragile, "observables": None, **changed})


def attribute(
    out: Path,
    *,
    crash_at: int = -1,
    made: bif.Problem | None = None,
    settings: bif.Settings = SETTINGS,
    commit_every: float = 0.0,
    **given: Any,
) -> bif.Run:
    """The run of this file, with a commit after every step."""
    made = made or problem()
    CALLS.count, CALLS.crash_at, CALLS.before = 0, crash_at, None
    positions = Engine.positions

    def noted(*args: Any, **more: Any) -> Iterator[Any]:
        CALLS.before = CALLS.count if CALLS.before is None else CALLS.before
        return positions(*args, **more)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "positions", noted)
            return bif.attribute(made, settings, out=out, commit_every=commit_every, **given)
    finally:
        CALLS.crash_at = -1


@contextlib.contextmanager
def small_shards_and_no_pictures() -> Iterator[None]:
    """Commits as often as asked for, train losses in chunks of one draw and shards of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_run, "_COMMIT_SHARE", 0)
        patch.setattr(arrays, "_CHUNK_BYTES", 2 * 20 * 8)
        patch.setattr(arrays, "_SHARD_BYTES", 2 * 2 * 20 * 8)
        patch.setattr("bif.report.render_report", lambda *_, **__: "<html></html>")
        patch.setattr(block_run, "check", nothing_measured)
        yield


class Whole(NamedTuple):
    """A run that nothing disturbed: folder, run, calls of the loss before and in its steps."""

    folder: Path
    run: bif.Run
    before: int
    walking: int


def undisturbed(folder: Path) -> Whole:
    run = attribute(folder)
    assert CALLS.before is not None
    return Whole(folder, run, CALLS.before, CALLS.walking)


def crashed(folder: Path, whole: Whole, share: float = 0.95, **given: Any) -> Path:
    """A run that crashed: by default in the second block, with five of its six draws committed."""
    with pytest.raises(Crash):
        attribute(folder, crash_at=whole.before + round(share * whole.walking), **given)
    return folder


def draws_of(folder: Path) -> list[int]:
    """Draws that the newest commits count."""
    found = [BlockStore(LocalFolder(folder), block).commits() for block in range(2)]
    return [commits[0].draws if commits else 0 for commits in found]


def assert_same(run: bif.Run, expected: bif.Run) -> None:
    """To the last bit: traces, scores, errors."""
    assert run.summary["complete"] is True and run.manifest["complete"] is True
    assert len(run.traces.blocks) == len(expected.traces.blocks)
    for a, b in zip(run.traces.blocks, expected.traces.blocks, strict=True):
        assert a.chains == b.chains
        assert torch.equal(a.train, b.train) and torch.equal(a.query, b.query)
    for name, values in expected.influence.dataset.variables.items():
        np.testing.assert_array_equal(run.influence.dataset[name].values, values.values)


def assert_goes_on(folder: Path, whole: Whole, **given: Any) -> None:
    """The same call completes the run, and what it left can be read."""
    assert_same(attribute(folder, commit_every=60, **given), whole.run)
    assert_same(bif.load(folder), whole.run)


def record(folder: Path, block: int = 1, newest: int = -1) -> Path:
    return sorted((folder / f"checkpoints/block-00{block}").glob("*.json"))[newest]


def state(folder: Path, block: int = 1) -> Path:
    return record(folder, block).with_suffix(".safetensors")


def array(folder: Path, name: str = "train_loss-0", block: int = 1) -> Path:
    return folder / f"traces.zarr/block-00{block}" / name


def last_shard(folder: Path, name: str = "train_loss-0", block: int = 1) -> Path:
    return sorted(p for p in (array(folder, name, block) / "c").rglob("*") if p.is_file())[-1]


def truncate(path: Path, left: int | None = None) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if left is None else left])


def flip(path: Path, position: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def shown(folder: Path) -> None:
    """`bif show`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bif", "show", str(folder)])
        try:
            cli.main()
        except SystemExit as stop:
            assert stop.code == 2


USES: dict[str, Callable[[Path], object]] = {
    "load": lambda folder: bif.load(folder),
    "show": shown,
    "attribute": lambda folder: attribute(folder, commit_every=60),
    "extend": lambda folder: bif.extend(folder, problem(), draws=7),
}
"""What can be done with a folder."""

OWN_ERRORS = (DamagedRun, FolderInUse, FileNotFoundError, ValueError)


def newest(folder: Path, name: str) -> str:
    """The name with `NEWEST`, of a commit, filled in."""
    if "NEWEST" not in name:
        return name
    return name.replace("NEWEST", sorted((folder / name).parent.glob("*.json"))[-1].stem)


def with_its_hash(path: Path, content: bytes) -> None:
    """Another state, of which the record says that it is whole."""
    path.write_bytes(content)
    edit(path.with_suffix(".json"), sha256=hashlib.sha256(content).hexdigest())
