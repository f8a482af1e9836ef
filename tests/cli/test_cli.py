"""The command line: the same objects as in Python, and errors without a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import bif
from bif import cli, store
from bif.cli import entry
from bif.cli.runs import Show
from bif.store.results import _RESULTS
from bif.store.seals import files_digests, seal
from broken_runs import assert_same
from command_line import TINY_FLAGS, failed
from run_folders import resealed
from small_problems import TINY, classification, labelled


def edit(path: Path, **changed: object) -> None:
    """As if bif had written it so."""
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **changed})))


def edit_summary(folder: Path, **changed: object) -> None:
    """The same of a summary, whose digest the manifest has."""
    edit(folder / store.SUMMARY, **changed)
    resealed(folder / store.MANIFEST, results=files_digests(store.folder_at(folder), *_RESULTS))


def written(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the lock."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


@cache
def expected() -> bif.Run:
    """The run of `TINY` in memory."""
    return bif.attribute(classification(), TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `TINY` on disk, to be copied."""
    folder = tmp_path_factory.mktemp("made") / "out"
    bif.attribute(classification(), TINY, out=folder)
    return folder


@pytest.fixture
def begun(made: Path, tmp_path: Path) -> Path:
    """A copy of the run of `TINY`."""
    return shutil.copytree(made, tmp_path / "out")


class TestAttribute:
    def test_the_command_makes_the_run_of_the_same_settings_in_python(self, file, tmp_path, call):
        out = tmp_path / "out"
        code, said, _ = call("attribute", f"{file}:problem", "--out", out, *TINY_FLAGS)
        assert code == 0
        assert f"report: {out / 'report.html'}" in said and "Which of 20 train items" in said
        got, run = store.read_run(out), expected()
        np.testing.assert_array_equal(
            got["influence"]["influence"], run.influence.dataset["influence"]
        )
        assert got["manifest"]["identity"]["model"] == run.manifest["identity"]["model"]
        assert got["manifest"]["settings"] == store.plain(run.manifest["settings"])

    def test_again_it_ends_at_once_and_says_so(self, file, begun, call):
        command = ["attribute", f"{file}:problem", "--out", begun, *TINY_FLAGS]
        before = written(begun)
        code, said, err = call(*command)
        assert code == 0 and "already holds this run, complete: nothing to do" in said
        assert err == ""
        assert before == written(begun)

    def test_other_settings_are_refused_and_overwrite_replaces(self, file, begun, call, no_page):
        out = begun
        command = ["attribute", f"{file}:problem", "--out", out, *TINY_FLAGS]
        text = failed(call(*command, "--seed", 1))
        assert "holds another run, with another settings.seed" in text and "--overwrite" in text
        assert store.read_run(out)["manifest"]["settings"]["seed"] == 0
        code, _, _ = call(*command, "--seed", 1, "--overwrite")
        assert code == 0 and store.read_run(out)["manifest"]["settings"]["seed"] == 1

    def test_other_files_are_kept_even_with_overwrite(self, file, tmp_path, call):
        text = failed(
            call("attribute", f"{file}:problem", "--out", tmp_path, "--overwrite",
                        *TINY_FLAGS)
        )  # fmt: skip
        assert "holds no run of bif" in text and file.exists()

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("{file}", "expected FILE.py:FUNCTION, got"),
            ("{file}:not-a-name", "expected FILE.py:FUNCTION, got"),
            ("nowhere.py:problem", "no file 'nowhere.py': expected FILE.py:FUNCTION"),
            ("{folder}/data.csv:problem", "is not a Python file: expected FILE.py:FUNCTION"),
            ("{file}:missing", "has no function 'missing'"),
            ("{file}:constant", "has no function 'constant'"),
            ("{file}:nothing", "must return a bif.Problem, got int"),
            ("{file}:broken", "train_weights must be 20 finite numbers"),
        ],
    )
    def test_a_bad_target_is_refused(self, file, tmp_path, call, target, message):
        (tmp_path / "data.csv").write_text("1,2")
        text = target.format(file=file, folder=tmp_path)
        assert message in failed(call("attribute", text, "--out", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--chains", "1"], "chains must be at least 2, got 1"),
            (["--batch-size", "3"], "batch_size=3 has no use with gradient='full'"),
            (["--movable", "head.*"], "movable pattern 'head.*' matches no parameter"),
            (["--estimator", "covariance", "--solver-steps", "3"], "solver_steps has no use with"),
            (["--commit-every", "-1"], "commit_every is -1.0 seconds"),
        ],
    )
    def test_bad_settings_are_refused(self, file, tmp_path, call, flags, message):
        answer = call("attribute", f"{file}:problem", "--out", tmp_path / "out",
                             *TINY_FLAGS, *flags)  # fmt: skip
        code, _, err = answer
        assert code == 2 and "Traceback" not in err and f"bif: {message}" in err
        assert not (tmp_path / "out").exists()

    def test_chains_that_all_diverge_are_kept_and_give_way_to_a_smaller_step(
        self, file, tmp_path, call, no_page
    ):
        out = tmp_path / "out"
        command = ["attribute", f"{file}:problem", "--out", out, *TINY_FLAGS]
        code, _, err = call(*command, "--step-size", "50")
        assert code == 2 and "Traceback" not in err
        assert "only 0 of 4 chains survived" in err and "set step_size=25, burn_in=8" in err
        assert store.RUN.read(store.folder_at(out))["complete"] is False
        text = failed(call(*command))
        assert "with another settings.step_size" in text and "--overwrite" in text
        assert call(*command, "--overwrite")[0] == 0
        assert_same(bif.load(out), expected())

    def test_a_replacement_that_is_refused_leaves_the_run_that_was_there(self, file, begun, call):
        command = ["attribute", f"{file}:problem", "--out", begun, *TINY_FLAGS]
        before = written(begun)
        answer = call(*command, "--overwrite", "--movable", "head.*")
        assert answer[0] == 2 and "matches no parameter" in answer[2]
        assert before == written(begun)

    def test_a_target_may_import_its_neighbours_and_leaves_the_path_alone(self, tmp_path):
        (tmp_path / "neighbour_of_mine.py").write_text("from small_problems import classification")
        (tmp_path / "mine.py").write_text("from neighbour_of_mine import classification as problem")
        before = list(sys.path)
        assert cli.load_problem(f"{tmp_path / 'mine.py'}:problem").num_train == 20
        assert sys.path == before


class TestShow:
    @pytest.fixture
    def folder(self, begun: Path) -> Path:
        return begun

    def test_show_names_the_items_of_the_hardest_queries_and_no_figure(self, folder, call):
        code, out, err = call("show", folder)
        assert code == 0 and err == ""
        dataset = bif.Influence.load(folder).dataset
        loss = dataset["query_center"].sel(observable="loss").values
        worst = [str(dataset["query_id"].values[i]) for i in np.argsort(-loss)[:3]]
        assert re.findall(r"^Query (\d) \(.*\), labelled \d", out, re.MULTILINE) == worst
        assert "Which of 20 train items influence 5 queries" in out.splitlines()[0]
        assert "helped by" in out and "harmed by" in out
        answer = [line for line in out.splitlines() if not line.startswith("warning: ")]
        figures = ("±", "-Cov", "ess median", "rhat max")
        assert [line for line in answer if any(figure in line for figure in figures)] == []

    def test_figures_scores_and_sign_are_behind_verbose(self, folder, call):
        _, out, _ = call("show", folder, "--verbose")
        for text in ("draws", "reliability", "-Cov(train loss, observable)", "helpful", "±"):
            assert text in out

    def test_what_the_model_says_of_a_query_stands_beside_its_label(self, folder, call):
        _, out, _ = call("show", folder)
        (x, y), model = labelled(5, seed=2), classification().model
        says = model(x).argmax(dim=1)
        shown = dict(
            re.findall(r"Query (\d) .*, labelled \d(; the model says \d|, and .* agrees)", out)
        )
        assert len(shown) == 3
        for name, told in shown.items():
            i = int(name)
            agrees = told == ", and the model agrees"
            assert agrees == bool(says[i] == y[i])
            assert agrees or told == f"; the model says {int(says[i])}"

    def test_suspects_are_listed(self, folder, call):
        code, out, _ = call("show", folder, "--suspects", "--top", "2")
        assert code == 0 and str(bif.load(folder).suspects(2)) in out and "Query" not in out

    def test_queries_observable_and_number_of_items_may_be_chosen(self, folder, call):
        _, out, _ = call("show", folder, "--query", "4", "2", "--observable", "margin",
                                "--top", "2")  # fmt: skip
        found = bif.Influence.load(folder)
        expected = found.top("4", 2, observable="margin", unresolved=not found.trusted)
        assert str(expected) in out and "query 2, margin" in out
        assert "query 0" not in out and "loss\n  helpful" not in out

    def test_of_an_untrusted_run_show_lists_items_and_says_that_no_sign_is_certain(
        self, folder, call
    ):
        edit_summary(folder, trusted=True)
        assert "no sign is certain" not in call("show", folder)[1]
        edit_summary(folder, trusted=False)  # as a folder of an earlier version has it
        _, out, _ = call("show", folder, "--query", "4")
        assert "the run is not trusted: no sign is certain" in out
        assert out.count("±") > 2

    @pytest.mark.parametrize(
        ("flags", "message"),
        [(["--query", "99"], "no query with id '99'"),
         (["--observable", "logit"], "no observable 'logit'")],
    )  # fmt: skip
    def test_unknown_names_are_refused(self, folder, call, flags, message):
        code, _, err = call("show", folder, *flags)
        assert code == 2 and message in err and "Traceback" not in err
        assert '"no ' not in err  # the message, not the repr of a KeyError

    def test_a_folder_without_a_run_is_refused(self, tmp_path, call):
        text = failed(call("show", tmp_path / "nothing"))
        assert "holds no run of bif: it has no run.json" in text

    def test_of_a_run_without_results_show_says_how_far_it_has_come(self, folder, call):
        (folder / store.SUMMARY).unlink()
        manifest = json.loads((folder / store.MANIFEST).read_text())
        edit(
            folder / store.MANIFEST, blocks=[[0, 4]], settings={**manifest["settings"], "draws": 9}
        )
        code, out, _ = call("show", folder)
        assert code == 0 and "no results yet: 24 of 36 draws committed" in out

    def test_warnings_are_printed_first(self, folder, call):
        edit(folder / store.MANIFEST, warnings=["mind [the] gap"])
        _, out, _ = call("show", folder)
        assert out.index("mind [the] gap") < out.index("Query")

    def test_a_run_without_reliability_can_be_shown(self, folder, call):
        edit_summary(folder, reliability=None)
        assert call("show", folder)[0] == 0


class TestUsage:
    def test_version(self, call):
        assert call("--version") == (0, f"bif {bif.__version__}\n", "")

    @pytest.mark.parametrize("command", list(entry._COMMANDS))
    def test_no_help_speaks_of_none(self, command, call):
        code, out, _ = call(command, "--help")
        assert code == 0 and "options" in out
        assert not re.search(r"None|default: ?\)|default: False", out)

    def test_the_users_own_line_is_named_and_our_frames_are_not(self, tmp_path, call):
        (tmp_path / "mine.py").write_text("def problem():\n    return [][0]\n")
        answer = call("attribute", f"{tmp_path}/mine.py:problem", "--out", tmp_path / "run")
        expected = "bif: IndexError: list index out of range (mine.py, line 2, in problem)\n"
        assert failed(answer, 1) == expected

    def test_a_fault_of_ours_is_called_one_and_all_frames_can_be_had(
        self, file, tmp_path, call, monkeypatch
    ):
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr("bif.store.is_complete", broken)
        command = ["attribute", f"{file}:problem", "--out", tmp_path / "run"]
        monkeypatch.setattr("bif.cli.faults._OURS", Path(__file__).parent)
        assert "a fault of bif: please report it" in failed(call(*command), 1)
        monkeypatch.setenv("BIF_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError):
            call(*command)

    def test_a_further_command_of_the_process_adds_nothing_to_the_options(self, call):
        call("nothing")
        before = dict(Show.__annotations__)
        call("nothing")
        assert Show.__annotations__ == before

    def test_help_names_the_commands(self, call):
        code, out, _ = call("--help")
        assert code == 0 and all(name in out for name in ("demo", "attribute", "merge", "show"))

    @pytest.mark.parametrize(
        "arguments",
        [[], ["attribute"], ["dance"], ["show"], ["attribute", "x.py:f", "--keep", "all"]],
    )
    def test_bad_usage_exits_with_2(self, call, arguments):
        code, _, err = call(*arguments)
        assert code == 2 and "Traceback" not in err and err

    def test_a_process_of_its_own_refuses_without_a_traceback(self, file, tmp_path):
        """Runs in processes of their own: `tests/store/test_faults.py`."""
        source = str(Path(bif.__file__).parents[1])
        bad = subprocess.run(
            [sys.executable, "-c", "from bif.cli import main; main()", "attribute",
             "mine.py:missing", "--out", "other"],
            capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert bad.returncode == 2 and bad.stdout == ""
        assert bad.stderr == (
            "bif: 'mine.py' has no function 'missing': name one that is in the file.\n"
        )
