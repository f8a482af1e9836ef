"""The command `bif shift`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bif
from bif.store import load_dataset
from bif.susceptibility import group_shifts, predicted_change
from command_line import TINY_FLAGS, failed
from small_problems import TINY, classification, labelled


def labelled_problem(**changed) -> bif.Problem:
    """The classes of train items and queries are their labels."""
    (x, y), (qx, qy) = labelled(20, seed=1), labelled(5, seed=2)
    given = {
        "train": bif.Items((x, y), labels=[f"class {int(c)}" for c in y]),
        "queries": bif.Items((qx, qy), labels=[f"class {int(c)}" for c in qy]),
        **changed,
    }
    return classification(**given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    bif.attribute(labelled_problem(), TINY, out=place)
    return place


def test_a_run_is_shifted_by_its_classes(call, folder: Path, tmp_path: Path):
    out = tmp_path / "shift"
    code, text, err = call("shift", "--run-folder", folder, "--out", out, "--sizes", -1, 0.1)
    assert code == 0, err
    assert "a prediction, unverified: no network was retrained" in text
    assert "note: class 0: removed, and" in text
    found, run = load_dataset(out, name="shift.zarr"), bif.load(folder)
    expected = predicted_change(
        run, group_shifts(run), [-1, 0.1], queries={"all queries": range(5)}
    )
    for name in ("first", "second", "reweighted", "second_error"):
        np.testing.assert_allclose(
            found[name].sel(query="all queries"), expected[name].sel(query="all queries")
        )
    assert {"class 0", "class 1"} <= set(found["query"].values.tolist())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["what"].startswith("a prediction, unverified")
    assert summary["failed_gates"] and summary["trusted"] is False and "NOT TRUSTED" in err
    assert summary["shifts"]["sizes"] == [-1, 0.1]
    np.testing.assert_allclose(
        summary["shifts"]["class 1"]["loss"]["first"],
        expected["first"].sel(shift="class 1", observable="loss").values[0],
    )


def test_a_problem_of_a_file_is_run_first(call, tmp_path: Path, no_page: None):
    file, out = tmp_path / "mine.py", tmp_path / "shift"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_cli_shift import labelled_problem as problem\n"
    )
    code, text, err = call("shift", f"{file}:problem", "--out", out, *TINY_FLAGS)
    assert code == 0 and "written" in text, err
    assert bif.load(out / "run").manifest.settings["estimator"] == "covariance"
    assert load_dataset(out, name="shift.zarr")["size"].values[0] == -1


def test_items_that_name_no_groups_are_refused_before_the_run(call, file: Path, tmp_path: Path):
    out = tmp_path / "shift"
    answer = call("shift", f"{file}:problem", "--out", out, *TINY_FLAGS)
    assert "have no 'label' that names their groups" in failed(answer)
    assert not out.exists()


def test_two_problems_are_refused(call, file: Path, tmp_path: Path, folder: Path):
    answer = call("shift", f"{file}:problem", "--run-folder", folder, "--out", tmp_path / "out")
    assert "not two" in failed(answer)
    assert "expected FILE.py:FUNCTION, or --model" in failed(call("shift", "--out", tmp_path / "x"))
