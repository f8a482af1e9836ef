"""`benchmarks.calibration.small`: rows of one of its sets, with a bank of a few networks."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")

import bif
from benchmarks import lds
from benchmarks.calibration import small
from benchmarks.common import bank_folder
from bif.bank import Plan
from bif.benchmark.harness import retrain_banks


@pytest.fixture
def quick(monkeypatch):
    """Few networks of few steps, and runs of few draws."""
    monkeypatch.setattr(small, "STEPS", 20)
    monkeypatch.setattr(
        small, "PLAN", Plan(num_subsets=6, seeds=2, num_tuning_subsets=8, tuning_seeds=1)
    )
    asked = []

    def attribute(problem, settings):
        asked.append(settings)
        return bif.attribute(problem, replace(settings, chains=4, draws=20, mass="identity"))

    monkeypatch.setattr("bif.benchmark.methods.fluctuation.attribute", attribute)
    return asked


def test_every_rival_stands_beside_a_run_that_was_told_the_weight_decay_alone(quick):
    task = small.small_task("wine", device="cpu", seed=0)
    banks, _ = retrain_banks(task)
    rows = small.measure_rows(task, banks, small.METHODS)
    assert quick == [bif.Settings(estimator="covariance", weight_decay=1e-3)]
    assert [(row["target"], row["method"]) for row in rows] == [
        (target, method) for target in ("scratch", "checkpoint") for method in small.METHODS
    ]
    for row in rows:
        own, judged = row["method"] == "bif", row["method"] in ("bif", "solver_default")
        assert row["set"] == "wine" and row["num_train"] == 90 and row["train_loss"] > 0
        assert ("minus_bif_low" in row) is not own
        assert ("trusted" in row and "failed_gates" in row) is judged
    by = {row["method"]: row for row in rows}
    damping = by["bif"]["choice"]["gamma/nbeta"] + 1e-3
    assert by["exact_ggn@bif"]["choice"]["damping"] == pytest.approx(damping)


def test_a_temperature_is_in_units_of_the_items(quick):
    task = small.small_task("wine", device="cpu", seed=0)
    (row, _) = small.measure_rows(
        small.at_temperature(task, 4.0), retrain_banks(task)[0], ["bif"], times_n=4.0
    )
    assert [settings.nbeta for settings in quick] == [360.0]
    assert row["times_n"] == row["choice"]["nbeta/n"] == 4.0


def test_banks_are_found_again(quick, tmp_path):
    def written() -> dict:
        with bank_folder(tmp_path, "wine") as folder:
            retrain_banks(small.small_task("wine", device="cpu", seed=0), folder)
        return {file: file.stat().st_mtime_ns for file in tmp_path.rglob("bank.json")}

    before = written()
    assert len(before) == 2 and written() == before


def test_the_default_of_a_setting_has_a_file_of_its_own(quick, monkeypatch, tmp_path):
    task = replace(small.small_task("wine", device="cpu", seed=0), settings=(bif.Settings(
        nbeta=900.0, gamma=9.0, weight_decay=1e-3, chains=4, draws=20
    ),))  # fmt: skip
    monkeypatch.setattr(lds, "named_task", lambda *args, **given: task)
    lds.measure("digits", argparse.Namespace(
        data=None, device="cpu", seed=0, by_default=True, methods=None, fractions=[], banks=None,
        out=tmp_path,
    ))  # fmt: skip
    (file,) = tmp_path.glob("lds-digits-default-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row["method"] for row in rows} == {"ekfac", "bif_default"}
    assert quick == [bif.Settings(estimator="covariance", weight_decay=1e-3)]
