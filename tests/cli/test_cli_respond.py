"""The command `bif respond`, and scores that lie in a folder of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import bif
from bif import store
from bif.runs import respond
from bif.store.signals import Preempted
from command_line import failed
from same_bits import assert_same_datasets, files
from small_problems import classification

FLAGS = ["--gamma", "5.0", "--nbeta", "20.0", "--step-size", "0.1", "--friction", "4.0",
         "--burn-in", "4", "--thin", "2", "--h", "0.1", "--steps", "8"]  # fmt: skip
TINY = bif.Settings(nbeta=20.0, gamma=5.0, step_size=0.1, friction=4.0, burn_in=4, thin=2)


@pytest.fixture(scope="module")
def response():
    return bif.respond(classification(), TINY, h=0.1, steps=8)


def test_the_command_scores_as_python_does_and_show_ranks_them(call, tmp_path, response, file):
    out = tmp_path / "out"
    code, said, _ = call("respond", f"{file}:problem", "--out", out, *FLAGS)
    assert code == 0 and "steps" in said
    scores = bif.Influence.load(out).dataset["influence"].values
    np.testing.assert_array_equal(scores[0], response.scores)
    code, said, _ = call("show", out, "--top", 2)
    assert code == 0 and "helped by" in said and "estimator" not in said
    code, said, _ = call("show", out, "--top", 2, "--verbose")
    assert code == 0 and "estimator" in said and "helpful" in said


def test_scores_that_are_there_are_not_replaced_unasked(call, tmp_path, response, file):
    out = tmp_path / "out"
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
        (["--curvature", "bregman"], "curvature='gauss_newton' belongs to temperature 0"),
        (["--replicates", "0"], "replicates is 0"),
    ],
)
def test_bad_input_is_answered_by_a_clear_error(call, tmp_path, words, expected, file):
    out = tmp_path / "out"
    assert expected in failed(call("respond", f"{file}:problem", "--out", out, *words))
    assert not out.exists()


class TestAFolderOfScoresIsLookedAtFirst:
    @pytest.fixture
    def command(self, file, tmp_path):
        return ["respond", f"{file}:problem", "--out", tmp_path / "out", *FLAGS]

    @pytest.fixture
    def forbidden(self, monkeypatch):
        def sampled(*given: object, **named: object) -> None:
            raise AssertionError("something was sampled")

        monkeypatch.setattr(respond, "run_response", sampled)

    def test_the_same_scores_are_not_made_again(self, call, command, monkeypatch, request):
        assert call(*command)[0] == 0
        request.getfixturevalue("forbidden")
        code, said, _ = call(*command)
        assert code == 0 and "already holds these scores, complete" in said and "steps" in said

    @pytest.mark.parametrize("word", ["gauss_newton", "bregman"])
    def test_scores_that_name_a_curvature_as_earlier_versions_did_are_the_same(
        self, call, command, monkeypatch, request, word
    ):
        command = [*command, "--temperature", "0", "--curvature"]
        with monkeypatch.context() as patch:
            patch.setattr("bif.curvature.products.require_curvature", lambda word: word)
            assert call(*command, "bregman")[0] == 0
        about = store.read_scores(command[command.index("--out") + 1])[1]
        assert about["identity"]["response"]["curvature"] == "bregman"
        request.getfixturevalue("forbidden")
        code, said, _ = call(*command, word)
        assert code == 0 and "already holds these scores, complete" in said

    def test_other_scores_are_refused_by_name_before_anything_is_sampled(
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


@contextmanager
def stopped_in(stage: int) -> Iterator[list[int]]:
    """Stop in the middle of a stage that is made, 0 being the pilot's; yields those made before."""
    made: list[int] = []

    def counted(name: str) -> Any:
        whole = getattr(respond, name)

        def stage_made(*given: Any, **named: Any) -> Any:
            found = whole(*given, **named)
            if len(made) == stage:
                raise Preempted("stopped")
            made.append(len(made))
            return found

        return stage_made

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_prepared", "_block"):
            patch.setattr(respond, name, counted(name))
        yield made


def scores_in(folder: Path) -> Any:
    return store.read_scores(folder)[0]


# Three blocks of the five queries, two pairs in each but the last.
OPEN_H = [*FLAGS[:-4], "--steps", "8"]
KINDS = {
    "warm": ["--block-size", "8", *FLAGS],
    "replicated, h chosen": ["--replicates", "2", "--block-size", "16", *OPEN_H],
    "cold": ["--temperature", "0", "--block-size", "4", *FLAGS],
}
IN_MEMORY = {
    "warm": {"settings": replace(TINY, block_size=8), "h": 0.1, "steps": 8},
    "replicated, h chosen": {
        "settings": replace(TINY, block_size=16), "steps": 8, "replicates": 2,
    },
    "cold": {"settings": replace(TINY, block_size=4), "h": 0.1, "steps": 8, "temperature": 0.0},
}  # fmt: skip


@cache
def uninterrupted(kind: str) -> Any:
    """The scores of a response that was made in memory, as they are read from a folder."""
    with TemporaryDirectory() as place:
        bif.respond(classification(), **IN_MEMORY[kind]).save(Path(place) / "out")
        return scores_in(Path(place) / "out")


class TestAResponseThatWasCutShort:
    @pytest.fixture
    def command(self, file):
        return ["respond", f"{file}:problem"]

    @pytest.mark.parametrize(
        ("kind", "stage"),
        [("warm", 0), ("warm", 3), ("replicated, h chosen", 1), ("cold", 1), ("cold", 3)],
    )
    def test_the_response_goes_on_with_its_stages_to_the_same_bits(
        self, call, command, tmp_path, kind, stage
    ):
        out = tmp_path / "out"
        with stopped_in(stage):
            code, _, err = call(*command, *KINDS[kind], "--out", out)
        assert code == 75 and "run the same command" in err
        assert not (out / "scores.json").exists()
        with stopped_in(99) as made:
            assert call(*command, *KINDS[kind], "--out", out)[0] == 0
        assert len(made) == 4 - stage
        assert_same_datasets(scores_in(out), uninterrupted(kind))
        assert sorted(p.name for p in out.iterdir()) == [
            ".bif", ".lock", "influence.zarr", "scores.json"
        ]  # fmt: skip

    def test_the_response_goes_on_at_a_url_too(self, call, command, tmp_path):
        out = "memory://cut-short"
        with stopped_in(2):
            assert call(*command, *KINDS["warm"], "--out", out)[0] == 75
        with stopped_in(99) as made:
            assert call(*command, *KINDS["warm"], "--out", out)[0] == 0
        assert len(made) == 2
        assert_same_datasets(store.read_scores(out)[0], uninterrupted("warm"))
        assert not store.folder_at(out).is_folder("unfinished")

    def test_the_response_says_how_far_it_has_come(self, call, command, tmp_path):
        with stopped_in(3):
            call(*command, *KINDS["warm"], "--out", tmp_path / "out")
        code, said, _ = call("show", tmp_path / "out")
        assert code == 0 and "no results yet: 4 of 5 queries committed" in said

    def test_a_damaged_stage_is_made_anew(self, call, command, tmp_path):
        out = tmp_path / "out"
        with stopped_in(3):
            call(*command, *KINDS["warm"], "--out", out)
        block = out / "unfinished" / "checkpoints" / "block-001"
        for state in block.glob("*.safetensors"):
            state.write_bytes(state.read_bytes()[:-8] + b"damaged!")
        with stopped_in(99) as made:
            assert call(*command, *KINDS["warm"], "--out", out)[0] == 0
        assert len(made) == 2
        assert_same_datasets(scores_in(out), uninterrupted("warm"))

    def test_a_damaged_file_leaves_the_same_bits_or_is_refused(self, call, command, tmp_path):
        cut = tmp_path / "cut"
        with stopped_in(3):
            call(*command, *KINDS["warm"], "--out", cut)
        damages = [
            lambda p: p.write_bytes(bytes([*p.read_bytes()[:-3], 7, 7, 7])),
            lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
            lambda p: p.unlink(),
        ]
        names = sorted(name for name in files(cut) if not name.endswith(".lock"))
        assert len(names) == 11  # marks, manifests, values at w*, three stages
        names = [name for name in names if "block-000" not in name]  # a stage as the last one
        ended = []
        for i, name in enumerate(names):
            out = tmp_path / f"out-{i}"
            shutil.copytree(cut, out)
            damages[i % 3](out / name)
            code, *_ = call(*command, *KINDS["warm"], "--out", out)
            ended.append(code)
            if code == 0:
                assert_same_datasets(scores_in(out), uninterrupted("warm"))
            else:
                assert code == 2 and not (out / "scores.json").exists(), name
        assert ended.count(0) >= len(names) - 3

    def test_another_response_is_refused_by_name_and_the_stages_are_kept(
        self, call, command, tmp_path
    ):
        out = tmp_path / "out"
        with stopped_in(2):
            call(*command, *KINDS["warm"], "--out", out)
        before = files(out)
        for name, *changed in (
            ("settings.seed", "--seed", "3"),
            ("response.h", "--h", "0.2"),
            ("settings.nbeta", "--nbeta", "30.0"),
        ):
            refused = failed(call(*command, *KINDS["warm"], *changed, "--out", out))
            assert f"with another {name}" in refused and "--from" not in refused
            assert files(out) == before
        with stopped_in(99) as made:
            code, *_ = call(*command, *KINDS["warm"], "--seed", 3, "--out", out, "--overwrite")
        assert code == 0 and len(made) == 4

    def test_another_loss_is_refused(self, call, command, tmp_path):
        out, source = tmp_path / "out", Path(command[1].partition(":")[0])
        with stopped_in(2):
            call(*command, *KINDS["warm"], "--out", out)
        text = source.read_text()
        doubled = "classification(loss=lambda m, b: 2 * bif.losses.cross_entropy(m, b))"
        source.write_text(text.replace("classification()", doubled))
        assert "with another loss" in failed(call(*command, *KINDS["warm"], "--out", out))

    def test_other_losses_that_no_fingerprint_sees_are_refused(
        self, call, command, tmp_path, monkeypatch
    ):
        out, source = tmp_path / "out", Path(command[1].partition(":")[0])
        hidden = (
            "classification(loss=lambda m, b: "
            "float(os.environ['FACTOR']) * bif.losses.cross_entropy(m, b))"
        )
        text = source.read_text().replace("import bif\n", "import bif, os\n", 1)
        source.write_text(text.replace("classification()", hidden))
        monkeypatch.setenv("FACTOR", "1.0")
        with stopped_in(2):
            call(*command, *KINDS["warm"], "--out", out)
        monkeypatch.setenv("FACTOR", "2.0")
        code, _, err = call(*command, *KINDS["warm"], "--out", out)
        assert code == 2 and "was begun with other losses of the train items at w*" in err

    def test_scores_to_be_replaced_stay_until_the_first_stage(self, call, command, tmp_path):
        out = tmp_path / "out"
        assert call(*command, *KINDS["warm"], "--out", out)[0] == 0
        before = files(out)
        wrong = ["--temperature", "0", "--out", out, "--overwrite"]  # there are no steps for it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(respond, "calibrate_pairs", Mock(side_effect=ValueError("no")))
            assert "no" in failed(call(*command, *KINDS["warm"], *wrong))
        assert files(out) == before
        with stopped_in(2):
            call(*command, *KINDS["warm"], "--out", out, "--overwrite")
        assert not (out / "scores.json").exists()
        with stopped_in(99) as made:
            assert call(*command, *KINDS["warm"], "--out", out)[0] == 0
        assert len(made) == 2

    def test_scores_from_memory_do_not_replace_it_unasked(self, call, command, tmp_path, response):
        out = tmp_path / "out"
        with stopped_in(2):
            call(*command, *KINDS["warm"], "--out", out)
        with pytest.raises(store.FolderInUse, match="overwrite=True"):
            response.save(out)
        response.save(out, overwrite=True)
        assert not (out / "unfinished").exists()
        assert scores_in(out).identical(response.influence.dataset)
