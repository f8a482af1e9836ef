"""A run against half its step and against the response estimator."""

from __future__ import annotations

from dataclasses import replace

import pytest

import bif
from bif import store
from bif.estimate.response import Ratio
from bif.runs.cross_check import check_on_disk
from bif.runs.gates import cross_gates
from command_line import failed
from exact_problems import quadratic_problem
from small_problems import TINY, classification, labelled

SETTINGS = bif.Settings(
    nbeta=8.0, gamma=4.0, chains=32, draws=60, burn_in=40, thin=6, step_size=0.2, friction=4.0
)


def test_a_healthy_sampler_agrees_with_half_its_step_and_with_the_response():
    problem = quadratic_problem()
    found = bif.cross_check(problem, bif.attribute(problem, SETTINGS))
    for ratio in (found.half_step, found.response):
        assert ratio.standard_error < 0.1
        assert abs(ratio.value - 1) < 5 * ratio.standard_error
    assert not any(gate.failed for gate in cross_gates(found.half_step, found.response))


def test_a_step_that_is_too_large_is_found_by_both():
    problem = quadratic_problem()
    large = replace(SETTINGS, sampler="sgld", friction=None, step_size=0.08, thin=4)
    found = bif.cross_check(problem, bif.attribute(problem, large))
    failed_gates = {g.name for g in cross_gates(found.half_step, found.response) if g.failed}
    assert failed_gates == {"half step", "response"}
    assert found.half_step.value > 1.1 and found.response.value > 1.2


@pytest.mark.parametrize(
    ("half_step", "response", "expected"),
    [
        ((1.05, 0.01), (1.1, 0.01), set()),
        ((1.2, 0.01), (1.1, 0.01), {"half step"}),
        ((1.2, 0.1), (1.5, 0.2), set()),
        ((0.8, 0.01), (0.5, 0.01), {"half step", "response"}),
        ((float("nan"), 0.0), (1.0, float("nan")), {"half step"}),
    ],
)
def test_the_gates_allow_for_errors(half_step, response, expected):
    found = cross_gates(Ratio(*half_step), Ratio(*response))
    assert {gate.name for gate in found if gate.failed} == expected


def test_the_command_adds_its_gates_to_the_run(call, tmp_path, file):
    out = tmp_path / "out"
    bif.attribute(classification(), replace(TINY, draws=30), out=out)
    before = store.read_run(out)
    assert call("check", out, f"{file}:problem")[0] == 0
    after = store.read_run(out)
    added = {g["name"] for g in after["manifest"]["gates"]}
    added -= {g["name"] for g in before["manifest"]["gates"]}
    assert added == {"half step", "response"}
    assert after["summary"]["half_step"] > 0 and "response_slope" in after["summary"]
    assert after["influence"].identical(before["influence"])
    assert bif.load(out).traces.total_draws == bif.load(out).summary["draws"]
    assert call("check", out, f"{file}:problem")[0] == 0  # again: they are replaced
    names = [g["name"] for g in store.read_run(out)["manifest"]["gates"]]
    assert len(names) == len(set(names))


def test_a_run_of_another_problem_is_refused(call, tmp_path, file):
    out = tmp_path / "out"
    bif.attribute(classification(), TINY, out=out)
    before = (out / "run.json").read_bytes()
    assert "another problem" in failed(call("check", out, f"{file}:other"))
    assert "holds no run" in failed(call("check", tmp_path / "nowhere", f"{file}:problem"))
    assert (out / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "keep", "message"),
    [({}, "sums", "keeps sums"), ({"sampler": "sgnht"}, "traces", "whose step adapts")],
)
def test_what_cannot_be_cross_checked_is_refused(tmp_path, given, keep, message):
    bif.attribute(classification(), replace(TINY, **given), out=tmp_path, keep=keep)
    with pytest.raises(ValueError, match=message):
        check_on_disk(tmp_path, classification())


def test_another_set_of_train_items_is_refused():
    run = bif.attribute(classification(), TINY)
    with pytest.raises(ValueError, match="other train items"):
        bif.cross_check(classification(train=labelled(21, seed=1)), run)
