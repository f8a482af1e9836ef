"""The files in `examples/` run as their first line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import caller

EXAMPLES = Path(__file__).parents[1] / "examples"


def lines_of_code(file: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def test_a_model_of_ones_own_is_benchmarked(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
    file = EXAMPLES / "benchmark_my_model.py"
    # As many as its docs promise, and a few for imports.
    assert lines_of_code(file) <= 28
    call = caller(monkeypatch, capsys)
    code, said, _ = call(
        "lds", f"{file}:task", "--out", tmp_path, "--methods", "random", "gradient_product", "bif"
    )
    assert code == 0 and "retrained from scratch" in said
    by = {row["method"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert by["bif"]["lds"] > 0.2 > by["random"]["lds"]
    assert by["bif"]["num_seeds"] == 2 and by["bif"]["ceiling"] <= 1
