"""The files in `examples/` run as their first line says."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bif
from bif.bank import Plan
from bif.cli.loading import load_function

EXAMPLES = Path(__file__).parents[1] / "examples"


def lines_of_code(file: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def test_a_model_of_ones_own_is_benchmarked(call, monkeypatch, tmp_path):
    def brief(where):
        """The example's task with few networks and draws."""
        plan = Plan(num_subsets=24, seeds=2, num_tuning_subsets=8)
        settings = bif.Settings(chains=8, draws=60)
        return lambda: replace(load_function(where)(), plan=plan, settings=(settings,))

    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    monkeypatch.setattr("bif.cli.benchmark.load_function", brief)
    file = EXAMPLES / "benchmark_my_model.py"
    # As many as its docs promise, and a few for imports.
    assert lines_of_code(file) <= 28
    code, said, _ = call(
        "lds", f"{file}:task", "--out", tmp_path, "--methods", "random", "gradient_product", "bif"
    )
    assert code == 0 and "retrained from scratch" in said
    by = {row["method"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert by["bif"]["lds"] > 0.2 > by["random"]["lds"]
    assert by["bif"]["num_seeds"] == 2 and by["bif"]["ceiling"] <= 1


def test_checkpoints_of_ones_own_training_are_followed(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    monkeypatch.chdir(tmp_path)
    file = EXAMPLES / "own_checkpoints.py"
    assert lines_of_code(file) <= 26
    runpy.run_path(str(file))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and all(": " in line and "±" in line for line in said)
    assert len(bif.Trajectory.load(tmp_path / "own-checkpoints" / "stages").steps) >= 10


@pytest.mark.slow
def test_a_shift_of_half_a_class_is_predicted(capsys):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    runpy.run_path(str(EXAMPLES / "shift.py"))
    number = r"([+-]?[\d.]+)"
    told = re.findall(
        f"at {number}: .* second {number}, .* sampled {number}", capsys.readouterr().out
    )
    change = {float(size): (float(second), float(sampled)) for size, second, sampled in told}
    for size in (-0.5, 1.0):  # the third order is about a tenth of the change
        assert change[size][0] == pytest.approx(change[size][1], rel=0.15)
    assert abs(change[-1.0][0]) > 2 * abs(change[-1.0][1])  # a whole class is too much


@pytest.mark.usefixtures("unchecked")
def test_digits_that_made_a_generated_one_are_of_its_kind(tmp_path):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    pil = pytest.importorskip("PIL.Image", reason="the extra `demo` is not installed")
    file = EXAMPLES / "generated_digits.py"
    assert lines_of_code(file) < 60
    example = runpy.run_path(str(file))
    problem = example["problem"](num_train=300, num_made=2, steps=200)
    # What the example is to show: a loss with noise in it that is the same at every call.
    batch = problem.train.first(3)
    first, second = (problem.loss(problem.model, batch) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    run = bif.attribute(problem, bif.Settings(chains=4, draws=40, mass="identity", thin=2))
    scores = run.influence.dataset
    unseen = scores["query_group"].values == "unseen"
    best = scores["influence"][0].values[unseen].argsort(axis=1)[:, :5]
    same = scores["train_label"].values[best] == scores["query_label"].values[unseen][:, None]
    # 250 of them; by chance one in ten, and 5 standard errors of that are .095.
    assert same.mean() > 0.2
    example["picture"](run, tmp_path / "made.png", rows=3)
    assert np.asarray(pil.open(tmp_path / "made.png")).shape == (6 * 4 * 10, 6 * 2 * 10)
