"""Manifests and what lies beside them: the spare, values at w*, copies, differences in words."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from bif.store import (
    RUN,
    DamagedRun,
    FolderInUse,
    copy_run,
    differences,
    folder_at,
    open_run,
    progress,
    read_run,
    reopen_run,
)
from run_folders import begun, content, ended, resealed, wanted


class TestManifests:
    def test_changes_are_on_disk_twice(self, tmp_path):
        folder = begun(tmp_path / "r")
        with reopen_run(folder) as run:
            run.update({"note": np.float32(0.5)})
        assert RUN.read(folder_at(folder))["note"] == 0.5
        (folder / "run.json").write_bytes(b"\0" * 9)
        assert RUN.read(folder_at(folder))["note"] == 0.5

    def test_the_spare_of_a_complete_run_does_not_call_it_complete(self, tmp_path):
        folder = ended(tmp_path / "r")
        (folder / "run.json").write_text("")
        assert RUN.read(folder_at(folder))["complete"] is False

    def test_without_either_it_is_refused_and_says_what_to_do(self, tmp_path):
        folder = ended(tmp_path / "r")
        for name in ("run.json", "checkpoints/run.json"):
            (folder / name).write_text("{")
        with pytest.raises(DamagedRun, match=r"run\.json is damaged.*Pass --overwrite"):
            RUN.read(folder_at(folder))
        with open_run(folder, wanted(), on_existing="replace") as run:
            assert not run.begun

    @pytest.mark.parametrize(
        ("entry", "value"),
        [
            ("identity", []), ("keep", "everything"), ("complete", "yes"),
            ("blocks", [[0, 2], [3, 4]]), ("blocks", [[0, 10**9]]), ("arrays", "train_loss-0"),
            ("arrays", ["x" * 99]), ("left_out", [-1]), ("warnings", [1]), ("chains", [[]]),
            ("settings", 3),
        ],
    )  # fmt: skip
    def test_entries_of_other_types_are_damage(self, tmp_path, entry, value):
        folder = ended(tmp_path / "r")
        (folder / "checkpoints" / "run.json").unlink()
        resealed(folder / "run.json", **{entry: value})
        with pytest.raises(DamagedRun, match=rf"run\.json is damaged: .*{entry}"):
            RUN.read(folder_at(folder))

    def test_progress_is_given_in_draws_of_all_chains(self, tmp_path):
        folder = begun(tmp_path / "r")
        assert progress(folder) == "not yet sampling"
        with reopen_run(folder) as run:
            run.update({"settings": {"chains": 2, "draws": 5}})
        assert progress(folder) == "6 of 10 draws committed"
        with pytest.raises(FileNotFoundError, match="holds no run of bif"):
            progress(tmp_path / "nowhere")


class TestCenterValues:
    def test_center_values_come_back_to_the_bit(self, tmp_path):
        values = {
            "train_loss-0": torch.tensor([1.0, float("nan")]),
            "query_value-0": torch.ones(2, 3),
        }
        with open_run(tmp_path / "r", wanted()) as run:
            assert run.center_values() == {}
            run.keep_center_values(values)
            found = run.center_values()
        assert found.keys() == values.keys()
        for name in values:
            assert torch.equal(found[name].view(torch.int32), values[name].view(torch.int32))


class TestCopies:
    def test_a_copy_holds_the_same_bytes_and_the_original_stays(self, tmp_path):
        folder = ended(tmp_path / "r")
        before = content(folder)
        copy_run(folder, tmp_path / "deep" / "copy")
        assert content(tmp_path / "deep" / "copy") == before == content(folder)

    def test_a_run_that_is_not_complete_is_not_copied(self, tmp_path):
        with pytest.raises(FolderInUse, match="not complete: let it end before it is copied"):
            copy_run(begun(tmp_path / "r"), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_what_is_there_is_not_overwritten(self, tmp_path):
        folder, other = ended(tmp_path / "r"), ended(tmp_path / "other", model="def")
        before = content(other)
        with pytest.raises(FolderInUse, match="holds a run already"):
            copy_run(folder, other)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("years of work")
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            copy_run(folder, tmp_path / "mine")
        assert content(other) == before
        assert content(tmp_path / "mine") == {"thesis.tex": b"years of work"}

    def test_a_copy_that_was_cut_short_is_no_run_and_is_made_again(self, tmp_path):
        folder = ended(tmp_path / "r")
        copy_run(folder, tmp_path / "copy")
        (tmp_path / "copy" / "run.json").unlink()
        shutil.rmtree(tmp_path / "copy" / "traces.zarr")
        with pytest.raises(FileNotFoundError, match="holds no run of bif"):
            read_run(tmp_path / "copy")
        copy_run(folder, tmp_path / "copy")
        assert content(tmp_path / "copy") == content(folder)

    def test_a_copy_goes_to_another_file_system_and_back(self, tmp_path):
        pytest.importorskip("fsspec", reason="fsspec is not installed")
        folder = ended(tmp_path / "r")
        copy_run(folder, f"memory://{tmp_path}/copy")
        copy_run(f"memory://{tmp_path}/copy", tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)


class TestDifferences:
    def test_entries_are_named_by_their_path(self):
        found = {"a": {"b": 1, "c": {"d": [1]}}, "e": None}
        assert differences(found, found) == []
        other = {"a": {"b": 2, "c": {"d": [2]}}, "f": 0}
        assert differences(found, other) == ["a.b", "a.c.d", "f"]

    def test_whole_parts_that_are_of_another_kind_are_named_once(self):
        assert differences({"a": {"b": 1}}, {"a": 3}) == ["a"]
        assert differences([1], {"a": 1}, "top") == ["top"]
