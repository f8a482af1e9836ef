"""Draws that a reliability needs and a budget allows: forecasts, refusals, what comes of them."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import time
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import torch

import bif
from bif.calibration import budget
from bif.calibration.budget import Aim, Pace, choose_draws, measure_pace
from bif.runs.block_run import BlockRun
from bif.sampling.choices import Choices
from bif.sampling.oracles import StackedOracle
from bif.sampling.settings import RunSettings
from complete_settings import complete
from small_problems import classification, labelled

OPEN = bif.Settings(
    nbeta=60.0, gamma=20.0, chains=16, block_size=16, burn_in=60, thin=2, step_size=0.1,
    friction=6.0, oracle="stacked", chunk_size=20, gradient="full",
)  # fmt: skip
COMPLETE = complete(OPEN)
PACE = Pace(step=0.01, record=0.02, signal=1e-3, spent=1.0)


@pytest.fixture
def paced(monkeypatch):
    monkeypatch.setattr(budget, "measure_pace", lambda *_, **__: PACE)
    fewer(monkeypatch, share=0.5)


def fewer(monkeypatch, *, share: float) -> None:
    """Half of the chains take this share of the time."""
    found = share * PACE.step, share * PACE.record
    monkeypatch.setattr(budget, "_time_steps", lambda engine, chains, left: found)


def chosen(
    relaxation: float = 4.0,
    *,
    reliability: float | None = None,
    budget: float | str | None = None,
    **given: object,
) -> tuple[RunSettings, str]:
    choices = Choices()
    aim = Aim.of(replace(OPEN, reliability=reliability, budget=budget))
    assert aim is not None
    settings, _ = choose_draws(
        classification(), replace(COMPLETE, **given), aim,
        relaxation=relaxation, choices=choices, started=0.0,
    )  # fmt: skip
    return settings, " ".join(map(str, choices))


@pytest.mark.usefixtures("paced", "clock")
class TestChoice:
    def test_a_reliability_needs_the_draws_of_spearman_and_brown(self):
        settings, said = chosen(reliability=0.9)
        # .9 / .1 = T · signal, and twice that at most
        assert settings.draws == 2 * 9000 / 16 + 1  # rounded up
        assert "draws = at most 1126 of each chain" in said
        assert "needs about 9,000 draws in all" in said and "reliability 0.90" in said
        assert "Forecast: 23 s of sampling" in said  # of 563 draws

    def test_blocks_one_after_another_take_what_is_forecast(self):
        settings, said = chosen(reliability=0.9, chains=32)
        assert settings.draws == ceil(9000 / 32)
        assert "at most" not in said and "ends where" not in said

    def test_a_budget_allows_what_fits_in_its_share(self):
        settings, said = chosen(budget="1m")
        # .8 · 59 s less 60 steps of burn-in, at two steps and a record a draw.
        assert settings.draws == int((0.8 * 59 - 0.6) / 0.04)
        assert "allows 1165 of 16 chains" in said and "Forecast: 47 s of sampling" in said

    def test_budget_and_reliability_give_the_fewer_draws_of_both(self):
        assert chosen(budget=600.0, reliability=0.9)[0].draws == chosen(reliability=0.9)[0].draws
        assert chosen(budget=20.0, reliability=0.9)[0].draws == chosen(budget=20.0)[0].draws

    def test_no_chain_is_shorter_than_fifty_relaxations(self):
        settings, _ = chosen(reliability=0.1, relaxation=40.0)
        assert settings.draws == 50 * 40 / 2

    def test_a_small_budget_takes_fewer_chains_rather_than_short_ones(self):
        settings, said = chosen(budget=6.0, relaxation=6.0)
        assert settings.chains == settings.block_size == 8
        assert settings.draws is not None and settings.draws >= 150
        assert "do not come to an end within the budget" in said

    def test_fewer_chains_are_timed_where_a_device_is_not_full(self, monkeypatch):
        given = {"budget": 10.5, "relaxation": 6.0, "chains": 16}
        monkeypatch.setattr(budget, "MIN_RELAXATIONS", 80)
        half, _ = chosen(**given)
        fewer(monkeypatch, share=0.7)
        longer, _ = chosen(**given)
        assert half.chains == longer.chains == 8
        assert half.draws is not None and longer.draws is not None
        # 80 % of 9.5 s: burn-in of 60 steps, and draws of two steps and a record.
        for draws, share in ((half.draws, 0.5), (longer.draws, 0.7)):
            assert draws == pytest.approx((7.6 / share - 0.6) / 0.04, abs=8)
        fewer(monkeypatch, share=1.0)
        with pytest.raises(ValueError, match=r"too small to converge.*s a step of 8 chains"):
            chosen(**given)

    def test_a_budget_too_small_to_converge_is_refused_with_what_it_would_take(self):
        with pytest.raises(ValueError, match=r"too small to converge.*Give budget='\d+s', raise"):
            chosen(budget=4.0, relaxation=40.0)

    def test_several_blocks_take_their_time_one_after_another(self):
        one, _ = chosen(budget=60.0)
        two, _ = chosen(budget=60.0, chains=32)
        assert one.draws is not None and two.draws is not None
        assert two.chains == 32 and two.draws == pytest.approx(one.draws / 2, rel=0.05)


@pytest.mark.parametrize(
    ("given", "seconds"), [(90, 90.0), ("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2H", 7200.0)]
)
def test_budgets_are_given_in_seconds_minutes_or_hours(given, seconds):
    assert bif.Settings(budget=given).budget == seconds


@pytest.mark.parametrize("given", ["soon", 0, -1.0, "10x", "inf", float("nan"), ""])
def test_what_is_no_budget_is_refused(given):
    with pytest.raises(ValueError, match="expected seconds > 0"):
        bif.Settings(budget=given)


@pytest.mark.parametrize("given", [0.0, 1.0, 1.5, -0.1])
def test_what_is_no_reliability_is_refused(given):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        bif.Settings(reliability=given)


@pytest.mark.parametrize("given", [{"budget": 10.0}, {"reliability": 0.9}])
def test_draws_and_what_would_choose_them_contradict_each_other(given):
    with pytest.raises(ValueError, match="leaves nothing to choose"):
        bif.Settings(draws=100, **given)
    with pytest.raises(ValueError, match="a response's length is steps"):
        bif.respond(classification(), bif.Settings(**given))


@pytest.mark.parametrize(("share", "target", "forecast"), [
    (0.15, None, True), (0.0, None, False), (0.0, 0.5, True),
])  # fmt: skip
def test_a_reliability_that_nobody_aims_at_is_not_measured_for_much_of_a_budget(
    monkeypatch, share, target, forecast
):
    monkeypatch.setattr(budget, "_PILOT_SHARE", share)
    settings = bif.Settings(budget=20.0, reliability=target, mass="identity", weight_decay=1e-2)
    said = " ".join(bif.calibrate(classification(), settings).explanations)
    assert ("s of sampling, reliability" in said) == forecast
    assert ("of reliability none" in said) != forecast


class Clock:
    """A clock that only the work of the oracle moves: so many seconds a gradient or values."""

    GRADIENT, VALUES = 4e-3, 1e-3

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name, seconds in (("gradient", self.GRADIENT), ("values", self.VALUES)):
            own = getattr(StackedOracle, name)

            def work(oracle, *given, own=own, seconds=seconds, **named):
                self.now += seconds
                return own(oracle, *given, **named)

            patch.setattr(StackedOracle, name, work)
        for name in ("perf_counter", "monotonic"):
            patch.setattr(time, name, lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_pilot_measures_a_step_and_a_record(clock):
    pace = measure_pace(
        classification(), COMPLETE, Aim(0.9, None), least=20, started=time.perf_counter()
    )
    assert pace.step == pytest.approx(Clock.GRADIENT)  # brings the train losses along
    assert pace.record == pytest.approx(Clock.VALUES * len(classification().observables))
    assert pace.spent > 0


@pytest.mark.usefixtures("clock")
def test_the_forecast_of_the_pilot_is_near_what_comes():
    run = bif.attribute(classification(), replace(OPEN, reliability=0.95))
    assert run.summary["reliability"] > 0.9
    assert run.manifest["settings"]["reliability"] is None
    assert any("reliability 0.95 needs about" in line for line in run.manifest["explanations"])


def test_a_run_ends_near_its_budget(clock):
    started = clock.now
    run = bif.attribute(classification(), replace(OPEN, budget=3.0))
    assert 0.5 * 3.0 < clock.now - started <= 3.0
    assert run.summary["draws"] > 16 * 100


def test_a_reliability_that_was_not_reached_is_said_with_what_is_missing(monkeypatch):
    monkeypatch.setattr(budget, "measure_pace", lambda *_, **__: replace(PACE, signal=1e9))
    run = bif.attribute(classification(), replace(OPEN, reliability=0.99))
    (said,) = [w for w in run.manifest["warnings"] if "aimed at" in w]
    words = r"below the 0.99 that was aimed at: set draws=(\d+) and reliability=None$"
    found = re.search(words, said)
    assert found is not None
    again = bif.attribute(classification(), replace(OPEN, draws=int(found[1])))
    assert run.summary["reliability"] < 0.99 < again.summary["reliability"]


@pytest.mark.usefixtures("unchecked", "no_page")
class TestGoal:
    def test_a_run_ends_where_its_reliability_is_reached(self, monkeypatch, tmp_path):
        monkeypatch.setattr(budget, "measure_pace", lambda *_, **__: PACE)
        asked = replace(OPEN, reliability=0.99)
        run = bif.attribute(classification(), asked, out=tmp_path)
        draws = run.manifest["settings"]["draws"]
        assert 100 <= draws < 2000  # the pilot's forecast was some 6,000
        assert run.summary["draws"] == 16 * draws and run.summary["complete"]
        assert 0.985 < run.summary["reliability"] < 0.997
        assert "the reliability of 0.99 is reached" in run.manifest["explanations"][-1]
        # It is the run of so many draws, also when it goes on.
        longer = bif.extend(tmp_path, classification(), draws=draws + 10)
        at_once = bif.attribute(classification(), replace(OPEN, draws=draws + 10))
        for a, b in zip(longer.traces.blocks, at_once.traces.blocks, strict=True):
            assert torch.equal(a.train, b.train)

    def test_an_interrupted_run_still_knows_its_goal(self, monkeypatch, tmp_path):
        monkeypatch.setattr(budget, "measure_pace", lambda *_, **__: PACE)
        asked = replace(OPEN, reliability=0.98)
        whole = bif.attribute(classification(), asked)
        stop_after_some_draws(monkeypatch, 60)
        cut = bif.attribute(classification(), asked, out=tmp_path)
        assert not cut.summary["complete"]
        monkeypatch.undo()
        resumed = bif.attribute(classification(), asked, out=tmp_path)
        assert resumed.summary["complete"]
        assert resumed.summary["draws"] <= 1.1 * whole.summary["draws"]
        assert "is reached" in resumed.manifest["explanations"][-1]


def stop_after_some_draws(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Ctrl-C at a draw."""
    record = BlockRun._record

    def recorded(self: BlockRun, position: object) -> None:
        record(self, position)  # type: ignore[arg-type]
        if self.recorder.taken == count:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(BlockRun, "_record", recorded)


@pytest.mark.usefixtures("unchecked", "no_page")
def test_a_run_on_disk_keeps_its_choice_and_can_be_extended(tmp_path):
    settings = replace(OPEN, reliability=0.5)
    run = bif.attribute(classification(), settings, out=tmp_path)
    again = bif.attribute(classification(), settings, out=tmp_path)
    assert again.summary["draws"] == run.summary["draws"]
    draws = run.summary["draws"] // 16
    longer = bif.extend(tmp_path, classification(), draws=draws + 10)
    assert longer.summary["draws"] == 16 * (draws + 10)


def test_the_command_explains_and_writes_what_it_chose(call, file, tmp_path):
    code, said, _ = call(
        "calibrate", f"{file}:problem", "--out", tmp_path / "out", "--reliability", "0.5",
        "--chains", "8",
    )  # fmt: skip
    assert code == 0 and "step_size = " in said and "draws = " in said
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert bif.Settings.from_dict(found["settings"]).chains == 8
    assert found["explanations"][-1].startswith("draws = ")
    refused = call("calibrate", f"{file}:problem", "--out", tmp_path / "x", "--budget", "soon")
    assert refused[0] == 2
    small = ["--budget", "0.001", "--chains", "8"]
    code, said, err = call("calibrate", f"{file}:problem", "--out", tmp_path / "x", *small)
    assert code == 2 and "is too small" in err and "Give budget=" in err
    assert "nbeta = " in said  # as it goes
    assert not (tmp_path / "x").exists()


def test_a_budget_that_cannot_do_is_refused_before_the_pilot_outlasts_it(monkeypatch):
    def never(*_):
        raise AssertionError("the pilot ran")

    monkeypatch.setattr(budget, "short_traces", never)
    with pytest.raises(ValueError, match="too small to converge"):
        given = {"least": 10_000, "started": time.perf_counter()}
        measure_pace(classification(), COMPLETE, Aim(None, 1e-3), **given)


class TestCalibrationItself:
    """What a budget leaves out of calibration on a slow machine."""

    @pytest.fixture
    def slow(self, monkeypatch):
        """A machine on which trajectory and mass would outlast any budget."""
        pilot = importlib.import_module("bif.calibration.pilot")
        monkeypatch.setattr(pilot, "_TRAJECTORY_TIMES", 1e9)
        monkeypatch.setattr(
            importlib.import_module("bif.calibration.calibrate"), "_MASS_TIMES", 1e9
        )

    def explanations(self, budget: float | None, **given: Any) -> tuple[bif.Settings, str]:
        problem = classification(train=labelled(100, seed=1))
        found = bif.calibrate(problem, bif.Settings(budget=budget, **given))
        return found.settings, "\n".join(found.explanations)

    def test_the_trajectory_sees_fewer_items_and_no_mass_is_measured(self, slow):
        settings, said = self.explanations(60.0)
        assert "(16 chains, 64 items)" in said
        assert settings.mass == "identity"
        assert "measuring another would take about" in said
        assert "of a budget of 60 s" in said

    def test_gamma_is_the_same_on_any_machine(self, slow):
        found = [self.explanations(budget, mass="identity")[0] for budget in (60.0, None)]
        assert found[0].gamma == found[1].gamma

    def test_without_a_budget_nothing_is_left_out(self, slow):
        assert "(16 chains, 100 items)" in self.explanations(None)[1]


@pytest.mark.parametrize(("num_ranks", "rounds"), [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_ranks_take_blocks_side_by_side(num_ranks, rounds):
    """4 blocks of 4 chains: a rank has the whole time for as many as it takes one after another."""
    shared = replace(COMPLETE, block_size=4)
    found = budget.affordable(shared, 101.0, replace(PACE, num_ranks=num_ranks), 20)
    draws = int((0.8 * 100.0 / rounds - 60 * 0.01) / (2 * 0.01 + 0.02))
    assert found == (16, draws)
