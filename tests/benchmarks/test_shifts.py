"""`benchmarks.shifts`: its scores on changes with a known answer, and a study of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pages import shifts
from benchmarks.shifts.__main__ import options, run
from benchmarks.shifts.score import Truth, one_network, radii, scores
from benchmarks.shifts.truth import weights

SHAPE = GROUPS, SIZES, SEEDS, QUERIES = 10, 2, 5, 400
"""Of changes; the standard error of a sum over so many is below 2 % of it."""


def noisy(spread: float, seed: int = 0) -> tuple[np.ndarray, Truth]:
    """Return changes of variance 1, and what networks of five seeds show of them."""
    source = np.random.default_rng(seed)
    true = source.standard_normal((GROUPS, SIZES, QUERIES))
    noise = spread * source.standard_normal(SHAPE)
    return true, Truth(true[:, :, None] + noise, None)


def curve(truth: Truth, told: np.ndarray, number: int = 2) -> list[dict]:
    return scores(truth, {"told": told}, [-0.1, 0.1], (), number=number, seed=0)["curves"]


def test_the_noise_of_seeds_is_taken_out_of_errors_and_changes():
    true, truth = noisy(spread=1.0)
    told = true + 0.5 * np.random.default_rng(1).standard_normal(true.shape)
    for row in curve(truth, told):
        # errors of variance .25 and changes of variance 1, 4,000 of each, with noise of variance .2
        assert row["r2"] == pytest.approx(0.75, abs=5 * (2 * (0.45**2 + 0.25**2) / 4000) ** 0.5)
        assert row["noise_share"] == pytest.approx(0.2 / 1.2, abs=0.03)
    raw = 1 - ((told - truth.changes.mean(axis=2)) ** 2).sum() / (truth.changes.mean(2) ** 2).sum()
    assert raw < 0.66  # as it would be with the noise


def test_no_change_has_no_r2_and_the_truth_has_one():
    true, truth = noisy(spread=0.3)
    nothing = curve(truth, np.zeros_like(true))
    assert all(abs(row["r2"]) < 1e-12 and row["slope"] is None for row in nothing)
    exact = curve(truth, true)
    assert all(abs(row["r2"] - 1) < 0.01 and abs(row["slope"] - 1) < 0.02 for row in exact)


def test_r2_is_without_refitting():
    true, truth = noisy(spread=0.0)
    for row in curve(truth, 2 * true):
        assert row["r2"] == pytest.approx(0, abs=1e-12) and row["slope"] == pytest.approx(0.5)


def test_intervals_hold_the_value_and_the_truth():
    true, truth = noisy(spread=0.5)
    told = true + 0.5 * np.random.default_rng(2).standard_normal(true.shape)
    for row in curve(truth, told, number=100):
        assert row["r2_low"] < row["r2"] < row["r2_high"]
        assert row["r2_low"] < 0.75 < row["r2_high"]
        assert row["r2_high"] - row["r2_low"] < 0.2


def test_a_single_seed_has_no_noise_to_take_out():
    true = noisy(spread=0.0)[0]
    rows = curve(Truth(true[:, :, None], None), 0.5 * true)
    assert all(row["r2"] == pytest.approx(0.75) and row["noise_share"] == 0 for row in rows)


def test_means_of_groups_of_queries_are_scored_as_one_each():
    true = np.zeros((1, 2, 4))
    true[..., :2], true[..., 2:] = [1.0, 3.0], [-1.0, -3.0]
    truth = Truth(true[:, :, None], np.array(["a", "a", "b", "b"]))
    told = np.full_like(true, 1.0)
    # means are 2 and -2, and 1 is told of both: errors 1 and 9 over changes 4 and 4
    assert curve(truth, told)[0]["r2"] == pytest.approx(1 - 10 / 8)


def test_one_network_predicts_the_mean_of_others_as_far_as_seeds_agree():
    truth = noisy(spread=0.5)[1]
    assert one_network(truth) == pytest.approx([0.75, 0.75], abs=0.03)


def test_differences_are_paired_and_have_intervals():
    true, truth = noisy(spread=0.3)
    told = {"better": 0.9 * true, "worse": 0.5 * true}
    rows = scores(truth, told, [-0.1, 0.1], [("better", "worse")], number=50, seed=0)["differences"]
    for row in rows:
        assert row["difference"] == pytest.approx(0.25 - 0.01, abs=0.03)
        assert 0.2 < row["difference_low"] < row["difference_high"] < 0.3


@pytest.mark.parametrize(
    ("squares", "expected"),
    [
        ([0.5, 0.95, 0.95, 0.95], (0.1, 1.0)),
        ([0.95, 0.8, 0.95, 0.5], (0.0, 0.1)),
        ([0.9, 0.9, 0.89, 0.99], (1.0, 0.0)),
        ([np.nan, 0.9, 0.9, 0.9], (0.1, 1.0)),
    ],
)
def test_a_radius_ends_before_the_first_size_that_is_not_good(squares, expected):
    assert radii(np.array(squares), [-1.0, -0.1, 0.1, 1.0]) == expected


def test_weights_keep_their_sum_and_remove_or_add_a_group():
    groups = np.array(["a", "a", "b", "c"])
    found = weights(groups, ["a", "b"], [-1.0, 1.0], added=False)
    assert np.allclose(found.sum(axis=1), 4)
    assert np.allclose(found[:3], [[1, 1, 1, 1], [0, 0, 2, 2], [8 / 6, 8 / 6, 4 / 6, 4 / 6]])
    added = weights(groups, ["c"], [0.5], added=True)
    assert np.allclose(added, [[4 / 3, 4 / 3, 4 / 3, 0], [8 / 7, 8 / 7, 8 / 7, 4 / 7]])


@pytest.mark.slow
def test_a_study_of_digits_writes_what_the_pages_show(tmp_path: Path, monkeypatch):
    asked = options().parse_args(["digits", "--tiny", "--out", str(tmp_path)])
    monkeypatch.setattr("benchmarks.shifts.study._RESAMPLES", 5)
    run(asked)
    (file,) = tmp_path.glob("shifts-digits-*.json")
    found = json.loads(file.read_text())
    assert {"rows", "curves", "differences", "tried", "change", "one_network"} <= found.keys()
    assert {row["part"] for row in found["rows"]} == {"groups", "outside"}
    assert {row["target"] for row in found["curves"]} == {"scratch", "checkpoint"}
    newest = {"shifts-digits": found}
    monkeypatch.setattr(shifts, "newest_run", newest.get)
    for lines in (shifts.radii(), shifts.second_order(), shifts.outside()):
        assert sum(line.startswith("| ") for line in lines) >= 6
    assert shifts.figure().axes
