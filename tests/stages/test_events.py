"""Events in made-up trajectories: what is there is found, and noise is not."""

from __future__ import annotations

import numpy as np
import pytest

from bif.estimate.trajectory import Event, find_events, staying

STEPS = np.linspace(0, 1, 9)


def trajectories(*curves: np.ndarray) -> np.ndarray:
    return np.stack(curves, axis=1)[:, None, None, :]


def test_a_flip_a_peak_and_an_onset_are_found_where_they_are():
    flip, peak = np.sin(2 * np.pi * STEPS), np.exp(-50 * (STEPS - 0.5) ** 2)
    onset, flat = np.where(STEPS > 0.6, 1.0, 0.0), np.ones(9)
    scores = trajectories(flip, peak, onset, flat)
    found = find_events(scores, np.full_like(scores, 0.02))
    by_kind = {(e.kind, e.place[-1]): e for e in found}
    assert by_kind["flip", 0].checkpoints == (2, 6) and by_kind["flip", 0].values[0] > 0
    assert by_kind["peak", 1].checkpoints == (4,)
    assert by_kind["onset", 2].checkpoints == (5,)
    assert [kind for kind, place in by_kind if place == 3] == []
    assert [kind for kind, place in by_kind if place == 2] == ["onset"]


def test_of_noise_alone_hardly_any_is_listed():
    rng, families = np.random.default_rng(0), 300
    noise = rng.standard_normal((families, 12, 1, 5, 10))
    any_event = [bool(find_events(one, np.ones_like(one))) for one in noise]
    assert np.mean(any_event) < 0.09  # 5 % and what 300 families leave uncertain


def test_checkpoints_that_are_not_trusted_count_for_nothing():
    scores = trajectories(np.sin(2 * np.pi * STEPS))
    unsettled = np.arange(9) > 4
    found = find_events(scores, np.full_like(scores, 0.02), unsettled=unsettled)
    assert "flip" not in {event.kind for event in found}


def test_what_a_null_has_too_is_left_out():
    flip, peak = np.sin(2 * np.pi * STEPS), np.exp(-50 * (STEPS - 0.5) ** 2)
    scores = trajectories(flip, peak)
    errors = np.full_like(scores, 0.02)
    other = trajectories(-flip, np.roll(peak, 2))
    assert {e.kind for e in find_events(scores, errors, nulls=[other])} >= {"flip", "peak"}
    kinds = [(e.kind, e.place[-1]) for e in find_events(scores, errors, nulls=[5 * scores])]
    assert ("flip", 0) not in kinds and ("peak", 1) not in kinds


def test_a_sign_that_a_null_takes_at_the_same_checkpoint_is_no_onset():
    scores = trajectories(np.where(STEPS > 0.6, 1.0, 0.0), np.where(STEPS > 0.6, -1.0, 0.0))
    errors, null = np.full_like(scores, 0.02), trajectories(STEPS - 0.6, STEPS + 1)
    found = find_events(scores, errors, nulls=[null])
    assert [(e.kind, e.place[-1]) for e in found] == [("onset", 1)]


def test_what_stays_has_the_same_signs_and_nearly_the_same_place():
    flip, peak = np.sin(2 * np.pi * STEPS), np.exp(-50 * (STEPS - 0.5) ** 2)

    def events(*curves: np.ndarray) -> list[Event]:
        scores = trajectories(*curves)
        found = find_events(scores, np.full_like(scores, 0.02))
        return [e for e in found if e.kind in ("flip", "peak")]

    first = events(flip, peak)
    assert staying(first, events(2 * flip, np.roll(peak, 1))) == first
    assert not [e for e in staying(first, events(-flip, np.roll(peak, 2))) if e.place[-1] == 1]
    assert "flip" not in {e.kind for e in staying(first, events(-flip, peak))}


def test_a_single_checkpoint_is_no_trajectory():
    with pytest.raises(ValueError, match="needs two checkpoints, and has 1"):
        find_events(np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))
