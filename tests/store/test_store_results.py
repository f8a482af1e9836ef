"""Results on disk: datasets and JSON, written whole, and what is refused when they are read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from bif.store import (
    RUN,
    DamagedRun,
    Folder,
    FolderInUse,
    folder_at,
    load_dataset,
    plain,
    read_run,
    results,
    save_dataset,
)


def write(folder: Path, *, draws: int = 5, **manifest: Any) -> Path:
    """A run's results."""
    results.write_results(
        folder_at(folder),
        manifest={"complete": True, "warnings": [], **manifest},
        influence=xr.Dataset({"influence": ("train", np.arange(3.0) + draws)}),
        diagnostics=xr.Dataset({"ess": ("item", [1.0, np.nan])}, attrs={"diverged_chains": [1]}),
        summary={"draws": draws, "rhat_max": float("nan")},
        report=f"<html>{draws}</html>",
    )
    return folder


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestWriting:
    def test_everything_is_there_and_nothing_beside_it(self, tmp_path):
        folder = write(tmp_path / "deep" / "r")
        assert files(folder) == [
            ".bif", "diagnostics.zarr", "influence.zarr", "report.html", "run.json", "summary.json",
        ]  # fmt: skip
        assert files(folder.parent) == ["r"]
        got = read_run(folder)
        assert got["manifest"]["complete"] is True
        assert got["influence"]["influence"].values.tolist() == [5.0, 6.0, 7.0]
        assert got["diagnostics"].attrs["diverged_chains"] == [1]
        assert (folder / "report.html").read_text() == "<html>5</html>"
        umask = os.umask(0)
        os.umask(umask)
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_results_that_were_there_are_replaced_whole(self, tmp_path):
        folder = write(tmp_path / "r", draws=1)
        (folder / "influence.zarr" / "left-over").write_text("x")
        write(folder, draws=2)
        got = read_run(folder)
        assert got["summary"]["draws"] == 2 and got["influence"]["influence"].values[0] == 2.0
        assert "left-over" not in files(folder / "influence.zarr")
        assert files(folder) == files(write(tmp_path / "fresh"))

    def test_what_a_killed_writer_left_does_not_matter(self, tmp_path):
        (tmp_path / "r" / "influence.zarr.partial").mkdir(parents=True)
        (tmp_path / "r" / "influence.zarr.partial" / "zarr.json").write_text("half")
        assert read_run(write(tmp_path / "r"))["summary"]["draws"] == 5

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    @pytest.mark.parametrize(
        ("step", "call"), [("save_dataset", 0), ("save_dataset", 1), ("write_json", 0)]
    )
    def test_a_failure_leaves_a_run_that_does_not_claim_to_be_complete(
        self, tmp_path, monkeypatch, step, call, error
    ):
        """As `finish` has it: the manifest said "not complete" before, and says so after."""
        folder = write(tmp_path / "r", draws=1, complete=False)
        original: Callable[..., Any] = getattr(results, step)
        calls = []

        def fail(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) > call:
                raise error
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(results, step, fail)
            with pytest.raises(type(error)):
                write(folder, draws=2)
        assert RUN.read(folder_at(folder))["complete"] is False
        assert read_run(write(folder, draws=2))["summary"]["draws"] == 2
        assert files(folder) == files(write(tmp_path / "fresh"))

    def test_halves_of_surrogate_pairs_are_written_out(self, tmp_path):
        texts = ("train", np.array(["a\ud800", "ü"]))
        save_dataset(xr.Dataset(coords={"name": texts}), tmp_path / "x.zarr")
        found = load_dataset(tmp_path / "x.zarr", name="influence.zarr")
        assert found["name"].values.tolist() == ["a\\ud800", "ü"]


class TestJson:
    def test_nan_and_infinity_become_null(self, tmp_path):
        folder = write(tmp_path / "r", worst=float("inf"), nested=[{"x": np.float32("nan")}])
        text = (folder / "run.json").read_text() + (folder / "summary.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        got = read_run(folder)
        assert got["summary"]["rhat_max"] is None
        assert got["manifest"]["worst"] is None and got["manifest"]["nested"] == [{"x": None}]

    def test_arrays_scalars_and_tuples_become_plain(self):
        given = {"a": np.int64(3), "b": (1, np.float64(0.5)), "c": torch.tensor(2.0), 4: True,
                 "e": -math.inf, "f": None}  # fmt: skip
        found = plain(given)
        assert found == {"a": 3, "b": [1, 0.5], "c": 2.0, "4": True, "e": None, "f": None}
        assert json.loads(json.dumps(found, allow_nan=False)) == found

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000], ids=lambda c: repr(c[:5])
    )
    @pytest.mark.parametrize("name", ["run.json", "summary.json"])
    def test_what_is_no_json_object_is_damage(self, tmp_path, name, content):
        folder = write(tmp_path / "r")
        (folder / name).write_bytes(content)
        with pytest.raises(DamagedRun, match=rf"{name} is damaged"):
            read_run(folder)


class TestReading:
    def test_a_folder_without_a_run_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no run of bif: it has no run.json"):
            read_run(tmp_path)

    def test_a_run_without_results_yet_is_refused_and_says_how_to_go_on(self, tmp_path):
        folder = write(tmp_path / "r")
        (folder / "summary.json").unlink()
        with pytest.raises(FileNotFoundError, match="without results yet: run the command"):
            read_run(folder)

    def test_a_dataset_that_is_not_there_is_refused(self, tmp_path):
        folder = write(tmp_path / "r")
        (folder / "influence.zarr").rename(folder / "gone")
        with pytest.raises(DamagedRun, match=r"influence.zarr/.* is damaged: it is missing"):
            read_run(folder)
        with pytest.raises(FileNotFoundError, match=r"no influence.zarr at"):
            load_dataset(folder, name="influence.zarr")

    def test_an_array_whose_bytes_changed_is_damage(self, tmp_path):
        folder = write(tmp_path / "r")
        (chunk,) = (p for p in (folder / "influence.zarr" / "influence" / "c").rglob("*")
                    if p.is_file())  # fmt: skip
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(DamagedRun, match="influence/c/.* is damaged: it is not"):
            read_run(folder)


class TestWhatIsNotOurs:
    def test_nothing_there_or_an_empty_folder_holds_no_run(self, tmp_path):
        assert RUN.holds(folder_at(tmp_path / "new")) is False
        assert RUN.holds(folder_at(tmp_path)) is False
        assert RUN.holds(folder_at(write(tmp_path / "r"))) is True

    def test_other_peoples_files_and_a_file_are_refused(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        for place in (tmp_path, tmp_path / "thesis.tex"):
            with pytest.raises(FolderInUse, match="exists and holds no run of bif"):
                RUN.holds(folder_at(place))

    def test_nor_is_a_lonely_report_taken_for_a_run_that_was_cut_short(self, tmp_path):
        (tmp_path / "report.html").write_text("somebody's")
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            RUN.holds(folder_at(tmp_path))


class TestDatasets:
    DATASET = xr.Dataset(
        {"value": (("a", "b"), np.arange(6, dtype=np.float32).reshape(2, 3)),
         "flag": ("a", [True, False])},
        coords={"name": ("b", np.array(["x", "yy", "zß"]))},
        attrs={"sign": "minus", "list": [1, 2]},
    )  # fmt: skip

    @pytest.fixture(params=["path", "memory"])
    def folder(self, request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
        if request.param == "path":
            return folder_at(tmp_path / "d")
        pytest.importorskip("fsspec", reason="fsspec is not installed")
        return folder_at(f"memory://{tmp_path}/d")

    def test_what_is_saved_is_what_is_loaded(self, folder):
        save_dataset(self.DATASET, folder, name="one.zarr")
        xr.testing.assert_identical(load_dataset(folder, name="one.zarr"), self.DATASET)

    def test_an_existing_one_is_refused(self, folder):
        save_dataset(self.DATASET, folder, name="one.zarr")
        with pytest.raises(FileExistsError, match=r"one\.zarr exists: choose another path"):
            save_dataset(self.DATASET, folder, name="one.zarr")

    def test_any_reader_of_zarr_opens_it(self, tmp_path):
        save_dataset(self.DATASET, tmp_path / "d")
        with xr.open_zarr(tmp_path / "d", consolidated=False) as found:
            xr.testing.assert_identical(found.load(), self.DATASET)


def with_codec(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        metadata = json.loads((place / "value" / "zarr.json").read_text())
        metadata["codecs"] += [{"name": name, "configuration": {}}]
        (place / "value" / "zarr.json").write_text(json.dumps(metadata))

    return change


def nested_codec(place: Path) -> None:
    metadata = json.loads((place / "value" / "zarr.json").read_text())
    inner = {"index_codecs": ["numcodecs.pickle"], "codecs": []}
    metadata["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
    (place / "value" / "zarr.json").write_text(json.dumps(metadata))


def second_format(place: Path) -> None:
    zarr.create_array(place / "old", shape=(3,), dtype="f8", zarr_format=2)


def format_named(place: Path) -> None:
    metadata = json.loads((place / "zarr.json").read_text())
    (place / "zarr.json").write_text(json.dumps({**metadata, "zarr_format": 2}))


class TestForeignZarr:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (with_codec("numcodecs.pickle"), "asks for the codec 'numcodecs.pickle'"),
            (with_codec("gzip"), "asks for the codec 'gzip', which bif never writes: refused"),
            (nested_codec, "asks for the codec 'numcodecs.pickle'"),
            (second_format, "zarr.json is missing"),
            (format_named, "not of zarr's third format: refused"),
        ],
        ids=["pickle", "gzip", "nested", "second format", "format named"],
    )  # fmt: skip
    def test_a_foreign_zarr_folder_is_refused(self, tmp_path, change, message):
        save_dataset(TestDatasets.DATASET, tmp_path / "d")
        assert load_dataset(tmp_path / "d", name="influence.zarr").sizes["a"] == 2
        change(tmp_path / "d")
        with pytest.raises(DamagedRun, match=message):
            load_dataset(tmp_path / "d", name="influence.zarr")

    def test_codecs_of_our_own_are_those_on_disk(self, tmp_path):
        save_dataset(TestDatasets.DATASET, tmp_path / "d")
        array = zarr.open_array(tmp_path / "d" / "value", mode="r")
        named = {c["name"] for c in array.metadata.to_dict()["codecs"]}  # type: ignore[index, union-attr]
        assert named == {"bytes", "zstd", "crc32c"}
