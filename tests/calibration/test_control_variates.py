"""Which gradients: all items as long as the budget allows it, then control variates."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
import torch

import bif
from bif.calibration import budget, control_variates
from bif.calibration.budget import Pace, TooSmallBudget
from bif.sampling.engine import Engine
from small_problems import classification, labelled

GIVEN: dict[str, Any] = {
    "nbeta": 400.0, "gamma": 4000.0, "chains": 16, "oracle": "stacked", "mass": "identity",
}  # fmt: skip
FULL = 0.5
"""Seconds of a step with full gradients."""


@pytest.fixture
def slow(monkeypatch):
    """Mini-batches cost their share of the items, and control variates twice that."""

    def pace(problem: bif.Problem, settings: bif.Settings, *_: Any, **__: Any) -> Pace:
        share = 1.0 if settings.gradient == "full" else 2 * settings.batch_size / 400  # type: ignore[operator]
        return Pace(step=FULL * share, record=0.01, signal=1e-3, spent=1.0)

    monkeypatch.setattr(budget, "measure_pace", pace)
    # How busy this machine is must not play a part.
    monkeypatch.setattr(
        importlib.import_module("bif.calibration.pilot"), "seconds_of_gradient", lambda *_: 1e-4
    )


@cache
def problem() -> bif.Problem:
    """One for all, for which a mass is measured once."""
    return classification(train=labelled(400, seed=1))


def calibrated(seconds: float, **given: Any) -> tuple[bif.Settings, list[str]]:
    found = bif.calibrate(problem(), bif.Settings(budget=seconds, **{**GIVEN, **given}))
    return found.settings, list(found.explanations)


@cache
def needed() -> float:
    """Seconds that full gradients need, by the pace of `slow`."""
    with pytest.raises(TooSmallBudget) as refused:
        calibrated(2.0, gradient="full")
    return refused.value.needed


@pytest.mark.usefixtures("slow")
class TestChoice:
    def test_gradients_are_of_all_items_where_the_budget_allows_it(self):
        settings, said = calibrated(3 * needed())
        assert settings.gradient == "full" and settings.batch_size is None
        assert any(line.startswith("gradient = full: the losses") for line in said)

    def test_control_variates_where_it_does_not(self):
        settings, said = calibrated(needed() / 2)
        assert settings.gradient == "control_variate" and settings.batch_size is not None
        assert 32 <= settings.batch_size <= 100
        # A choice has one line, and that of full gradients is gone.
        for name in ("gradient", "batch_size", "step_size", "friction", "burn_in", "thin"):
            assert sum(line.startswith(f"{name} = ") for line in said) == 1
        assert any("gradient = control_variate: with full gradients" in line for line in said)
        assert any("gradient noise widens the draws by" in line for line in said)

    def test_a_larger_budget_gets_a_batch_no_smaller(self):
        whole = needed()
        sizes = [calibrated(share * whole)[0].batch_size or 0 for share in (0.4, 0.8)]
        assert sizes == sorted(sizes)

    def test_what_the_user_says_stays(self):
        for given in ({"gradient": "full"}, {"gradient": "minibatch", "batch_size": 390}):
            with pytest.raises(TooSmallBudget, match="too small to converge"):
                calibrated(needed() / 4, **given)
        settings, _ = calibrated(needed() / 2, thin=2)
        assert settings.gradient == "control_variate" and settings.thin == 2

    def test_a_budget_too_small_for_either_is_refused_with_what_full_gradients_take(self):
        with pytest.raises(TooSmallBudget, match=r"Give budget='\d+s'") as refused:
            calibrated(2.0)
        assert refused.value.needed == pytest.approx(needed())

    def test_noise_that_would_widen_the_draws_is_refused_with_the_figure(self, monkeypatch):
        monkeypatch.setattr(control_variates, "heat", lambda *_: 0.8)
        with pytest.raises(TooSmallBudget, match=r"would fit, but their noise .* by 80%"):
            calibrated(needed() / 2)

    def test_chains_that_run_off_are_refused_for_that(self, monkeypatch):
        def nowhere(engine: Engine) -> dict[str, torch.Tensor]:
            center = engine.posterior.center
            return {n: torch.full((1, *x.shape), torch.nan).to(x) for n, x in center.items()}

        monkeypatch.setattr(control_variates, "_one_burn_in_away", nowhere)
        with pytest.raises(TooSmallBudget, match=r"would fit, but their chains run off"):
            calibrated(needed() / 2)

    def test_a_mass_that_is_given_is_for_full_gradients(self):
        with pytest.raises(TooSmallBudget) as refused:
            calibrated(2.0, mass="kronecker")
        half = refused.value.needed / 2
        with pytest.raises(TooSmallBudget) as refused:
            calibrated(half, mass="kronecker")
        assert "Control variates" not in str(refused.value)


def test_without_a_budget_gradients_are_of_all_items():
    assert bif.calibrate(problem(), bif.Settings(**GIVEN)).settings.gradient == "full"


@pytest.mark.usefixtures("slow")
def test_a_run_by_control_variates_passes_the_gate_of_gradient_noise():
    settings, _ = calibrated(needed() / 2)
    run = bif.attribute(problem(), settings)
    gates = {gate["name"]: gate for gate in run.manifest["gates"]}
    assert not gates["gradient noise"]["failed"] and not gates["temperature"]["failed"]
    assert 0 < gates["gradient noise"]["value"] < gates["gradient noise"]["limit"]
