"""The command `bif lds`."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from bif.benchmark import SETTINGS, named_task

TASK = """
    import sys
    sys.path.insert(0, {tests!r})
    from benchmark_cases import convex as task

    def nothing():
        return 3

    def train(start, items, seed):
        return start
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(dedent(TASK).format(tests=str(Path(__file__).parents[1])))
    return path


def test_a_users_own_task_is_judged_and_its_table_printed(call, file, tmp_path):
    out = tmp_path / "out"
    code, said, _ = call(
        "lds", f"{file}:task", "--out", out, "--methods", "gradient_product", "random"
    )
    assert code == 0 and "| gradient_product |" in said and "retrained from checkpoint" in said
    assert {row["method"] for row in json.loads((out / "results.json").read_text())} == {
        "gradient_product",
        "random",
    }
    scores = tmp_path / "scores.npy"
    np.save(scores, np.random.default_rng(0).normal(size=(8, 40)))
    bank = out / "bank-checkpoint"
    code, said, _ = call("lds", "--scores", scores, "--bank", bank, "--sign", "loss")
    assert code == 0 and "| scores.npy |" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "needs a setting and --out"),
        (["digits"], "needs a setting and --out"),
        (["nonsense", "--out", "x"], "no setting 'nonsense'"),
        (["mine:task", "--out", "x"], "of your own by FILE.py:FUNCTION"),
        (
            ["{file}:task", "--out", "x", "--device", "cuda", "--seed", "1"],
            "--device, --seed: these are options of the",
        ),
        (["{file}:train", "--out", "x"], "is called without arguments: missing"),
        (["fashion", "--out", "x"], "pass --data DIR"),
        (["fashion", "--data", "nowhere", "--out", "x"], "no file"),
        (["digits", "--out", "x", "--methods", "magic"], "no methods"),
        (["--scores", "a.npy"], "go together"),
        (["digits", "--scores", "a.npy", "--bank", "b"], "drop one"),
        (["{file}:nothing", "--out", "x"], "must return a bif.benchmark.Task"),
        (["{file}:task", "--out", "x", "--sizes", "5"], "has one"),
    ],
)
def test_bad_input_is_answered_by_a_clear_error(call, file, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    code, _, said = call("lds", *[word.replace("{file}", str(file)) for word in words])
    assert code == 2 and expected in said and "Traceback" not in said
    assert not (tmp_path / "x" / "results.json").exists()


def test_every_setting_has_its_module():
    import importlib

    for name in SETTINGS:
        assert callable(importlib.import_module(f"bif.benchmark.tasks.{name}").task)


class TestSettings:
    def test_digits_and_logistic_regression_need_no_files(self):
        pytest.importorskip("sklearn", reason="the extra `demo` is not installed")
        for name, targets in (("digits", 2), ("logistic", 1)):
            task = named_task(name, None, device="cpu", seed=0, size=60)
            assert task.problem.num_train == 60 and len(task.targets) == targets
            assert not set(task.problem.query_ids) & set(task.problem.train.ids)

    def test_concrete_keeps_reported_and_tuning_queries_apart(self, tmp_path):
        import gzip

        rng = np.random.default_rng(0)
        table = rng.normal(size=(300, 9))
        table[5] = table[17]  # the same mixture twice
        mask = np.zeros((300, 2), dtype=int)
        mask[:30, 0] = 1
        mask[20:50, 1] = 1
        mask[17], mask[5] = (0, 1), (1, 0)
        for name, values in (("data", table), ("test_mask", mask)):
            lines = "\n".join(",".join(map(str, row)) for row in values)
            (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(lines.encode()))
        task = named_task("concrete", tmp_path, device="cpu", seed=0, size=80)
        queries, tuning = set(task.problem.query_ids), set(task.tuning_queries.ids)
        assert not queries & tuning and "row-17" not in tuning
        assert not (queries | tuning) & set(task.problem.train.ids)

    def test_fashion_reads_the_idx_files(self, tmp_path):
        import gzip

        rng = np.random.default_rng(0)
        for part, count in (("train", 64), ("t10k", 2300)):
            images = bytes(16) + rng.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
            labels = bytes(8) + rng.integers(0, 10, count, dtype=np.uint8).tobytes()
            (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
            (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        task = named_task("fashion", tmp_path, device="cpu", seed=0, size=64)
        assert task.problem.num_train == 64 and len(task.tuning_queries) == 200
        with pytest.raises(ValueError, match="fewer than"):
            named_task("fashion", tmp_path, device="cpu", seed=0, size=100)
