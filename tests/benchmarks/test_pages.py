"""What `python -m benchmarks.pages` puts into the documentation."""

from __future__ import annotations

import json

import pytest

from benchmarks.pages import lds, runs, sections, tables
from benchmarks.pages.__main__ import PAGES, ROOT, TABLES, fill_page
from bif.runs.gates import RHAT

RUN = {
    "rows": [], "about": {}, "date": "2026-01-02", "command": "python benchmarks/lds.py cifar",
    "seed": 0, "versions": {"torch": "2", "python": "3"},
    "hardware": {"cores": 2, "machine": "x86_64"},
}  # fmt: skip
EKFAC = {"method": "ekfac", "target": "scratch", "observable": "loss", "lds": 0.3, "seconds": 5.0}
DEFAULT = {**EKFAC, "method": "bif_default"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_holds_what_the_committed_runs_make(page):
    assert fill_page(page) == page.read_text(encoding="utf-8"), "run python -m benchmarks.pages"


def test_every_table_stands_in_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if f"benchmarks.pages: {name} -->" not in pages] == []


def test_every_run_that_has_not_mixed_is_shown_as_refused():
    lines = tables.at_a_glance("docs/results.md")
    for setting, run in runs.newest_of_settings().items():
        rows = [r for r in run["rows"] if r["method"] == "bif" and r["observable"] == "loss"]
        for row in (r for r in rows if r["rhat_max"] > RHAT):
            (line,) = (x for x in lines if f"[{setting}]" in x and f"| {row['target']} |" in x)
            assert "| no: " in line


def test_a_way_whose_run_is_not_trusted_or_did_not_end_says_so():
    best = {"name": "best of the sweep", "lds": 0.4, "rhat_max": 1.3}
    rows = [{"name": "defaults", "lds": 0.3, "trusted": False}, {"name": "tuned", "failed": "no"}]
    assert tables._ways(rows, best) == [
        "0.300 (75.0%), not trusted", "–", "not in time", "0.400, not trusted"
    ]  # fmt: skip


def test_the_best_is_bold_and_an_untrusted_one_marked():
    rows = [
        {"set": "wine", "target": "scratch", "times_n": x, "lds": score, "trusted": x < 10}
        for x, score in ((10.0, 0.8), (1.0, 0.7))
    ]
    *_, line = tables._best_in_bold(rows, "times_n", {1.0: "1 n", 10.0: "10 n"})
    assert cells(line) == ["wine", "scratch", "0.700", "**0.800**, not trusted"]


def test_columns_that_no_row_has_are_left_out_and_a_bar_is_no_border():
    rows = [{"method": "bif", "reason": "over | 300 s"}, {"method": "ekfac", "lds": None}]
    header, _, first, second = sections.rows_as_table(rows, "method | lds | reason=why")
    assert cells(header) == ["method", "why"] and cells(second) == ["ekfac", "–"]
    assert first == "| bif | over \\| 300 s |"


def test_edges_are_told_of_files_that_do_not_say_them():
    row = {**EKFAC, "choice": {"damping": 10.0}}
    tuned = [{"choice": {"damping": d}, "lds": d / 100} for d in (0.1, 1.0, 10.0)]
    tuned[1]["lds"] = None  # refused, as a file has it
    run = {**RUN, "rows": [row], "tuned": [{**EKFAC, "tuned": tuned}]}
    assert runs.add_edges(run)["rows"][0]["at_edge"] == ["damping"]
    said = {**run, "rows": [{**row, "at_edge": []}]}
    assert runs.add_edges(said)["rows"][0]["at_edge"] == []


def test_the_default_of_a_file_of_its_own_joins_the_rows_and_names_its_command():
    whole = {**RUN, "rows": [EKFAC]}
    alone = {**RUN, "rows": [EKFAC, DEFAULT], "command": "python benchmarks/lds.py --by-default"}
    joined = runs.add_default_rows(whole, alone)
    assert joined["rows"] == [EKFAC, DEFAULT]
    said = "`bif_default`: `python -m benchmarks.lds --by-default`"
    assert any(line.startswith(said) for line in lds._preamble(joined))
    assert (
        runs.add_default_rows(joined, alone) is joined
        and runs.add_default_rows(whole, None) is whole
    )


def test_rows_of_two_runs_are_joined_where_their_networks_are_the_same():
    first = {**RUN, "sizes": {"width": 64}, "rows": [EKFAC], "command": "a"}
    later = {**first, "command": "b", "rows": [{**EKFAC, "lds": 0.6}, DEFAULT]}
    joined = runs.join_runs(first, later)
    assert joined["rows"] == [EKFAC, DEFAULT]
    assert (joined["command"], joined["earlier_commands"]) == ("b", ["a"])
    with pytest.raises(ValueError, match="differ in 'sizes'"):
        runs.join_runs(first, {**later, "sizes": {"width": 65}})


def test_commands_are_spelled_as_today():
    assert runs.current_command(
        "python benchmarks/small.py --sets wine; python draws.py --data DIR"
    ) == (
        "python -m benchmarks.calibration.small --sets wine; "
        "python -m benchmarks.throughput draws --data DIR"
    )


def test_the_newest_run_of_a_setting_and_of_each_size_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    for name in (
        "sweep-cifar-2026-01-01", "sweep-cifar-2026-01-03", "sweep-cifar-1000-2026-01-04",
        "sweep-cifar-64-2026-01-02", "sweep-cifar-64-2026-01-01", "sweep-cifar-small-2026-01-05",
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    assert [run["name"] for run in runs.newest_of_sizes("sweep-cifar")] == [
        "sweep-cifar-2026-01-03", "sweep-cifar-64-2026-01-02", "sweep-cifar-1000-2026-01-04",
    ]  # fmt: skip
    assert runs.newest_of_sizes("sweep-digits") == []
