"""The command `bif steer`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from test_cli_shift import TASK, labelled_task

import bif
from bif.cli.retraining import EVERY
from bif.cli.steer import Steer
from bif.susceptibility import steer
from command_line import failed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the convex task, solved for."""
    place = tmp_path_factory.mktemp("runs") / "run"
    settings = bif.Settings(estimator="response", nbeta=2000.0, gamma=20.0, weight_decay=1e-2)
    bif.attribute(labelled_task().problem, settings, out=place)
    return place


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    place, here = tmp_path / "task.py", Path(__file__).parent
    place.write_text(dedent(TASK).format(tests=str(here.parent), here=str(here)))
    return place


def test_weights_page_and_figures_of_a_run_are_written(call, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ["--queries", "class 1", "--change", -0.02, "--hold", "others", "--out", out]
    code, text, err = call("steer", "--run-folder", folder, *words)
    assert code == 0, err
    assert "loss of class 1 is to move by -0.02" in text and "unverified" in text
    run = bif.load(folder)
    labels = [str(x) for x in run.influence.dataset["query_label"].values]
    hold = sorted(set(labels) - {"class 1"})
    expected = steer(run, "class 1", change=-0.02, queries=labels, hold=hold)
    rows = list(csv.DictReader((out / "weights.csv").open()))
    found = {row["id"]: float(row["weight"]) for row in rows}
    ids = [str(x) for x in run.influence.dataset["train_id"].values]
    np.testing.assert_allclose([found[i] for i in ids], expected.weights, rtol=1e-12)
    change = np.abs([float(row["change"]) for row in rows])
    assert (np.diff(change) <= 0).all() and rows[0]["label"].startswith("class")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["is_reached"] and summary["intended"] == -0.02
    assert summary["queries"]["class 1"]["predicted"] == pytest.approx(-0.02)
    assert summary["queries"][hold[0]]["predicted"] == pytest.approx(0, abs=1e-9)
    assert summary["what"].startswith("a prediction, unverified")
    assert "predicted to lower the mean loss of class 1" in (out / "steering.html").read_text()


def test_retraining_says_what_was_achieved(call, folder: Path, task_file: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ["--run-folder", folder, "--queries", "class 1", "--change", -0.02, "--retrain"]
    code, text, err = call("steer", f"{task_file}:task", *words, "--out", out)
    assert code == 0 and "retrained with 1 seeds" in text, err
    summary = json.loads((out / "summary.json").read_text())
    # Convex and a small change, so that first order is right but for its damping and its square.
    assert summary["queries"]["class 1"]["retrained"][0] == pytest.approx(-0.02, rel=0.3)
    assert "Meant to move" in (out / "steering.html").read_text()


@pytest.mark.parametrize(
    ("queries", "by", "expected"),
    [("1", None, {"0", "1"}), ("hard", None, {"easy", "hard"}), ("hard", "label", {"0", "1"})],
)
def test_queries_are_named_by_their_label_or_their_group(queries, by, expected):
    coords = {"query_label": ("query", ["0", "1"]), "query_group": ("query", ["easy", "hard"])}
    run: Any = SimpleNamespace(influence=SimpleNamespace(dataset=xr.Dataset(coords=coords)))
    asked = Steer(queries=queries, by=by, change=0.1, out="out")
    assert set(asked._query_groups(run)) == {EVERY} | expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--queries", "class 9", "--change", "-0.1"], "there are no queries 'class 9'"),
        (["--change", "0"], "change is 0"),
        (["--change", "-0.1", "--order", "second"], "order='second' needs the traces"),
        (["--change", "-0.1", "--groups", "source"], "have no 'source' to be summed by"),
        (["--change", "-0.1", "--by", "source"], "the queries have no 'source'"),
    ],
)
def test_bad_input_is_one_sentence(call, folder: Path, tmp_path: Path, words, message):
    answer = call("steer", "--run-folder", folder, *words, "--out", tmp_path / "out")
    assert message in failed(answer)


def test_a_function_cannot_take_weights(call, task_file: Path, tmp_path: Path):
    words = ["--change", "-0.1", "--retrain", "--out", tmp_path / "out"]
    answer = call("steer", f"{task_file}:by_function", *words)
    assert "can leave items out and give them no weights" in failed(answer)
