"""The page of a run whose linear part was solved for."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import bif
from bif.report import render_report
from bif.report.queries import _beyond_linear
from bif.report.source import read_source
from small_problems import TINY, classification

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(classification(), replace(TINY, estimator="anchored"))


def page(run: bif.Run) -> str:
    return run._report(dict(run.summary))


def sentence(run: bif.Run, *, correction: float, trusted: bool = True) -> str:
    """Of one query whose scores are `correction` errors from their linear parts."""
    dataset = run.influence.dataset.copy(deep=True).assign_attrs(trusted=int(trusted))
    dataset["standard_error"][:] = 1.0
    dataset["influence"] = dataset["linear"] + correction
    return _beyond_linear(read_source(dataset), 0, 0)


def test_each_item_shows_its_linear_and_its_sampled_part(run):
    shown = page(run)
    assert shown.count("<span>linear ") == shown.count("<span>sampled ") > 0


def test_the_bar_parts_a_score_into_its_linear_and_its_sampled_part(run):
    dataset = run.influence.dataset.copy(deep=True).assign_attrs(trusted=1)
    dataset["standard_error"][:] = 0.0
    dataset["influence"][:] = 0.0
    dataset["linear"][:] = 0.0
    dataset["influence"][0, 0, :3] = -np.array([4.0, 2.0, 1.0])
    dataset["linear"][0, 0, :3] = -np.array([3.0, 5.0, -1.0])
    shown = render_report(
        dataset.isel(query=[0]), diagnostics=run.diagnostics, summary=run.summary, manifest={}
    )
    bars = re.findall(
        r'<b style="width:([\d.]+)%"></b><u style="left:([\d.]+)%;width:([\d.]+)%"></u>', shown
    )
    # In shares of the longest, 5: solid to where both agree, hatched from there to the further one.
    assert [tuple(map(float, bar)) for bar in bars[:3]] == [(60, 60, 20), (40, 40, 60), (0, 0, 20)]
    assert "Solid: the linear part" in shown and "the sampled correction" in shown


def test_the_top_says_what_was_left_to_sample(run):
    shown = page(run)
    assert "Left to sample" in shown and "Draws' worth" in shown.replace("&#x27;", "'")


def test_a_correction_within_its_interval_is_said_to_be_none(run):
    found = sentence(run, correction=1.0)
    assert "For 20 of 20 items here the Bayesian influence equals the classical one" in found
    assert "clear of zero" not in found


def test_a_correction_beyond_its_interval_is_said_to_be_one(run):
    found = sentence(run, correction=5.0)
    assert "For 0 of 20 items" in found and "clear of zero" in found


def test_a_run_that_is_not_trusted_claims_neither(run):
    found = sentence(run, correction=1.0, trusted=False)
    assert "Each bar has two parts" in found and "equals" not in found


def test_the_linear_part_and_the_sampled_one_add_up(run):
    dataset = run.influence.dataset
    assert np.isfinite(dataset["linear"]).all()
    assert "the rest estimated from" in page(run)
    assert "which leaves" in repr(run)
