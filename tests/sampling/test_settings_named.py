"""Settings that are misspelt, no settings at all, or name a device that is not there."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import bif
from bif.calibration.memory_plan import plan
from small_problems import classification

WRONG: Any = {"chains": 4}


def test_a_misspelt_setting_is_refused_with_the_nearest_one():
    wrong: Any = {"nchains": 4, "zzz": 1}
    with pytest.raises(TypeError, match=r"no 'nchains' \(did you mean 'chains'\?\), 'zzz': help"):
        bif.Settings(**wrong)
    with pytest.raises(ValueError, match=r"'nchains' \(did you mean 'chains'\?\): of another"):
        bif.Settings.from_dict({"nchains": 4})


def test_the_signature_of_settings_still_lists_them():
    assert {"chains", "budget"} <= set(inspect.signature(bif.Settings).parameters)
    assert bif.Settings("sgld", chains=3).sampler == "sgld"


def along_training(problem: bif.Problem, settings: bif.Settings) -> bif.Trajectory:
    weights = problem.model.state_dict()
    return bif.trajectory(
        problem, bif.CheckpointSeries.from_weights({0: weights, 1: weights}), settings
    )


@pytest.mark.parametrize(
    "call", [bif.attribute, bif.calibrate, bif.respond, plan, along_training],
    ids=lambda call: call.__name__,
)  # fmt: skip
def test_a_dict_in_the_place_of_settings_is_refused_with_what_to_write(call):
    with pytest.raises(
        TypeError,
        match=r"settings are a dict, expected bif.Settings: write bif\.Settings\(\*\*{'chains': 4}",
    ):
        call(classification(), WRONG)


def test_a_device_that_is_not_there_is_refused_before_a_folder_is_made(tmp_path):
    missing = f"cuda:{torch.cuda.device_count() + 7}"
    with pytest.raises(ValueError, match=f"device='{missing}' cannot be used here: torch sees"):
        bif.attribute(classification(), bif.Settings(device=missing), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_device_is_refused_at_once():
    with pytest.raises(ValueError, match="device is 'cudda', which torch does not know"):
        bif.Settings(device="cudda")
