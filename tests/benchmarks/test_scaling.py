"""The pure parts of `benchmarks.scaling`: counts, layouts, power laws, crossing points."""

from __future__ import annotations

import importlib.util
import json
import math
import sys

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `lm` is not installed")

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling.neox import SHAPES, Shape, layouts_of, network
from benchmarks.scaling.power_laws import crossing, fit_laws, power_law
from benchmarks.scaling.rivals import TooLong, time_limit


@pytest.mark.parametrize("name", ["tiny", "14M", "1.4B", "12B"])
def test_weights_are_counted_as_the_network_has_them(name):
    shape = SHAPES[name]
    model = network(shape, length=64, seed=0, device="meta", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == shape.num_weights
    embedding = model.get_input_embeddings().weight.numel()
    assert shape.num_weights - embedding == shape.without_embedding


@pytest.mark.parametrize(
    ("name", "millions"), [("14M", 14.07), ("160M", 162.3), ("1.4B", 1414.6), ("6.9B", 6857.3)]
)
def test_shapes_are_those_of_pythia(name, millions):
    assert SHAPES[name].num_weights / 1e6 == pytest.approx(millions, rel=1e-3)


def test_flops_are_two_a_weight_and_half_of_the_attention():
    shape = Shape("any", layers=3, width=8, heads=2, vocabulary=10)
    # Scores and values: 2 products of 2 FLOPs, over half of 16 tokens, in 3 layers.
    attention = 2 * 2 * 16 * 8 * 3 // 2
    assert shape.flop_a_token(16) == 2 * shape.without_embedding + attention
    tokens = (5 + 3 * 2) * 16
    assert shape.flop_a_draw(scored=5, stepped=2, length=16) == shape.flop_a_token(16) * tokens


def test_layouts_go_from_the_fastest_to_the_leanest():
    layouts = layouts_of(SHAPES["6.9B"], batch=16, chunk=128, length=512)
    assert [(r.memory, r.recompute) for r in layouts] == [
        ("plain", False), ("fused", False), ("fused", True), ("lean", True)
    ]  # fmt: skip
    sizes = [r.bytes for r in layouts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 80e9 < sizes[1]


def test_a_power_law_is_found_exactly_and_its_error_is_that_of_a_line():
    law = power_law([1, 2, 4, 8], [3, 6 * math.sqrt(2), 24, 48 * math.sqrt(2)])
    assert law.factor == pytest.approx(3, rel=1e-12) and law.exponent == pytest.approx(1.5)
    # Rounding of 1e-16 in r² is 1e-8 in its root.
    assert law.error == pytest.approx(0, abs=1e-7) and (law.lowest, law.highest) == (1, 8)
    # Three points with log y = 0, 1, 0 over log x = -1, 0, 1: slope 0, residuals -1/3, 2/3, -1/3.
    law = power_law([math.exp(-1), 1, math.e], [1, math.e, 1])
    assert law.exponent == pytest.approx(0, abs=1e-12)
    assert law.error == pytest.approx(math.sqrt((6 / 9) / 1 / 2))
    assert math.isnan(power_law([1, 2], [1, 2]).error)


def test_laws_cross_where_both_are_equal():
    one, other = power_law([1, 10], [1, 100]), power_law([1, 10], [50, 500])
    assert crossing(one, other) == pytest.approx(50)
    assert one.at(50) == pytest.approx(other.at(50))
    assert crossing(one, power_law([1, 10], [2, 200])) == math.inf


def rows_of(method, costs, **fixed):
    return [{"method": method, "weights": w, "seconds": s, **fixed} for w, s in costs.items()]


def test_exponents_and_crossings_come_from_comparable_rows_alone():
    fixed = {"num_items": 128, "num_queries": 16}
    rows = [
        *rows_of("bif", {1e6: 10.0, 1e7: 100.0, 1e8: 1000.0}, **fixed),
        *rows_of("bif", {1e6: 70.0}, **fixed),  # a slower way to do the same
        *rows_of("ekfac", {1e6: 1.0, 5e7: 2500.0}, **fixed),
        *rows_of("ekfac", {1e6: 5.0}, num_items=1024, num_queries=16),
        {"method": "ekfac", "weights": 1e8, "reason": "did not finish", **fixed},
        *rows_of("devinterp", {1e6: 9.0}, **fixed),
    ]
    exponents, crossings = fit_laws(rows, along="weights", fixed=["num_items", "num_queries"])
    by = {row["method"]: row for row in exponents}
    assert set(by) == {"bif", "ekfac"}  # one point makes no law
    assert by["bif"]["exponent"] == pytest.approx(1)
    assert by["ekfac"]["exponent"] == pytest.approx(2)
    (met,) = crossings
    assert met["crossing"] == pytest.approx(1e7) and met["measured"]
    assert met["cheaper_below"] == "ekfac"
    assert met["ratio_at_lowest"] == pytest.approx(0.1)
    assert fit_laws([], along="weights", fixed=[]) == ([], [])


def test_the_benchmark_runs_writes_after_each_row_and_says_what_is_not_installed(
    monkeypatch, tmp_path
):
    find_spec = importlib.util.find_spec

    def without_rivals(name: str):
        return None if name in {"devinterp", "kronfluence"} else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_rivals)
    monkeypatch.setattr(scaling, "BATCH", 2)  # a CPU is slow in bfloat16
    options = (
        "scaling --shapes tiny small --length 8 --chunk 8 --items 8 --queries 2 "
        "--seconds .02 --how eager --forecast"
    )
    monkeypatch.setattr(sys, "argv", [*options.split(), "--out", str(tmp_path)])
    scaling.main()
    (file,) = tmp_path.glob("scaling-*.json")
    content = json.loads(file.read_text())
    rows = {(row["shape"], row["method"]): row for row in content["rows"]}
    assert len(rows) == 8
    for shape in ("tiny", "small"):
        ours = rows[shape, "bif"]
        assert ours["seconds"] == pytest.approx(1000 * ours["seconds_a_draw"])
        assert ours["layout"] == "plain" and ours["forecast_gib"] > 0
        assert 0 < ours["share_of_bf16_peak"] < 1
        assert rows[shape, "response"]["trusted"] and rows[shape, "response"]["seconds"] > 0
        assert "not installed" in rows[shape, "devinterp"]["reason"]
        assert "kronfluence" in rows[shape, "ekfac"]["reason"]
    assert [e["method"] for e in content["fits"]["exponents"]] == ["bif", "response"]
    # A second command goes on from the first's rows and replaces those that it measures anew.
    more = options.replace("tiny small", "tiny") + f" --only bif --add {file} --name again"
    monkeypatch.setattr(sys, "argv", [*more.split(), "--out", str(tmp_path)])
    scaling.main()
    (again,) = tmp_path.glob("again-*.json")
    assert len(json.loads(again.read_text())["rows"]) == 8


def test_a_rival_that_takes_too_long_is_stopped():
    with pytest.raises(TooLong, match="did not finish"), time_limit(0.05):
        while True:
            pass
    with time_limit(10):
        pass
