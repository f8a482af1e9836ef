"""Shares of `benchmarks/sweep.py` and the files that they become."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sweep")


def shares(sweep, folder: Path, *, kept: int) -> list[Path]:
    """Two files with the first entries of the grid, by turns."""
    entries = [{"name": "sweep", **entry, "lds": 0.5} for entry in sweep.grid()][:kept]
    files = []
    for k in (0, 1):
        content = {
            "benchmark": "sweep-digits", "date": "2026-01-02", "budget": 5.0, "seed": 0,
            "versions": {}, "hardware": {}, "about": "", "command": f"share {k}",
            "sweep": entries[k::2],
        }  # fmt: skip
        files.append(folder / f"{k}.json")
        files[-1].write_text(json.dumps(content))
    return files


def joined(sweep, folder: Path, files: list[Path], **given) -> dict:
    out = folder / "out"
    usual = {"setting": "digits", "size": None, "unfinished": False}
    sweep.joined(argparse.Namespace(join=files, out=out, **(usual | given)))
    (file,) = out.iterdir()
    return {"file": file.name, **json.loads(file.read_text())}


def test_shares_become_one_file_in_their_settings_name(sweep, tmp_path):
    found = joined(sweep, tmp_path, shares(sweep, tmp_path, kept=48))
    assert found["file"] == "sweep-digits-2026-01-02.json" and len(found["sweep"]) == 48
    assert found["command"] == "share 0; share 1"


def test_a_sweep_of_another_size_has_a_name_of_its_own(sweep, tmp_path):
    found = joined(sweep, tmp_path, shares(sweep, tmp_path, kept=48), size=64)
    assert found["file"] == "sweep-digits-64-2026-01-02.json"
    assert found["benchmark"] == "sweep-digits-64"


def test_missing_entries_are_joined_only_where_that_is_said(sweep, tmp_path):
    files = shares(sweep, tmp_path, kept=27)
    with pytest.raises(ValueError, match="hold 27 entries of the grid; expected each of the 48"):
        joined(sweep, tmp_path, files)
    assert len(joined(sweep, tmp_path, files, unfinished=True)["sweep"]) == 27


def test_an_entry_twice_is_refused_even_then(sweep, tmp_path):
    files = shares(sweep, tmp_path, kept=27)
    with pytest.raises(ValueError, match="at most once"):
        joined(sweep, tmp_path, [files[0], *files], unfinished=True)


def test_the_newest_run_of_a_setting_and_of_each_size_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    for name in (
        "sweep-cifar-2026-01-01", "sweep-cifar-2026-01-03", "sweep-cifar-1000-2026-01-04",
        "sweep-cifar-64-2026-01-02", "sweep-cifar-64-2026-01-01", "sweep-cifar-small-2026-01-05",
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    assert [run["name"] for run in common.newest_of_sizes("sweep-cifar")] == [
        "sweep-cifar-2026-01-03", "sweep-cifar-64-2026-01-02", "sweep-cifar-1000-2026-01-04",
    ]  # fmt: skip
    assert common.newest_of_sizes("sweep-digits") == []
