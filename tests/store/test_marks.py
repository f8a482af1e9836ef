"""What is the user's own stays as it is, whatever bif is asked to write beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bif
from bif import benchmark, store
from bif.bank import Plan, retrained
from bif.benchmark import harness
from bif.store import FolderInUse, folder_at, marks, open_bank, open_run, write_calibration
from bif.store.folder import LocalFolder
from run_folders import begun, commit, content, ended, finish, wanted
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked")


def mine(folder: Path, *names: str) -> dict[str, bytes]:
    """Files of the user's."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    return content(folder)


def replace_run(folder: Path) -> None:
    with open_run(folder, wanted(model="def"), on_existing="replace") as run:
        run.update({})
        commit(run)


WRITE: dict[str, Callable[[Path], Any]] = {
    "attribute": lambda f: bif.attribute(classification(), TINY, out=f),
    "attribute anew": lambda f: bif.attribute(
        classification(), TINY, out=f, on_existing="replace"
    ),
    "save": lambda f: RUN[0].save(f, overwrite=True),
    "bank": lambda f: retrained(
        classification(), None, lambda start, items, seed: start,  # type: ignore[arg-type]
        Plan(2), target="checkpoint",
        out=f,
    ),
    "calibrate": lambda f: write_calibration(f, settings={}, explanations=[]),
    "scores": lambda f: store.write_scores(
        f, influence=RUN[0].influence.dataset, about={}, overwrite=True
    ),
    "lds": lambda f: harness.write(NO_RESULTS, f),
}  # fmt: skip
RUN: list[bif.Run] = []
NO_RESULTS = benchmark.Results("none", [], [], {}, {}, [])


@pytest.fixture(autouse=True, scope="module")
def _a_run() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.report.render_report", lambda *_, **__: "<html></html>")
        RUN.append(bif.attribute(classification(), TINY))


OWN_FILES = {
    "attribute": ["checkpoints/epoch-1.pt", "run.json", "influence.zarr/zarr.json", ".lock",
                  "traces.zarr/mine", "report.html", "checkpoints/run.json", "summary.json",
                  "checkpoints/block-000/00000001.json", "run.json.partial"],
    "bank": ["bank.json", "bank.spare.json", "bank.zarr/mine", "bank.json.old.partial"],
    "calibrate": ["calibration.json"],
    "scores": ["scores.json", "influence.zarr/mine", "notes.txt"],
    "lds": ["results.json", "task.json", "table.md"],
}  # fmt: skip
OWN_FILES["save"] = OWN_FILES["attribute anew"] = OWN_FILES["attribute"]


@pytest.mark.parametrize(
    ("writer", "name"), [(writer, name) for writer in WRITE for name in OWN_FILES[writer]]
)
def test_a_folder_with_a_file_of_the_users_of_that_name_is_refused_and_untouched(
    tmp_path, writer, name
):
    mine(tmp_path, name)
    before = every_byte(tmp_path)
    with pytest.raises(FolderInUse, match=r"choose another|empty it first"):
        WRITE[writer](tmp_path)
    assert every_byte(tmp_path) == before


def every_byte(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


BESIDE = ["checkpoints/epoch-1.pt", "checkpoints/block-000/mine.pt", "checkpoints/run.json.bak",
          "notes.txt", "weights.zarr/mine", "model.pt.partial", "checkpoints/block-000.pt",
          "checkpoints/half.partial"]  # fmt: skip


@pytest.mark.parametrize("make", [begun, ended])
def test_what_the_user_puts_into_a_runs_folder_later_outlives_the_run(tmp_path, make):
    folder = make(tmp_path / "run")
    mine(folder, *BESIDE)
    replace_run(folder)
    with store.reopen_run(folder) as run:
        run.block(0).restart()
    store.remove_run(folder_at(folder))
    left = every_byte(folder)
    left.pop(".lock")
    assert sorted(left) == sorted(BESIDE)


def test_what_fails_at_its_start_leaves_what_the_user_put_there_meanwhile(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", wanted()):
        mine(tmp_path / "run", *BESIDE)
        raise ZeroDivisionError
    left = every_byte(tmp_path / "run")
    left.pop(".lock")
    assert sorted(left) == sorted(BESIDE)


def test_a_result_of_the_users_that_came_meanwhile_is_not_replaced(tmp_path):
    with open_run(tmp_path / "run", wanted()) as run:
        commit(run)
        mine(tmp_path / "run", "report.html")
        with pytest.raises(FolderInUse, match="holds a report.html that bif has not made"):
            finish(run)
    assert (tmp_path / "run/report.html").read_text() == "years of work"


class TestFoldersWithoutAMark:
    """As a copy leaves them that takes no hidden files, and versions that made no marks."""

    @pytest.mark.parametrize("make", [begun, ended])
    def test_a_run_is_known_by_its_manifest(self, tmp_path, make):
        folder = make(tmp_path / "run")
        (folder / ".bif").unlink()
        with open_run(folder, wanted()) as run:
            assert run.begun and [c.draws for c in run.block(0).commits()] == [3]
        (folder / ".bif").unlink()
        replace_run(folder)
        assert marks.marked_names(LocalFolder(folder)) >= {"run.json", "checkpoints", "traces.zarr"}

    def test_a_run_is_known_by_the_spare_of_its_manifest(self, tmp_path):
        folder = begun(tmp_path / "run")
        (folder / ".bif").unlink()
        (folder / "run.json").unlink()
        with open_run(folder, wanted()) as run:
            assert run.begun

    def test_what_only_looks_like_one_is_not(self, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps({"identity": "mine", "keep": 3}))
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            replace_run(tmp_path)

    @pytest.mark.parametrize("damaged", [b"", b"[]", b'{"made_by_bif": 3}', b"\xff"])
    def test_a_damaged_mark_marks_nothing(self, tmp_path, damaged):
        mine(tmp_path, "checkpoints/epoch-1.pt")
        (tmp_path / ".bif").write_bytes(damaged)
        with pytest.raises(FolderInUse, match="holds no run of bif"):
            replace_run(tmp_path)

    def test_calibrations_scores_and_banks_are_known_by_their_content(self, tmp_path):
        for name in ("calibrate", "scores", "bank"):
            folder = tmp_path / name
            if name == "scores":
                about = {"estimator": "response", "settings": {}}
                store.write_scores(
                    folder, influence=RUN[0].influence.dataset, about=about, overwrite=False
                )
            else:
                WRITE[name](folder)
            (folder / ".bif").unlink()
            WRITE[name](folder)

    def test_banks_of_another_make_are_refused(self, tmp_path):
        (tmp_path / "bank.json").write_text(json.dumps({"balance": 3}))
        with pytest.raises(FolderInUse, match="holds no bank"), open_bank(tmp_path, {}):
            pass
