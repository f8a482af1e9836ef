"""A run's folder: begun, gone on with, replaced, and refused with the difference named."""

from __future__ import annotations

import pytest

from bif.store import (
    RUN,
    FolderInUse,
    folder_at,
    is_complete,
    open_run,
    read_run,
    reopen_run,
)
from run_folders import begun, commit, content, ended, resealed, wanted


class TestOpening:
    def test_a_new_folder_or_an_empty_one_is_begun(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for name in ("empty", "deep/new"):
            with open_run(tmp_path / name, wanted()) as run:
                assert not run.begun and not run.complete
                found = RUN.read(run.folder)
                assert found["complete"] is False and found["identity"]["model"] == "abc"
                commit(run)

    def test_a_run_cut_short_goes_on_with_its_manifest(self, tmp_path):
        with open_run(begun(tmp_path / "r"), wanted()) as run:
            assert run.begun and not run.complete
            assert run.manifest["blocks"] == [[0, 2]]
            assert [c.draws for c in run.block(0).commits()] == [3]

    def test_this_very_run_complete_is_recognised(self, tmp_path):
        folder = ended(tmp_path / "r")
        assert is_complete(folder, wanted())
        with open_run(folder, wanted()) as run:
            assert run.begun and run.complete
        assert read_run(folder)["manifest"]["complete"] is True

    def test_what_is_not_this_very_run_complete_is_not(self, tmp_path):
        folder = ended(tmp_path / "r")
        assert not is_complete(tmp_path / "nowhere", wanted())
        assert not (tmp_path / "nowhere").exists()
        assert not is_complete(begun(tmp_path / "s"), wanted())
        assert not is_complete(folder, wanted(keep="sums"))
        assert not is_complete(folder, wanted(settings={"draws": 6}))
        (folder / "run.json").write_text("{")
        assert not is_complete(folder, wanted())

    def test_another_run_is_refused_and_the_differences_named(self, tmp_path):
        folder = ended(tmp_path / "r")
        before = content(folder)
        other = wanted(settings={"draws": 6, "gamma": 2.0}, loss="mine")
        with (
            pytest.raises(
                FolderInUse,
                match=r"another loss, settings.draws, settings.gamma\. Choose.*--overwrite",
            ),
            open_run(folder, other),
        ):
            pass
        assert content(folder) == before

    def test_another_choice_of_what_is_kept_is_refused(self, tmp_path):
        with (
            pytest.raises(FolderInUse, match=r"with another keep \(it keeps traces\)"),
            open_run(begun(tmp_path / "r"), wanted(keep="weights")),
        ):
            pass

    @pytest.mark.parametrize(
        ("other", "hinted"),
        [
            (wanted(settings={"draws": 6}), True),
            (wanted(queries={"query": "q", "more": "m"}), True),
            (wanted(candidates={"new": "c"}), True),
            (wanted(settings={"draws": 6}, model="def"), False),
        ],
        ids=["draws", "queries", "candidates", "model"],
    )
    def test_what_could_be_had_by_growth_is_hinted_at(self, tmp_path, other, hinted):
        with pytest.raises(FolderInUse) as error, open_run(ended(tmp_path / "r"), other):
            pass
        assert ("pass --from with its folder" in str(error.value)) == hinted

    @pytest.mark.parametrize("on_existing", ["resume", "replace"])
    def test_other_peoples_files_are_never_touched(self, tmp_path, on_existing):
        (tmp_path / "thesis.tex").write_text("years of work")
        for place in (tmp_path, tmp_path / "thesis.tex"):
            with (
                pytest.raises(FolderInUse, match="exists and holds no run of bif"),
                open_run(place, wanted(), on_existing=on_existing),
            ):
                pass
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("make", [begun, ended])
    def test_to_replace_removes_the_run_and_nothing_beside_it(self, tmp_path, make):
        folder = make(tmp_path / "r")
        (folder / "notes.txt").write_text("mine")
        with open_run(folder, wanted(model="def"), on_existing="replace") as run:
            assert not run.begun and run.replaces
            assert (folder / "run.json").exists()  # until there is something to write
            run.begin()
            assert run.block(0).commits() == []
            run.update({})
            commit(run)
        assert (folder / "notes.txt").read_text() == "mine"
        assert RUN.read(folder_at(folder))["identity"]["model"] == "def"
        assert not (folder / "influence.zarr").exists()

    @pytest.mark.parametrize("error", [ValueError("bad settings"), KeyboardInterrupt()])
    def test_what_fails_before_its_first_commit_leaves_nothing(self, tmp_path, error):
        with pytest.raises(type(error)), open_run(tmp_path / "r", wanted()):
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_what_fails_later_keeps_what_was_committed(self, tmp_path):
        with pytest.raises(OSError, match="disk"), open_run(tmp_path / "r", wanted()) as run:
            commit(run)
            raise OSError("disk")
        with open_run(tmp_path / "r", wanted()) as run:
            assert [c.draws for c in run.block(0).commits()] == [3]

    def test_a_run_of_another_format_is_refused(self, tmp_path):
        folder = ended(tmp_path / "r")
        resealed(folder / "run.json", format=99)
        message = "holds a run of format 99, this version of bif reads 2"
        with pytest.raises(FolderInUse, match=message), open_run(folder, wanted()):
            pass
        with pytest.raises(FolderInUse, match=message), reopen_run(folder):
            pass

    def test_the_folder_has_one_writer(self, tmp_path):
        with open_run(tmp_path / "r", wanted()) as run:
            commit(run)
            for again in (open_run(tmp_path / "r", wanted()), reopen_run(tmp_path / "r")):
                with pytest.raises(FolderInUse, match="is being written by another"), again:
                    pass


class TestReopening:
    def test_whatever_run_is_there_is_opened(self, tmp_path):
        with reopen_run(ended(tmp_path / "r")) as run:
            assert run.begun and run.complete and run.manifest["identity"]["model"] == "abc"

    def test_nothing_there_is_refused_and_nothing_made(self, tmp_path):
        with (
            pytest.raises(FileNotFoundError, match="holds no run of bif: it has no run.json"),
            reopen_run(tmp_path / "nowhere"),
        ):
            pass
        assert list(tmp_path.iterdir()) == []
