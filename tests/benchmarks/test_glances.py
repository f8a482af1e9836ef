"""The short tables that `benchmarks/tables.py` puts into pages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def test_a_way_whose_run_is_not_trusted_says_so_beside_its_lds(glances):
    rows = sweep()["sweep"]
    rows[0] |= {"trusted": False}
    rows[3] |= {"rhat_max": 1.3}
    *_, line = glances.beside_sweeps([sweep(sweep=rows)])
    assert cells(line)[3] == "0.300 (75.0%), not trusted"
    assert cells(line)[6] == "0.400, not trusted"


def of_the_bif(**changed):
    row = {
        "method": "bif", "target": "scratch", "observable": "loss", "lds": 0.5, "seconds": 60.0,
        "minus_ekfac_low": 0.1, "minus_ekfac_high": 0.3, "ceiling": 0.9, "reliability": 0.56,
        "rhat_max": 1.199, "choice": {"nbeta/n": 0.3, "gamma/nbeta": 0.1},
    }  # fmt: skip
    return row | changed


def run_of(*rows, settings=1, **changed):
    run = {
        "rows": list(rows), "about": {"settings": [{}] * settings}, "date": "2026-01-02",
        "command": "python benchmarks/lds.py cifar --out DIR", "seed": 0,
        "versions": {"torch": "2", "python": "3"}, "hardware": {"cores": 2, "machine": "x86_64"},
    }  # fmt: skip
    return run | changed


EKFAC = {"method": "ekfac", "target": "scratch", "observable": "loss", "lds": 0.3, "seconds": 5.0}


def glance(glances, run):
    header, _, line, *_, words = glances.at_a_glance({"cifar": run}, "docs/results.md")
    names = cells(header)
    assert names.count("trusted") == 2
    names[names.index("trusted") + 2] = "default trusted"
    return dict(zip(names, cells(line), strict=True)), words


def test_a_hand_set_temperature_is_called_so_beside_the_default_and_its_verdict(glances):
    default = of_the_bif(
        method="bif_default", lds=0.4, trusted=False, failed_gates=["step"], rhat_max=1.01
    )
    found, words = glance(glances, run_of(of_the_bif(), EKFAC, default))
    assert found["BIF, set by hand"] == "0.500" and found["its nbeta"] == "0.3 n"
    assert (found["reliability"], found["R-hat"]) == ("0.56", "1.199")
    assert found["trusted"] == "no: R-hat above 1.05"
    assert found["BIF by default"] == "0.400" and found["default trusted"] == "no: step"
    assert "On cifar the values had been fixed before the run" in words
    assert "(docs/converged.md)" in words


def test_without_a_run_of_the_default_there_is_a_dash(glances):
    found, words = glance(glances, run_of(of_the_bif(), EKFAC, settings=2))
    assert found["BIF by default"] == found["default trusted"] == "–"
    assert "On cifar pilots on the tuning part chose" in words and "fixed before" not in words


def test_small_sets_stand_beside_what_is_simpler_with_the_differences_turned(glances):
    about = {"set": "wine", "num_train": 90, "train_loss": 0.0021, "target": "scratch"}
    rows = [
        {**about, "method": "ekfac", "lds": 0.7, "minus_bif_low": -0.2, "minus_bif_high": -0.1},
        {**about, "method": "exact_ggn@bif", "lds": 0.79, "minus_bif_low": -0.02,
         "minus_bif_high": 0.03},
        {**about, **of_the_bif(lds=0.8, trusted=True, failed_gates=[])},
    ]  # fmt: skip
    header, _, line = glances.small_sets({"rows": rows})
    assert cells(header)[4:8] == [
        "EK-FAC, tuned", "BIF minus it, 95 %", "Gauss-Newton, same damping", "BIF minus it, 95 %",
    ]  # fmt: skip
    assert cells(line) == [
        "wine", "90", "0.0021", "scratch", "0.700", "+0.100 to +0.200", "0.790",
        "-0.030 to +0.020", "0.800", "0.3 n", "1.199", "yes", "60",
    ]  # fmt: skip


def test_the_best_temperature_of_a_small_set_is_bold_and_an_untrusted_one_marked(glances):
    rows = [
        {"set": "wine", "target": "scratch", "times_n": x, "lds": score, "trusted": x < 10}
        for x, score in ((10.0, 0.8), (1.0, 0.7))
    ]
    header, _, line = glances.small_temperatures({"rows": rows})
    assert cells(header) == ["set", "retrained from", "1 n", "10 n"]
    assert cells(line) == ["wine", "scratch", "0.700", "**0.800**, not trusted"]


@pytest.fixture
def tables(monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_a_run_cut_short_names_the_settings_that_it_lacks(tables):
    run = run_of(
        {"setting": "digits", "draws_for_half": 1.0}, benchmark="alignment",
        command="python benchmarks/alignment.py digits cifar --data DIR --out DIR",
    )  # fmt: skip
    assert tables.lacking_settings(run) == ["cifar"]
    columns = {"setting": "setting", "draws_for_half": "from gradients"}
    assert "Cut short: without cifar." in tables.section("alignment", run, columns)


def test_figures_taken_from_another_file_come_with_its_verdict(tables, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"rows": [EKFAC, of_the_bif()]}))
    run = tables.with_trust(run_of({"setting": "cifar", "run": "x.json", "reliability": 0.56}))
    columns = {"rhat_max": "R-hat", "verdict": "trusted"}
    *_, line = tables.section("alignment", run | {"benchmark": "alignment"}, columns)
    assert cells(line) == ["1.199", "no: R-hat above 1.05"]


def test_edges_are_told_of_files_that_do_not_say_them(tables):
    row = {**EKFAC, "choice": {"damping": 10.0}}
    tuned = [{"choice": {"damping": d}, "lds": d / 100} for d in (0.1, 1.0, 10.0)]
    tuned[1]["lds"] = None  # refused, as a file has it
    run = run_of(row, tuned=[{"method": "ekfac", "observable": "loss", "tuned": tuned}])
    assert tables.with_edges(run)["rows"][0]["at_edge"] == ["damping"]
    said = run_of({**row, "at_edge": []}, tuned=run["tuned"])
    assert tables.with_edges(said)["rows"][0]["at_edge"] == []


def test_the_default_of_a_file_of_its_own_joins_the_rows_and_names_its_command(tables):
    default = of_the_bif(method="bif_default", lds=0.4)
    whole = run_of(of_the_bif(), EKFAC, about={"about": "CIFAR"})
    alone = run_of(EKFAC, default, command="python benchmarks/lds.py cifar --by-default")
    joined = tables.with_default(whole, alone)
    assert [r["method"] for r in joined["rows"]] == ["bif", "ekfac", "bif_default"]
    assert any("`bif_default`: `python" in line for line in tables.preamble(joined))
    assert tables.with_default(joined, alone) is joined
    assert tables.with_default(whole, None) is whole


def test_every_committed_run_that_has_not_mixed_is_shown_as_refused(tables, glances):
    runs = tables.newest_of_settings()
    lines = glances.at_a_glance(runs, "docs/results.md")
    for setting, run in runs.items():
        rows = [r for r in run["rows"] if r["method"] == "bif" and r["observable"] == "loss"]
        for row in (r for r in rows if r["rhat_max"] > 1.05):
            (line,) = (x for x in lines if f"[{setting}]" in x and f"| {row['target']} |" in x)
            assert "| no: " in line


def test_remedies_say_after_how_many_times_they_worked(glances):
    row = {"gate": "step", "planted": "a long step", "remedy": "step_size=0.1", "then fails": ""}
    rows = [
        {**row, "works": True, "times": 1}, {**row, "works": True, "times": 2},
        {**row, "works": False, "times": 4, "then fails": "virial"},
        {"gate": "twins", "planted": "one seed"},
    ]  # fmt: skip
    found = [cells(line)[2:] for line in glances.remedies_followed({"rows": rows})[2:]]
    assert found == [
        ["`step_size=0.1`", "at once", "–"], ["`step_size=0.1`", "the 2nd time", "–"],
        ["`step_size=0.1`", "no", "virial"], ["–", "no", "–"],
    ]  # fmt: skip
