"""Runs and banks of versions that had no digests: read when complete, and never gone on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bif
from bank_cases import PLAN, bank, bits
from bif.bank import load
from bif.store import FolderInUse
from bif.store.checkpoints import _check
from broken_runs import assert_same
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")


def edited(path: Path, *without: str, **changed: Any) -> None:
    found = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({n: v for n, v in found.items() if n not in without}))


def older(folder: Path) -> Path:
    """A run as the first format had it."""
    for path in (folder / "run.json", folder / "checkpoints/run.json"):
        edited(path, "check", "token", "results", format=1)
    for path in folder.glob("checkpoints/block-*/*.json"):
        edited(path, "check", "place", "traces", "weights")
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "check": _check(json.dumps(found).encode())}))
    (folder / ".bif").unlink()
    return folder


def test_a_complete_run_is_read_and_refused_in_one_sentence_where_it_was_to_go_on(
    tmp_path,
):
    expected = bif.attribute(classification(), TINY, out=tmp_path / "run")
    folder = older(tmp_path / "run")
    assert_same(bif.load(folder), expected)
    for go_on in (
        lambda: bif.attribute(classification(), TINY, out=folder),
        lambda: bif.extend(folder, classification(), draws=9),
    ):
        with pytest.raises(FolderInUse, match=r"of an earlier version of bif, .* cannot go on"):
            go_on()
    assert_same(bif.attribute(classification(), TINY, out=folder, on_existing="replace"), expected)


def test_a_complete_bank_is_read_and_refused_in_one_sentence_where_it_was_to_go_on(tmp_path):
    expected = bits(bank(tmp_path))
    for name in ("bank.json", "bank.spare.json"):
        edited(tmp_path / name, "check", "token", format=1)
    for part in (tmp_path / "bank.zarr").iterdir():
        shutil.rmtree(part / "check", ignore_errors=True)
    (tmp_path / ".bif").unlink()
    assert bits(load(tmp_path)) == expected
    assert bits(bank(tmp_path)) == expected  # there is nothing to train
    with pytest.raises(FolderInUse, match=r"of an earlier version of bif, .* cannot go on"):
        bank(tmp_path, plan=replace(PLAN, num_subsets=9))
