"""Files: fingerprints, folders, moves into place, and what is said when something is off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from bif import store
from bif.store import FolderInUse, check_folder, fingerprint, read_run, write_run
from small_problems import integers, normal

IDENTITY = {
    "identity": {"settings": {"draws": 5, "movable": ("*",), "gamma": None}, "model": "abc"}
}


def run(folder: Path, *, draws: int = 5, report: str = "<html></html>", **manifest: Any) -> Path:
    return write_run(
        folder,
        manifest={**IDENTITY, "complete": True, "warnings": [], **manifest},
        influence=xr.Dataset({"influence": ("train", np.arange(3.0))}),
        diagnostics=xr.Dataset({"ess": ("item", [1.0, np.nan])}, attrs={"diverged_chains": [1]}),
        summary={"draws": draws, "rhat_max": float("nan")},
        report=report,
    )


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestFingerprints:
    BATCH = {"x": normal(3, 2, seed=0), "y": (integers(9, 3, seed=1), torch.ones(3).bfloat16())}

    def test_they_depend_on_nothing_but_content(self):
        again = {
            "y": tuple(t.clone() for t in self.BATCH["y"]), "x": self.BATCH["x"].T.contiguous().T
        }  # fmt: skip
        assert not again["x"].is_contiguous()
        assert fingerprint(again) == fingerprint(self.BATCH)

    @pytest.mark.parametrize("bit", [0, 17, 51, 63])
    def test_one_bit_changes_them(self, bit):
        x = self.BATCH["x"].clone()
        x.view(torch.int64)[2, 1] ^= torch.tensor(1, dtype=torch.int64) << bit
        assert fingerprint({**self.BATCH, "x": x}) != fingerprint(self.BATCH)

    def test_minus_zero_is_not_zero(self):
        assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))

    def test_names_types_and_shapes_count(self):
        x = torch.zeros(4, dtype=torch.int32)
        others = [x.reshape(2, 2), x.view(torch.float32), (x,), {"a": x}, {"b": x}]
        found = {fingerprint(o) for o in (x, *others)}
        assert len(found) == 6

    def test_scalars_and_empty_tensors_have_one(self):
        assert fingerprint({"steps": torch.tensor(3)}) != fingerprint({"steps": torch.tensor(4)})
        assert fingerprint(torch.empty(0, 3)) != fingerprint(torch.empty(3, 0))


class TestCheckFolder:
    def test_nothing_there_or_an_empty_folder_is_free(self, tmp_path):
        assert check_folder(tmp_path / "new", IDENTITY, overwrite=False) is False
        assert check_folder(tmp_path, IDENTITY, overwrite=False) is False

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_other_peoples_files_are_never_replaced(self, tmp_path, overwrite):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(FolderInUse, match="exists and holds no run of bif"):
            check_folder(tmp_path, IDENTITY, overwrite=overwrite)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_nor_is_a_file(self, tmp_path, overwrite):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            check_folder(tmp_path / "out", IDENTITY, overwrite=overwrite)

    def test_this_very_run_complete_is_recognised(self, tmp_path):
        assert check_folder(run(tmp_path / "r"), IDENTITY, overwrite=False) is True

    def test_another_run_is_refused_and_the_differences_named(self, tmp_path):
        folder = run(tmp_path / "r")
        other = {"identity": {"settings": {"draws": 6, "movable": ("*",), "gamma": 2.0},
                              "model": "abc", "loss": "mine"}}  # fmt: skip
        with pytest.raises(
            FolderInUse, match=r"another loss, settings.draws, settings.gamma\..*--overwrite"
        ):
            check_folder(folder, other, overwrite=False)

    def test_a_run_cut_short_is_refused(self, tmp_path):
        folder = run(tmp_path / "r", complete=False)
        with pytest.raises(FolderInUse, match="holds this run, cut short. Pass --overwrite"):
            check_folder(folder, IDENTITY, overwrite=False)

    @pytest.mark.parametrize("complete", [False, True])
    def test_overwrite_replaces_any_run(self, tmp_path, complete):
        folder = run(tmp_path / "r", complete=complete)
        assert check_folder(folder, IDENTITY, overwrite=True) is False


class TestWriteRun:
    def test_everything_is_there_and_nothing_beside_it(self, tmp_path):
        folder = run(tmp_path / "deep" / "r")
        assert files(folder) == [
            "diagnostics.zarr", "influence.zarr", "report.html", "run.json", "summary.json",
        ]  # fmt: skip
        assert files(folder.parent) == ["r"]
        got = read_run(folder)
        assert got["manifest"]["complete"] is True
        assert got["influence"]["influence"].values.tolist() == [0.0, 1.0, 2.0]
        assert got["diagnostics"].attrs["diverged_chains"] == [1]
        assert folder.stat().st_mode & 0o777 == 0o755

    def test_nan_and_infinity_become_null(self, tmp_path):
        folder = run(tmp_path / "r", worst=float("inf"), nested=[{"x": np.float32("nan")}])
        text = (folder / "run.json").read_text() + (folder / "summary.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        got = read_run(folder)
        assert got["summary"]["rhat_max"] is None
        assert got["manifest"]["worst"] is None and got["manifest"]["nested"] == [{"x": None}]

    def test_arrays_scalars_and_tuples_become_plain_json(self, tmp_path):
        path = tmp_path / "x.json"
        store.write_json(
            path, {"a": np.int64(3), "b": (1, np.float64(0.5)), "c": torch.tensor(2.0), "d": True}
        )
        assert json.loads(path.read_text()) == {"a": 3, "b": [1, 0.5], "c": 2.0, "d": True}

    def test_a_run_that_was_there_is_replaced_whole(self, tmp_path):
        folder = run(tmp_path / "r", draws=1)
        (folder / "left-over").write_text("x")
        run(folder, draws=2)
        assert read_run(folder)["summary"]["draws"] == 2
        assert "left-over" not in files(folder) and files(tmp_path) == ["r"]

    def test_an_empty_folder_is_filled(self, tmp_path):
        (tmp_path / "r").mkdir()
        assert read_run(run(tmp_path / "r"))["summary"]["draws"] == 5

    def test_a_folder_that_holds_no_run_is_refused_and_kept(self, tmp_path):
        folder = tmp_path / "documents"
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            run(folder)
        assert files(folder) == ["thesis.tex"] and files(tmp_path) == ["documents"]

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    @pytest.mark.parametrize("step", ["save_dataset", "write_json"])
    def test_a_failure_leaves_the_old_run_and_no_rubbish(self, tmp_path, monkeypatch, step, error):
        folder = run(tmp_path / "r", draws=1)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(store, step, fail)
            with pytest.raises(type(error)):
                run(folder, draws=2)
        assert read_run(folder)["summary"]["draws"] == 1 and files(tmp_path) == ["r"]

    def test_a_failure_of_the_last_move_puts_the_old_run_back(self, tmp_path, monkeypatch):
        folder = run(tmp_path / "r", draws=1)
        rename = Path.rename

        def fail(self: Path, target: Any) -> Path:
            if Path(target) == folder and self.parent == folder.parent:
                raise OSError("no")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(OSError, match="no"):
                run(folder, draws=2)
        assert read_run(folder)["summary"]["draws"] == 1 and files(tmp_path) == ["r"]

    def test_a_failure_without_an_old_run_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "write_json", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "r")
        assert files(tmp_path) == []


class TestReading:
    def test_no_run_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no run of bif: it has no run.json"):
            read_run(tmp_path)

    def test_a_dataset_that_is_not_there_is_refused(self, tmp_path):
        folder = run(tmp_path / "r")
        (folder / "influence.zarr").rename(folder / "gone")
        with pytest.raises(FileNotFoundError, match=r"no influence.zarr at"):
            read_run(folder)

    def test_versions_name_what_numbers_depend_on(self):
        found = store.versions()
        assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert {"python", "numpy", "xarray", "zarr", "arviz-stats"} <= set(found)

    def test_packages_that_are_not_installed_say_so(self, monkeypatch):
        def missing(name: str) -> str:
            raise store.PackageNotFoundError(name)

        monkeypatch.setattr(store, "version", missing)
        assert store.versions()["bayesian-influence"] == "not installed"

    def test_json_has_no_nan(self, tmp_path):
        store.write_json(tmp_path / "x", {"x": math.inf})
        assert store.read_json(tmp_path / "x") == {"x": None}
