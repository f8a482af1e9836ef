"""The command `bif shift`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import bif
from benchmark_cases import RECIPE, convex
from bif.benchmark import Task
from bif.evaluate import retrain_weighted
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
    assert "note: Some queries are of the label that is removed" in text
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


TASK = """
    import sys
    sys.path[:0] = [{tests!r}, {here!r}]
    from dataclasses import replace
    import bif
    from benchmark_cases import RECIPE, convex
    from small_problems import labelled
    from test_cli_shift import labelled_task as task

    def by_function():
        return task(lambda start, items, seed: start)

    def of_candidates():
        made = task()
        items = bif.Items(labelled(3, seed=9), labels=["class 0"] * 3)
        problem = bif.Problem(
            made.problem.model, bif.losses.cross_entropy, train=made.problem.train,
            queries=made.problem.query_groups, candidates={{"new": items}},
        )
        return replace(made, problem=problem)
"""


def labelled_task(retraining: Any = RECIPE) -> Task:
    """The convex task with classes for labels, settled by its chains."""
    made = convex()
    problem = made.problem
    items, queries = (
        bif.Items((x, y), labels=[f"class {int(c)}" for c in y])
        for x, y in (labelled(n, seed=s) for n, s in ((40, 0), (8, 1)))
    )
    posed = bif.Problem(
        problem.model, problem.loss, train=items, queries=queries, observables=problem.observables
    )
    return replace(made, problem=posed, retraining=retraining)


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    place = tmp_path / "task.py"
    here = Path(__file__).parent
    place.write_text(dedent(TASK).format(tests=str(here.parent), here=str(here)))
    return place


def test_what_was_predicted_stands_beside_what_retraining_made_of_it(
    call, task_file: Path, tmp_path: Path, no_page: None
):
    out = tmp_path / "shift"
    words = ["--sizes", -0.2, 0.2, "--retrain", "--seeds", 3]
    code, text, err = call("shift", f"{task_file}:task", "--out", out, *words)
    assert code == 0, err
    assert "retrained with 1 seeds" in text and "against retraining" in text
    found = load_dataset(out, name="shift.zarr")
    assert found["retrained"].sizes == {
        "observable": 2, "query": 4, "shift": 3, "size": 2, "seed": 1
    }  # fmt: skip
    task = labelled_task()
    shifts = group_shifts(bif.load(out / "run"))
    rows = [np.ones(40), shifts.weights_at(-0.2)[1].numpy()]
    assert rows[1].sum() == pytest.approx(40) and len(set(rows[1].round(9))) == 2
    values = retrain_weighted(
        task.problem.model, task.problem.loss, task.problem.train.data, rows, RECIPE, seeds=[0],
        outcomes={"loss": (bif.losses.cross_entropy, labelled(8, seed=1))}, init="checkpoint",
    )["loss"]  # fmt: skip
    np.testing.assert_allclose(
        found["retrained"].sel(observable="loss", query="all queries", shift="class 1", size=-0.2),
        (values[1] - values[0]).mean(axis=1), rtol=1e-9,
    )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    # The task is convex and the shift small: retraining is what was predicted, but for the noise.
    assert summary["fit"]["first"]["r2"] > 0.5 and len(summary["fit"]["second"]["r2_by_size"]) == 2
    page = (out / "shift.html").read_text()
    assert "less as many with the weights as they are" in page and "unverified" not in page


def test_a_function_of_the_items_retrains_without_groups(
    call, task_file: Path, tmp_path: Path, no_page: None
):
    """It returns the network that it starts from, so that nothing changes, with every seed."""
    out = tmp_path / "shift"
    words = ["--sizes", -1, "--retrain", "--seeds", 2]
    code, _, err = call("shift", f"{task_file}:by_function", "--out", out, *words)
    assert code == 0, err
    retrained = load_dataset(out, name="shift.zarr")["retrained"]
    assert retrained.sizes["seed"] == 2 and not retrained.any()


def test_the_page_of_a_run_says_that_nothing_was_retrained(call, folder: Path, tmp_path: Path):
    out = tmp_path / "shift"
    assert call("shift", "--run-folder", folder, "--out", out, "--sizes", -0.5, 0.1)[0] == 0
    page = (out / "shift.html").read_text()
    assert "A prediction, unverified: no network was retrained." in page
    assert "Not trusted:" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{file}:problem", "--retrain"], "--retrain needs to know how the network is trained"),
        (["{task}:task", "--retrain", "--seeds", "0"], "--seeds is 0: expected at least 1"),
        (["{task}:by_function", "--retrain", "--sizes", "0.5"], "pass --sizes -1"),
        (["{task}:of_candidates", "--retrain"], "the problem has candidates"),
        (["{task}:task", "--retrain", "--run-folder", "{folder}"], "the run is of other train"),
        (["{file}:nothing"], "must return a bif.Problem, or a bif.benchmark.Task, got int"),
    ],
)
def test_what_cannot_be_retrained_is_said(
    call, file: Path, task_file: Path, folder: Path, tmp_path: Path, no_page, words, message
):
    given = [word.format(file=file, task=task_file, folder=folder) for word in words]
    labels = ["--groups", "group"] if "problem" in words[0] else []
    code, _, err = call("shift", *given, *labels, "--out", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err
