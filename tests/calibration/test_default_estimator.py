"""The estimator that a run has where nothing was said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import bif
from bif.calibration.default_estimator import (
    Forecast,
    LinearPart,
    default_estimator,
    settled_estimator,
)
from bif.calibration.solving import calibrate_solver
from bif.runs import attribute as module
from bif.runs.estimator_forecast import forecast_from_gradients, pilot_with_anchors
from bif.runs.planned_run import plan_run
from small_problems import classification, filled, integers, normal


class NumpyModel(nn.Module):
    """A network that leaves torch on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide_network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.inner(x)
        return values + torch.from_numpy(values.detach().cpu().numpy() * 0)


def wide_network() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 8000), nn.Tanh(), nn.Linear(8000, 3)), scale=0.02)


def wide(model: nn.Module | None = None) -> bif.Problem:
    """64,003 weights, 8 items, 3 queries."""
    return bif.Problem(
        model or wide_network(), bif.losses.cross_entropy,
        train=(normal(8, 4, seed=1), integers(3, 8, seed=2)),
        queries=(normal(3, 4, seed=3), integers(3, 3, seed=4)),
    )  # fmt: skip


CHAINS = bif.Settings(draws=4)


@pytest.mark.usefixtures("no_page")
def test_many_weights_are_solved_for_and_the_run_says_so(tmp_path: Path):
    run = bif.attribute(wide(), out=tmp_path / "run")
    assert run.manifest.settings["estimator"] == "response"
    (line,) = [x for x in run.manifest.explanations if x.startswith("estimator = ")]
    assert line.startswith("estimator = response: to solve for 3 query columns by ")
    assert "draws see few directions of so many weights; say estimator='covariance'" in line
    assert run.manifest.identity["settings"].get("estimator") is None
    again = bif.attribute(wide(), out=tmp_path / "run")
    assert again.summary["estimator"] == "response"


@pytest.mark.parametrize(
    "settings",
    [
        CHAINS, bif.Settings(budget=60), bif.Settings(controls=True), bif.Settings(sampler="sgld"),
        bif.Settings(estimator="covariance"),
    ],
)  # fmt: skip
def test_what_speaks_of_chains_is_sampled_without_a_forecast(settings: bif.Settings):
    assert settled_estimator(wide(), settings) == "covariance"
    assert settled_estimator(wide(), bif.Settings(gamma=1.0, seed=3)) is None


def test_a_setting_of_the_solver_or_a_path_asks_for_a_solve():
    assert bif.Settings(solver_residual=0.01).estimator == "response"
    assert bif.Settings(self_influence=True).estimator == "response"
    small = classification()
    run = bif.attribute(small.with_path([small.model]))
    assert run.summary["estimator"] == "response"
    with pytest.raises(ValueError, match="solver_items has no use with estimator=None"):
        bif.Settings(solver_items=20, draws=5)


def test_what_a_solve_cannot_take_is_sampled(brief_pilot):
    planned = plan_run(wide(NumpyModel()), bif.Settings(step_size=0.01))
    assert planned.solver is None and planned.chains is not None
    choice = planned.chains.choices[0]
    assert (choice.name, choice.value) == ("estimator", "covariance")
    assert choice.reason.startswith("the linear part cannot be solved for: ")


@pytest.mark.parametrize(
    ("begun", "expected"),
    [(None, "run_attribution"), ("covariance", "run_attribution"), ("response", "run_solver")],
)
def test_a_run_goes_on_by_the_estimator_that_it_was_begun_with(begun, expected, monkeypatch):
    """By that of an earlier version, which chose otherwise, and without a forecast."""
    called = spied(monkeypatch)
    folder: Any = SimpleNamespace(manifest={"settings": {"estimator": begun}})
    module._carry_out(
        wide(), bif.Settings(), folder=folder, keep="traces", top=None, show_progress=False
    )
    assert called == [expected]


@pytest.mark.parametrize("kept", [{"keep": "sums", "top": None}, {"keep": "traces", "top": 5}])
def test_what_is_kept_of_draws_asks_for_them(kept, monkeypatch):
    called = spied(monkeypatch)
    module._carry_out(wide(), bif.Settings(), **kept, show_progress=False)
    assert called == ["run_attribution"]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is called in place of a forecast and of runs."""
    called: list[str] = []
    for name in ("plan_run", "run_solver", "run_attribution"):
        monkeypatch.setattr(module, name, lambda *a, name=name, **k: called.append(name))
    return called


# --- The crossover, by costs that are given -----------------------------------------------------

CHEAP = Forecast(queries=100, steps=10, product=0.001, draws=4000, draw=0.002)
"""Solving takes 1 s, sampling 8 s."""
DEAR = Forecast(queries=1000, steps=10, product=0.001, draws=4000, draw=0.002)
"""Solving takes 10 s, sampling 8 s."""


def part(missed: float, *, worth: float) -> LinearPart:
    return LinearPart(missed=missed, noise=0.1, variance_left=0.05, worth=worth)


@pytest.mark.parametrize(
    ("forecast", "found", "expected"),
    [
        (CHEAP, None, "response"),
        (DEAR, None, "covariance"),
        (CHEAP, part(0.1, worth=1.0), "response"),
        (CHEAP, part(0.1, worth=100.0), "response"),
        (DEAR, part(0.0, worth=100.0), "covariance"),
        (CHEAP, part(0.11, worth=4.0), "anchored"),
        (CHEAP, part(0.11, worth=3.9), "covariance"),
    ],
)
def test_each_side_of_the_crossover_is_chosen(forecast, found, expected):
    assert default_estimator(forecast, found).value == expected


def test_anchors_are_solved_for_where_that_takes_less_than_they_save():
    """At a worth of 4 they save three quarters of 8 s."""
    for queries, expected in ((599, "anchored"), (601, "covariance")):
        forecast = Forecast(queries=queries, steps=10, product=0.001, draws=4000, draw=0.002)
        assert default_estimator(forecast, part(0.5, worth=4.0)).value == expected


def test_the_reason_has_both_sides_in_seconds_and_what_was_measured():
    choice = default_estimator(CHEAP, part(0.3, worth=20.0))
    assert str(choice) == (
        "estimator = anchored: to solve for 100 query columns by 10 products of 0.001 s takes 1 s, "
        "and 4,000 draws of 0.002 s, for a reliability of 0.9, take 8 s; a solve misses 0.3 of the "
        "scores, which takes draws, and with anchors, which leave 0.05 of the variance, one is "
        "worth 20; say estimator='covariance' for the other"
    )
    reason = default_estimator(CHEAP, part(0.05, worth=20.0)).reason
    assert "the solve alone is as good: it misses 0.05 of the scores, where a run's" in reason
    assert "; draws serve all queries; " in default_estimator(DEAR, None).reason


# --- What a pilot measures ----------------------------------------------------------------------


def at(nbeta: float) -> bif.Settings:
    """A posterior of `classification` at a damping at which it is narrow where nbeta is large."""
    return bif.Settings(nbeta=nbeta, gamma=0.3 * nbeta)


def test_a_pilot_tells_how_far_a_solve_goes():
    """A colder posterior is closer to linear; costs are of the machine and are not compared.

    Where it is coldest the Gauss-Newton matrix still misses what the Hessian of losses off their
    minimum has beside it.
    """
    missed, left, worth = [], [], []
    for nbeta in (20.0, 2000.0):
        asked = replace(at(nbeta), mass="identity")
        settings = bif.calibrate(classification(), asked).settings
        forecast, found = pilot_with_anchors(classification(), settings)
        assert forecast.queries == 2 * 5
        assert 1 <= forecast.steps <= 43
        assert forecast.product > 0 and forecast.draw > 0 and forecast.draws > 0
        missed.append(found.missed)
        left.append(found.variance_left)
        worth.append(found.worth)
    assert missed[1] < 0.2 < 0.25 < missed[0]
    assert left[1] < 0.1 < 0.2 < left[0]
    assert worth[1] > 6 > 4 > worth[0]


def test_a_pilot_of_an_observable_that_is_linear_misses_what_the_solver_leaves():
    weight = bif.Observable("output", lambda model, batch: model(batch[0])[:, 0])
    problem = bif.Problem(
        filled(nn.Linear(4, 1), scale=0.1), bif.losses.squared_error, observables=[weight],
        train=(normal(40, 4, seed=1), normal(40, 1, seed=2)),
        queries=(normal(9, 4, seed=3), normal(9, 1, seed=4)),
    )  # fmt: skip
    settings = bif.calibrate(problem, at(400.0)).settings
    _, found = pilot_with_anchors(problem, settings)
    assert found.missed < 0.1
    assert found.variance_left < 0.01
    assert found.worth > 50


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, unchecked, no_page):
    """Runs of few draws, for which no mass is measured."""
    monkeypatch.setattr("bif.calibration.calibrate.DEFAULT_DRAWS", 8)
    monkeypatch.setattr("bif.calibration.calibrate.whitened_curvature", lambda *_: math.inf)


@pytest.fixture
def brief_pilot(monkeypatch: pytest.MonkeyPatch):
    """Pilots of few steps, where what they find is not looked at."""
    monkeypatch.setattr("bif.calibration.short_trajectory.STEPS", 3)
    for name in ("_POWER_ITERATIONS", "CENTER_ITERATIONS"):
        monkeypatch.setattr(f"bif.calibration.pilot.{name}", 2)


def chosen(monkeypatch: pytest.MonkeyPatch, name: str, forecast: Forecast, part: LinearPart | None):
    found = forecast if part is None else (forecast, part)
    monkeypatch.setattr(f"bif.runs.planned_run.{name}", lambda *a: found)


@pytest.mark.parametrize(
    ("forecast", "found", "estimator"),
    [
        (CHEAP, part(0.05, worth=9.0), "response"),
        (CHEAP, part(0.5, worth=9.0), "anchored"),
        (CHEAP, part(0.5, worth=2.0), None),
        (DEAR, part(0.5, worth=9.0), None),
    ],
)
def test_few_weights_have_what_a_pilot_says(
    forecast, found, estimator, short, monkeypatch, tmp_path
):
    chosen(monkeypatch, "pilot_with_anchors", forecast, found)
    problem, settings = classification(), at(2000.0)
    run = bif.attribute(problem, settings, out=tmp_path / "run")
    assert run.manifest.settings.get("estimator") == estimator
    assert run.manifest.settings["nbeta"] == 2000.0
    assert run.manifest.identity["settings"].get("estimator") is None
    lines = [x for x in run.manifest.explanations if x.startswith("estimator = ")]
    assert lines == [str(default_estimator(forecast, found))]
    again = bif.attribute(problem, settings, out=tmp_path / "run")
    assert again.influence.dataset["influence"].equals(run.influence.dataset["influence"])
    asked = bif.Settings(**{**settings.as_dict(), "estimator": estimator or "covariance"})
    expected = bif.attribute(problem, asked).influence.dataset["influence"]
    assert expected.equals(run.influence.dataset["influence"])


def test_many_weights_are_forecast_from_curvature_and_alignment(monkeypatch):
    """On a clock that says 2 s for a product and 3 s for a gradient of all 8 items."""
    monkeypatch.setattr("bif.runs.estimator_forecast.seconds_of_product", lambda *_: 2.0)
    monkeypatch.setattr("bif.runs.estimator_forecast.seconds_of_gradient", lambda *_: 3.0)
    monkeypatch.setattr("bif.calibration.pilot.Probe.draws_for_half", lambda *_: 10.0)
    monkeypatch.setattr("bif.calibration.pilot.Probe.largest", lambda *_: 24.0)
    found = calibrate_solver(wide(), bif.Settings(estimator="response", nbeta=8.0, gamma=8.0))
    forecast = forecast_from_gradients(wide(), found)
    root = 5.0  # sqrt(1 + 24 / 1)
    assert forecast.steps == pytest.approx(0.5 * root * math.log(2 / 0.05))
    assert (forecast.queries, forecast.product, forecast.draw) == (3, 2.0, root * 3.0)
    assert forecast.draws == pytest.approx(5 * 9 * 10)  # 5 times those for a reliability of .9


def test_many_weights_are_sampled_where_draws_cost_less(brief_pilot, monkeypatch):
    chosen(monkeypatch, "forecast_from_gradients", DEAR, None)
    planned = plan_run(wide(), bif.Settings(gamma=1.0, step_size=0.01))
    assert planned.solver is None and planned.chains is not None
    assert planned.chains.choices[0].value == "covariance"


def test_a_pilot_that_fails_leaves_draws_alone(short, monkeypatch):
    def fails(*_):
        raise ValueError("negative curvature")

    monkeypatch.setattr("bif.runs.planned_run.pilot_with_anchors", fails)
    planned = plan_run(classification(), at(20.0))
    assert planned.chains is not None
    assert planned.chains.choices[0].reason == "a pilot with anchors ended: negative curvature"


def test_a_run_with_anchors_by_forecast_is_extended_with_them(short, monkeypatch, tmp_path):
    chosen(monkeypatch, "pilot_with_anchors", CHEAP, part(0.5, worth=9.0))
    bif.attribute(classification(), at(2000.0), out=tmp_path / "run")
    more = bif.extend(tmp_path / "run", classification(), draws=12)
    assert more.influence.dataset.attrs["estimator"] == "anchored"
    assert more.summary.draws == 12 * 64


@pytest.mark.usefixtures("no_page")
def test_a_run_that_was_solved_by_default_is_extended_as_a_solved_one(tmp_path: Path):
    run = bif.attribute(wide(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="was solved .* and cannot be cross-checked"):
        bif.cross_check(wide(), run)
    with pytest.raises(ValueError, match="was solved .* and cannot be extended by draws"):
        bif.extend(tmp_path / "run", wide(), draws=9)
    more = wide().extended(queries={"more": (normal(2, 4, seed=5), integers(3, 2, seed=6))})
    bif.extend(tmp_path / "run", more)
    found = bif.extend(tmp_path / "run", more, solver_steps=30)
    asked = bif.Settings(estimator="response", solver_steps=30)
    expected = bif.attribute(more, asked, out=tmp_path / "other")
    assert found.influence.dataset["influence"].equals(expected.influence.dataset["influence"])
    assert bif.attribute(more, asked, out=tmp_path / "run").summary["solver_steps"] == 30
