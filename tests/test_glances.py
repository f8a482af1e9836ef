"""The short tables that `benchmarks/tables.py` puts into pages."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def glances(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("glances")


def sweep(**changed):
    entry = {"name": "sweep", "nbeta/n": 4.0, "damping": 3.0}
    rows = [
        {"name": "defaults", "lds": 0.3},
        {"name": "tuned", "failed": "no time"},
        {**entry, "lds": 0.25},
        {**entry, "nbeta/n": 0.25, "damping": 0.2, "lds": 0.4},
        {**entry, "failed": "no time"},
    ]
    run = {
        "benchmark": "sweep-digits", "budget": 45.0, "sweep": rows,
        "command": "python benchmarks/sweep.py digits --seconds 45 --out DIR",
        "hardware": {"cores": 2, "machine": "x86_64"},
    }  # fmt: skip
    return run | changed


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ways_to_calibrate_stand_beside_the_best_that_came_to_an_end(glances):
    header, _, line = glances.beside_sweeps([sweep()])
    assert dict(zip(cells(header), cells(line), strict=True)) == {
        "setting": "digits", "seconds": "45", "on": "2 CPU cores (x86_64)",
        "defaults": "0.300 (75.0%)", "`retrained_from`": "–", "`bif.tune`": "not in time",
        "best of the sweep": "0.400", "its nbeta": "0.25 × default", "its gamma": "0.2 × default",
        "settings tried": "3", "came to an end": "2",
    }  # fmt: skip


def test_and_at_every_budget_beside_the_best_of_the_sweep(glances):
    def row(budget, name, **found):
        return {"budget": budget, "name": name, **found}

    rows = [
        row(60.0, "defaults", lds=0.3), row(60.0, "retrained_from", lds=0.38),
        row(60.0, "tuned", failed="no time"), row(60.0, "best of the sweep", lds=0.4),
        row(120.0, "defaults", lds=0.35), row(120.0, "best of the sweep", lds=0.5),
    ]  # fmt: skip
    hardware = {"cores": 2, "machine": "x86_64"}
    run = {"benchmark": "tuning-digits", "rows": rows, "hardware": hardware}
    header, _, *lines = glances.ways_to_be_calibrated([run])
    assert cells(header)[3:] == ["defaults", "`retrained_from`", "`bif.tune`", "best of the sweep"]
    assert [cells(line)[3:] for line in lines] == [
        ["0.300 (75.0%)", "0.380 (95.0%)", "not in time", "0.400"],
        ["0.350 (70.0%)", "–", "–", "0.500"],
    ]


def test_a_setting_of_another_size_says_so(glances):
    *_, line = glances.beside_sweeps([sweep(benchmark="sweep-digits-64")])
    assert cells(line)[0] == "digits, 64 items"


def test_either_answer_stands_beside_the_defaults(glances):
    rows = [
        {"setting": "digits", "target": "scratch", "told": "nothing", "lds": 0.5},
        {"setting": "digits", "target": "scratch", "told": "scratch", "lds": 0.4},
        {"setting": "digits", "target": "scratch", "told": "checkpoint", "failed": "no time"},
    ]
    run = {"budget": 60.0, "rows": rows, "hardware": {"cores": 2, "machine": "x86_64"}}
    header, _, line = glances.told_elsewhere(run)
    assert dict(zip(cells(header), cells(line), strict=True)) == {
        "setting": "digits", "retrained from": "scratch", "seconds": "60",
        "on": "2 CPU cores (x86_64)", "defaults": "0.500", 'told "scratch"': "0.400",
        'told "checkpoint"': "not in time",
    }  # fmt: skip
