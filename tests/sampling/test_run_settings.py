"""Complete settings: nothing is left open, and they can be opened again."""

from __future__ import annotations

from dataclasses import replace

import pytest

import bif
from bif.sampling.engine import Engine
from bif.sampling.settings import RunSettings
from complete_settings import complete
from small_problems import TINY, classification


def test_what_every_run_needs_may_not_be_left_open_and_the_way_out_is_named():
    with pytest.raises(
        ValueError, match=r"got None for \['step_size'\].*reopened\(step_size=None\)"
    ):
        replace(complete(TINY), step_size=None)


def test_reopened_settings_are_as_asked_with_the_changes():
    reopened = complete(TINY).reopened(step_size=None, draws=7)
    assert type(reopened) is bif.Settings
    assert (reopened.step_size, reopened.draws, reopened.gamma) == (None, 7, TINY.gamma)


def test_wishes_are_taken_as_followed():
    asked = replace(TINY, draws=None, reliability=0.9, budget="1m", retrained_from="scratch")
    found = complete(asked)
    assert (found.reliability, found.budget, found.retrained_from) == (None, None, None)


def test_settings_of_a_manifest_are_the_same_again():
    found = bif.calibrate(classification(), TINY).settings
    assert RunSettings.from_dict(found.as_dict()) == found


def test_full_gradients_have_no_mini_batch():
    with pytest.raises(ValueError, match="gradient='full' has no mini-batches"):
        _ = complete(TINY).mini_batch
    assert complete(replace(TINY, gradient="minibatch", batch_size=3)).mini_batch == 3


def test_an_engine_is_not_built_without_the_mass_that_is_asked_for():
    with pytest.raises(ValueError, match="mass='kronecker' was asked for, and None is given"):
        Engine(classification(), complete(replace(TINY, mass="kronecker")))
