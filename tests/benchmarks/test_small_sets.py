"""`benchmarks/small.py`: its sets, and its rows on one of them with a bank of a few networks."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import bif
from bif.bank import Plan
from bif.benchmark.harness import banks_of

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = tuple(
    "cancer wine digits diabetes noisy friedman moons heavy swiss blobs multi linear".split()
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("small")


@pytest.fixture
def quick(small, monkeypatch):
    """Few networks of few steps, and runs of few draws."""
    monkeypatch.setattr(small, "STEPS", 20)
    monkeypatch.setattr(
        small, "PLAN", Plan(num_subsets=6, seeds=2, num_tuning_subsets=8, tuning_seeds=1)
    )
    asked = []

    def attribute(problem, settings):
        asked.append(settings)
        return bif.attribute(problem, replace(settings, chains=4, draws=20))

    monkeypatch.setattr("bif.benchmark.methods.fluctuation.attribute", attribute)
    return asked


def test_the_docstring_s_table_is_what_is_run(small):
    joined = small.__doc__.replace("\\\n", "")
    table = re.findall(r"^\| (\w+)(?:: [^|]*)? \| (\d+), (\d+), (\d+) \| (\S+) (\w+) \| (\S+) \| "
                       r"(\S+) \|$", joined, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in table] == list(small.SETS) == list(NAMES)
    for name, train, queries, tuning, widths, activation, rate, decay in table:
        chosen = small.SETS[name]
        parts = small.split(chosen, 0, "cpu")
        assert [len(x) for x, _ in parts] == [int(train), int(queries), int(tuning)]
        inputs, hidden, _ = (int(width) for width in widths.split("-"))
        assert parts[0][0].shape[1] == inputs and chosen.hidden == hidden
        assert chosen.activation.__name__.lower() == activation.lower()
        assert (chosen.rate, chosen.weight_decay) == (float(rate), float(decay))


def test_every_rival_stands_beside_a_run_that_was_told_the_weight_decay_alone(small, quick):
    task = small.small_task("wine", device="cpu", seed=0)
    banks, _ = banks_of(task)
    rows = small.measured(task, banks, small.METHODS)
    assert quick == [bif.Settings(weight_decay=1e-3)]
    assert [(row["target"], row["method"]) for row in rows] == [
        (target, method) for target in ("scratch", "checkpoint") for method in small.METHODS
    ]
    for row in rows:
        own = row["method"] == "bif"
        assert row["set"] == "wine" and row["num_train"] == 90 and row["train_loss"] > 0
        assert ("minus_bif_low" in row) is not own
        assert ("trusted" in row and "failed_gates" in row) is own
    by = {row["method"]: row for row in rows}
    damping = by["bif"]["choice"]["gamma/nbeta"] + 1e-3
    assert by["exact_ggn@bif"]["choice"]["damping"] == pytest.approx(damping)


def test_a_temperature_is_in_units_of_the_items(small, quick):
    task = small.small_task("wine", device="cpu", seed=0)
    (row, _) = small.measured(
        small.at_temperature(task, 4.0), banks_of(task)[0], ["bif"], times_n=4.0
    )
    assert [settings.nbeta for settings in quick] == [360.0]
    assert row["times_n"] == row["choice"]["nbeta/n"] == 4.0


def test_banks_are_found_again(small, quick, tmp_path):
    task = small.small_task("wine", device="cpu", seed=0)
    with small.folder_of(tmp_path, "wine") as folder:
        banks_of(task, folder)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("bank.json")}
    again = small.small_task("wine", device="cpu", seed=0)
    with small.folder_of(tmp_path, "wine") as folder:
        banks_of(again, folder)
    assert len(before) == 2
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())


def test_the_default_of_a_setting_has_a_file_of_its_own(small, quick, monkeypatch, tmp_path):
    lds = importlib.import_module("lds")
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
    assert quick == [bif.Settings(weight_decay=1e-3)]
