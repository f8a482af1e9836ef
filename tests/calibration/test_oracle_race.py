"""Chains one by one are taken where they are clearly faster, and only then."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

import bif
from bif import Settings
from bif.calibration.oracle_race import seconds_of_gradient
from bif.sampling.choices import Choices
from small_problems import classification

# the package has a function of that name
calibrate = importlib.import_module("bif.calibration.calibrate")


def chosen(monkeypatch, *, alone: float, free: Settings | None = None) -> tuple[Settings, list]:
    """Return what is chosen where a stack takes a second, and the choices' lines."""
    free = free or Settings(gradient="full")
    problem = classification()
    stacked = calibrate._choose_oracle(problem, free, Choices())
    stacked = calibrate._choose_chunk(problem, stacked, Choices())
    seconds = {"stacked": 1.0, "sequential": alone}
    monkeypatch.setattr(calibrate, "seconds_of_gradient", lambda problem, s: seconds[s.oracle])
    choices = Choices()
    found = calibrate._faster_oracle(problem, free, stacked, choices)
    return found, list(map(str, choices))


def test_a_clearly_faster_chain_by_chain_is_taken_with_as_many_chains(monkeypatch):
    found, said = chosen(monkeypatch, alone=0.6)
    assert (found.oracle, found.chains, found.block_size) == ("sequential", 64, 64)
    assert "0.6 s one after another, 1 s stacked" in said[0]


@pytest.mark.parametrize("alone", [0.8, 3.0])
def test_what_may_be_chance_changes_nothing(monkeypatch, alone):
    found, said = chosen(monkeypatch, alone=alone)
    assert found.oracle == "stacked" and not said


@pytest.mark.parametrize(
    "free", [Settings(gradient="minibatch"), Settings(gradient="full", compiled=True)]
)
def test_mini_batches_and_compiled_chains_are_not_timed(monkeypatch, free):
    found, said = chosen(monkeypatch, alone=0.1, free=free)
    assert found.oracle == "stacked" and not said


@pytest.mark.parametrize("oracle", ["stacked", "sequential"])
def test_a_gradient_takes_some_seconds(oracle):
    problem = classification()
    free = Settings(oracle=oracle, gradient="full")
    settings = calibrate._choose_chunk(
        problem, calibrate._choose_oracle(problem, free, Choices()), Choices()
    )
    assert seconds_of_gradient(problem, settings) > 0


def test_both_oracles_give_the_same_run():
    """So that a choice by time changes no result beyond rounding."""
    settings = Settings(
        nbeta=20.0, gamma=20.0, chains=4, draws=10, burn_in=2, thin=1, step_size=0.02,
        friction=1.0, block_size=4, seed=3,
    )  # fmt: skip
    runs = [
        bif.attribute(classification(), replace(settings, oracle=oracle))
        for oracle in ("stacked", "sequential")
    ]
    a, b = (run.influence.dataset["influence"].values for run in runs)
    assert abs(a - b).max() < 1e-9 * abs(a).max()
