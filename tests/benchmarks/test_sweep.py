"""Shares of `benchmarks.sweep` and the file that they become."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import sweep


def shares(folder: Path, *, kept: int) -> list[Path]:
    """Two files with the first entries of the grid, by turns."""
    entries = [{"name": "sweep", **entry, "lds": 0.5} for entry in sweep.grid()][:kept]
    files = [folder / "0.json", folder / "1.json"]
    for k, file in enumerate(files):
        content = {
            "benchmark": "sweep-digits", "date": "2026-01-02", "budget": 5.0, "seed": 0,
            "versions": {}, "hardware": {}, "about": "", "command": f"share {k}",
            "sweep": entries[k::2],
        }  # fmt: skip
        file.write_text(json.dumps(content))
    return files


def join_shares(folder: Path, files: list[Path], **given) -> dict:
    usual = {"setting": "digits", "size": None, "unfinished": False, "out": folder / "out"}
    sweep.join_shares(argparse.Namespace(join=files, **(usual | given)))
    (file,) = (folder / "out").iterdir()
    return {"file": file.name, **json.loads(file.read_text())}


@pytest.mark.parametrize(("size", "name"), [(None, "sweep-digits"), (64, "sweep-digits-64")])
def test_shares_become_one_file_in_the_name_of_setting_and_size(tmp_path, size, name):
    found = join_shares(tmp_path, shares(tmp_path, kept=48), size=size)
    assert (found["benchmark"], found["file"]) == (name, f"{name}-2026-01-02.json")
    assert len(found["sweep"]) == 48 and found["command"] == "share 0; share 1"


def test_missing_entries_are_joined_only_where_that_is_said(tmp_path):
    files = shares(tmp_path, kept=27)
    with pytest.raises(ValueError, match="hold 27 entries of the grid; expected each of the 48"):
        join_shares(tmp_path, files)
    assert len(join_shares(tmp_path, files, unfinished=True)["sweep"]) == 27


def test_an_entry_twice_is_refused_even_then(tmp_path):
    files = shares(tmp_path, kept=27)
    with pytest.raises(ValueError, match="at most once"):
        join_shares(tmp_path, [files[0], *files], unfinished=True)
