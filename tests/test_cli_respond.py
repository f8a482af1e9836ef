"""The command `bif respond`, and scores that lie in a folder of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bif
from bif import store
from command_line import caller, failed, write_problem
from small_problems import classification

FLAGS = ["--gamma", "5.0", "--nbeta", "20.0", "--step-size", "0.1", "--friction", "4.0",
         "--burn-in", "10", "--thin", "2", "--h", "0.1", "--steps", "40"]  # fmt: skip
TINY = bif.Settings(nbeta=20.0, gamma=5.0, step_size=0.1, friction=4.0, burn_in=10, thin=2)


@pytest.fixture
def call(monkeypatch, capsys):
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="module")
def response():
    return bif.respond(classification(), TINY, h=0.1, steps=40)


def test_the_command_scores_as_python_does_and_show_ranks_them(call, tmp_path, response):
    file, out = write_problem(tmp_path), tmp_path / "out"
    code, said, _ = call("respond", f"{file}:problem", "--out", out, *FLAGS)
    assert code == 0 and "steps" in said
    scores = bif.Influence.load(out).dataset["influence"].values
    np.testing.assert_array_equal(scores[0], response.scores)
    code, said, _ = call("show", out, "--top", 2)
    assert code == 0 and "estimator" in said and "helpful" in said


def test_scores_that_are_there_are_not_replaced_unasked(call, tmp_path, response):
    file, out = write_problem(tmp_path), tmp_path / "out"
    response.save(out)
    before = (out / "scores.json").read_bytes()
    refused = failed(call("respond", f"{file}:problem", "--out", out, *FLAGS))
    assert "--overwrite" in refused and (out / "scores.json").read_bytes() == before
    code, *_ = call("respond", f"{file}:problem", "--out", out, "--overwrite", *FLAGS)
    assert code == 0 and (out / "scores.json").read_bytes() != before


def test_what_is_saved_comes_back_with_what_stands_behind_it(tmp_path, response):
    response.save(tmp_path / "out")
    dataset, about = store.read_scores(tmp_path / "out")
    assert dataset.identical(bif.Influence.load(tmp_path / "out").dataset)
    assert about["settings"]["gamma"] == 5.0 and about["num_steps"] == response.num_steps
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written.pop("check") and written == about


def test_folders_with_other_files_are_refused(tmp_path, response):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(store.FolderInUse, match="other files"):
        response.save(tmp_path)
    response.save(tmp_path / "out")
    with pytest.raises(store.FolderInUse, match="overwrite=True"):
        response.save(tmp_path / "out")
    response.save(tmp_path / "out", overwrite=True)
    with pytest.raises(store.FolderInUse, match="no run"):
        bif.attribute(classification(), TINY, out=tmp_path / "out", on_existing="replace")
    with pytest.raises(FileNotFoundError, match=r"scores\.json"):
        store.read_scores(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--temperature", "0.5"], "temperature is 0.5"),
        (["--observable", "beauty"], "beauty"),
        (["--curvature", "bregman"], "bregman"),
        (["--replicates", "0"], "replicates is 0"),
    ],
)
def test_bad_input_is_answered_by_a_clear_error(call, tmp_path, words, expected):
    file, out = write_problem(tmp_path), tmp_path / "out"
    assert expected in failed(call("respond", f"{file}:problem", "--out", out, *words))
    assert not out.exists()


class TestAFolderOfScoresIsLookedAtFirst:
    @pytest.fixture
    def command(self, tmp_path):
        return ["respond", f"{write_problem(tmp_path)}:problem", "--out", tmp_path / "out", *FLAGS]

    @pytest.fixture
    def forbidden(self, monkeypatch):
        def sampled(*given: object, **named: object) -> None:
            raise AssertionError("something was sampled")

        monkeypatch.setattr("bif.response.respond", sampled)

    def test_these_very_scores_are_not_made_again(self, call, command, monkeypatch, request):
        assert call(*command)[0] == 0
        request.getfixturevalue("forbidden")
        code, said, _ = call(*command)
        assert code == 0 and "already holds these scores, complete" in said and "steps" in said

    def test_others_are_refused_by_name_before_anything_is_sampled(
        self, call, command, monkeypatch, request
    ):
        assert call(*command)[0] == 0
        request.getfixturevalue("forbidden")
        refused = failed(call(*command, "--replicates", 2, "--seed", 3))
        assert "with another response.replicates, settings.seed: choose another" in refused

    def test_the_second_writer_is_refused_before_anything_is_sampled(
        self, call, command, tmp_path, forbidden
    ):
        with store.open_scores(tmp_path / "out", {}) as first:
            assert not first.complete
            assert "is being written by another process" in failed(call(*command))

    def test_a_folder_of_a_run_is_not_one_of_scores(self, call, command, tmp_path, forbidden):
        with store.open_run(tmp_path / "out", {"identity": {}, "keep": "traces"}) as run:
            run.update({})
            run.block(0).commit(store.Commit(1, 0, 0), traces={}, weights={}, state={})
        assert "other files than scores" in failed(call(*command))
