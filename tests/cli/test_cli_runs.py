"""The command line and runs on disk: what is kept, what is added, how a command ends."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import bif
from bif import store
from bif.runs import recording
from bif.runs.retention import Keep
from bif.store.signals import Preempted
from broken_runs import assert_same
from command_line import TINY_FLAGS, Answer, failed
from same_bits import without_page
from small_problems import TINY, classification, labelled, nothing_measured

pytestmark = pytest.mark.usefixtures("no_page", "unchecked")

ATTRIBUTE, EXTEND = (sys.modules[f"bif.runs.{name}"] for name in ("attribute", "extend"))
QUERIES = {"query": labelled(5, seed=2), "more": labelled(3, seed=3)}


@cache
def expected() -> bif.Run:
    """The run of `TINY` in memory."""
    return bif.attribute(classification(), TINY)


@cache
def with_more() -> bif.Run:
    """The same run with the queries of `more` from the start."""
    return bif.attribute(classification(queries=QUERIES), TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[Keep], Path]:
    """The run of `TINY` on disk, by what is kept, to be copied."""

    @cache
    def run(keep: Keep) -> Path:
        folder = tmp_path_factory.mktemp("made") / "run"
        with pytest.MonkeyPatch.context() as patch, without_page():
            patch.setattr("bif.runs.block_run.check", nothing_measured)
            bif.attribute(classification(), TINY, out=folder, keep=keep)
        return folder

    return run


@pytest.fixture
def begun(made, tmp_path) -> Path:
    """A copy of the run of `TINY`."""
    return shutil.copytree(made("traces"), tmp_path / "run")


@pytest.fixture
def begin(file, tmp_path, call) -> Callable[..., Path]:
    """Make a run by the command; flags are further ones."""

    def make(*flags: object) -> Path:
        out = tmp_path / "run"
        code, _, err = call("attribute", f"{file}:problem", "--out", out, *TINY_FLAGS, *flags)
        assert code == 0, err
        return out

    return make


@pytest.fixture
def extend(file, call) -> Callable[..., Answer]:
    return lambda run, *flags: call("attribute", f"{file}:problem", "--from", run, *flags)


class TestKeep:
    @pytest.mark.parametrize("keep", ["sums", "weights"])
    def test_what_is_asked_for_is_kept(self, begin, keep):
        out = begin("--keep", keep)
        assert store.read_run(out)["manifest"]["keep"] == keep
        assert (out / "weights.zarr").exists() == (keep == "weights")
        assert (bif.load(out).influence.traces is None) == (keep == "sums")

    def test_another_choice_is_refused_for_a_run_that_is_there(self, begun, file, call):
        command = ["attribute", f"{file}:problem", "--out", begun, *TINY_FLAGS]
        assert "another keep (it keeps traces)" in failed(call(*command, "--keep", "sums"))


class TestFrom:
    @pytest.mark.parametrize("keep", ["traces", "weights"])
    def test_with_further_queries_it_is_the_run_that_had_them_from_the_start(
        self, made, tmp_path, extend, file, keep
    ):
        out = shutil.copytree(made(keep), tmp_path / "run")
        code, said, _ = extend(out, "--query", f"{file}:more")
        assert code == 0 and f"report: {out / 'report.html'}" in said
        run = bif.load(out)
        assert run.influence.dataset["query_id"].values.tolist()[4:6] == ["4", "more/0"]
        assert_same(run, with_more())

    def test_with_everything_at_once_in_a_copy_the_original_stays(
        self, begin, extend, file, tmp_path
    ):
        out, copy = begin("--block-size", 2), tmp_path / "copy"
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        flags = ["--query", f"{file}:more", "--candidates", f"{file}:easy", "--draws", 8,
                 "--chains", 6, "--out", copy]  # fmt: skip
        code, said, _ = extend(out, *flags)
        assert code == 0 and f"report: {copy / 'report.html'}" in said
        problem = classification(queries=QUERIES, candidates={"easy": labelled(2, seed=4)})
        settings = replace(TINY, block_size=2, draws=8, chains=6)
        assert_same(bif.load(copy), bif.attribute(problem, settings))
        assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def test_the_same_call_again_changes_nothing(self, begun, extend, file):
        out = begun
        extend(out, "--query", f"{file}:more")
        first = bif.load(out)
        assert extend(out, "--query", f"{file}:more")[0] == 0
        assert_same(bif.load(out), first)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--seed", "1"], "own settings; seed cannot be changed. Only --draws and --chains"),
            (["--gamma", "5", "--thin", "2"], "gamma, thin cannot be changed"),
            (["--draws", "5"], "the run has 6 draws already: 5 would be fewer"),
            (["--chains", "3"], "the run has 4 chains already: 3 would be fewer"),
            (["--overwrite"], "--overwrite would begin anew what --from extends"),
            (["--query", "{file}:named", "{file}:easy"], "two groups are named 'easy'"),
            (["--query", "{file}:missing"], "has no function 'missing'"),
            (["--query", "{file}:nothing"], "int"),
        ],
    )
    def test_what_cannot_be_added_is_refused_and_the_run_stays(
        self, begun, extend, file, flags, message
    ):
        out = begun
        before = (out / "run.json").read_bytes()
        said = failed(extend(out, *(flag.format(file=file) for flag in flags)))
        assert message in said
        assert (out / "run.json").read_bytes() == before

    def test_another_problem_is_refused(self, begun, file, call):
        text = failed(call("attribute", f"{file}:other", "--from", begun))
        assert "is of another problem, with another train" in text

    def test_sums_cannot_be_given_queries(self, made, tmp_path, extend, file):
        out = shutil.copytree(made("sums"), tmp_path / "run")
        text = failed(extend(out, "--query", f"{file}:more"))
        assert "keeps sums, not traces" in text and "--keep traces or weights" in text

    @pytest.mark.parametrize("copy", [False, True])
    def test_a_folder_without_a_run_is_refused(self, extend, tmp_path, copy):
        flags = ["--out", tmp_path / "copy"] if copy else []
        text = failed(extend(tmp_path / "nowhere", *flags))
        assert "holds no run of bif" in text
        assert not (tmp_path / "copy").exists() and not (tmp_path / "nowhere").exists()

    def test_from_is_hinted_at_where_the_same_command_asks_for_more_draws(self, begun, file, call):
        command = ["attribute", f"{file}:problem", "--out", begun, *TINY_FLAGS, "--draws", "9"]
        text = failed(call(*command))
        assert "another settings.draws. To lengthen it or to add to it, pass --from" in text


class TestWithoutFrom:
    @pytest.mark.parametrize("flag", ["--query", "--candidates"])
    def test_groups_are_refused(self, file, tmp_path, call, flag):
        command = ["attribute", f"{file}:problem", "--out", tmp_path / "run", flag, f"{file}:more"]
        assert "add to a run that is there: pass --from RUN" in failed(call(*command))
        assert not (tmp_path / "run").exists()

    def test_a_folder_is_needed(self, file, call):
        text = failed(call("attribute", f"{file}:problem", *TINY_FLAGS))
        assert "a run needs a folder: pass --out DIR." in text


class TestEndings:
    @pytest.fixture
    def command(self, file: Path, tmp_path: Path) -> list[object]:
        return ["attribute", f"{file}:problem", "--out", tmp_path / "run", *TINY_FLAGS]

    def test_sigterm_ends_with_75_and_says_that_the_same_command_goes_on(
        self, command, call, monkeypatch
    ):
        def preempted(*_: Any, **__: Any) -> None:
            raise Preempted("stopped by SIGTERM after 12 of 24 draws")

        monkeypatch.setattr(ATTRIBUTE, "attribute", preempted)
        text = failed(call(*command), status=75)
        assert text == (
            "bif: stopped by SIGTERM after 12 of 24 draws. What was committed is kept: run the "
            "same command to go on from there.\n"
        )

    def test_files_that_cannot_be_written_end_with_74_and_the_same_command_goes_on(
        self, command, call, monkeypatch, tmp_path
    ):
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(store.BlockStore, "commit", full)
            code, out, err = call(*command)
        assert code == 74 and out == "" and "Traceback" not in err
        assert "No space left on device" in err and "run the same command to go on" in err
        assert call(*command)[0] == 0
        assert_same(bif.load(tmp_path / "run"), expected())

    def test_ctrl_c_outside_the_sampling_says_that_nothing_was_added(
        self, command, call, monkeypatch, tmp_path
    ):
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ATTRIBUTE, "attribute", interrupted)
        code, _, err = call(*command)
        message = "bif: interrupted. What was committed is kept: run the same command to go on"
        assert code == 130 and err == f"{message} from there.\n"
        assert not (tmp_path / "run").exists()

    def test_ctrl_c_before_there_are_scores_says_how_far_it_came(self, command, call, monkeypatch):
        def early(self: recording.Recording, *, show_progress: bool) -> None:
            self.interrupted = True

        monkeypatch.setattr(recording.Recording, "run", early)
        code, out, err = call(*command)
        assert code == 130 and out == "" and "Traceback" not in err
        assert err.endswith(
            "bif: interrupted after 0 of 24 draws. What was committed is kept: run the same "
            "command to go on from there.\n"
        )

    def test_a_partial_run_is_written_and_ends_with_130_and_the_same_command_goes_on(
        self, command, call, monkeypatch, tmp_path
    ):
        run = recording.Recording.run

        def cut_short(self: recording.Recording, *, show_progress: bool) -> None:
            run(self, show_progress=show_progress)
            self.interrupted = True

        with monkeypatch.context() as patch:
            patch.setattr(recording.Recording, "run", cut_short)
            code, said, err = call(*command)
        assert code == 130 and "the result is partial" in said
        assert "interrupted. What was committed is kept: run the same command to go on" in err
        assert not store.read_run(tmp_path / "run")["manifest"]["complete"]
        assert call(*command)[0] == 0
        assert_same(bif.load(tmp_path / "run"), expected())


def test_a_run_may_live_at_any_url(file, tmp_path, call, extend):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    url = f"memory://{tmp_path}/run"
    command = ["attribute", f"{file}:problem", "--out", url, *TINY_FLAGS]
    code, said, _ = call(*command)
    assert code == 0 and f"report: {url}/report.html" in said
    assert_same(bif.load(url), expected())
    assert "nothing to do" in call(*command)[1]
    assert "another settings.seed" in failed(call(*command, "--seed", 1))
    assert call("show", url)[0] == 0
    assert extend(url, "--query", f"{file}:more", "--out", tmp_path / "here")[0] == 0
    assert_same(bif.load(tmp_path / "here"), with_more())
