"""The figures of the study of predicted test loss, on made-up cases and on a tiny run."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from benchmarks import generalisation as study


def made_case(seed: int, truth: float, told: float) -> dict:
    return {
        "seed": seed, "temperature": 1.0, "trusted": seed == 0, "rivals": {"train loss": 1.0},
        "truth": {"center": truth}, "loss": {"center": {"first": told}},
    }  # fmt: skip


def test_predictions_are_judged_by_distance_and_by_order_within_a_seed():
    cases = [made_case(0, 1.0, 1.2), made_case(0, 2.0, 2.2), made_case(1, 3.0, 3.5),
             made_case(1, 2.0, 2.5)]  # fmt: skip
    rows = {row["by"]: row for row in study.summary(cases)}
    first = rows["first"]
    assert first["off"] == pytest.approx(0.35) and first["rank_correlation"] == pytest.approx(1)
    assert first["relative"] == pytest.approx(np.mean([0.2, 0.1, 0.5 / 3, 0.25]))
    assert first["trusted"] == "2 of 4" and (first["networks"], first["seeds"]) == (4, 2)
    assert first["off_low"] < 0.35 < first["off_high"]
    assert rows["train loss"]["off"] == pytest.approx(-1.0)


@pytest.mark.slow
def test_a_network_is_predicted_at_every_temperature():
    x = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    rows = x, x[:, :10].argmax(dim=1)
    plan = argparse.Namespace(chains=8, draws=20, steps=50)
    network = study.Network(40, 1e-2)
    cases = study.case(study.SETTINGS["digits"], network, rows, rows, 0, [1.0, "default"], plan)
    assert [case["temperature"] for case in cases] == [1.0, "default"]
    assert {row["by"] for row in study.summary(cases)} >= {"held-out tenth", "first", "importance"}
