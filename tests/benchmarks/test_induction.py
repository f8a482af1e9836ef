"""The study of induction: its sequences, measures, moments, and windows of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.common import mean_interval
from benchmarks.induction import __main__ as study
from benchmarks.induction import intervention, moments, stages, sweep
from benchmarks.induction.model import prefix_matching, start, train
from benchmarks.induction.sequences import ALPHABET, repeated, windows

SIZES = stages.Sizes(
    steps=8, checkpoints=2, first=4, train=(64, 32, 32), held_out=8, scored=(4, 2, 2), window=2
)


@pytest.fixture(scope="module")
def trained():
    """A training of a few updates, watched at each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "WATCH_EVERY", 1)
        yield stages.train_whole(study.made_up_texts(), SIZES, seed=0, device="cpu")


def test_a_perfect_induction_pattern_has_a_prefix_matching_score_of_one():
    group = repeated(5, np.random.default_rng(0))
    length = group.ids.shape[1]
    earlier = (group.ids[:, None, :] == group.ids[:, :, None]).long().tril(-1)
    followed = earlier.argmax(dim=2) + 1  # the first token of the same kind, and the next of it
    perfect = torch.nn.functional.one_hot(followed, length).double()
    even = torch.full_like(perfect, 1 / length)
    scores = prefix_matching(torch.stack([perfect, even], dim=1), group.periods)
    assert scores.tolist() == pytest.approx([1.0, 1 / length])


def test_what_is_asked_of_a_repeated_segment_came_before_and_its_first_copy_did_not():
    group = repeated(20, np.random.default_rng(1))
    for ids, asked, first in zip(group.ids, group.asked, group.first_copy(), strict=True):
        for place in range(1, len(ids)):
            came_before = ids[place - 1 : place + 1].tolist() in [
                ids[i : i + 2].tolist() for i in range(place - 1)
            ]
            assert not (asked[place] and not came_before) and not (first[place] and came_before)


def test_a_window_is_asked_about_what_closes_its_pairs_and_half_a_pair_is_left_out():
    filler = "word " * 20
    whole = windows([f'x He said "no" (twice) and left {filler}'], seed=0)["delimiters"]
    (signs,) = (
        [ALPHABET[i] for i in ids[asked]] for ids, asked in zip(whole.ids, whole.asked, strict=True)
    )
    assert signs == ['"', ")"]
    half = windows([f'x He said "no and left {filler}'], seed=0)
    assert len(half["delimiters"]) == 0


def test_a_training_goes_on_from_a_checkpoint_with_the_same_bits(trained):
    state = trained.states[0]
    assert state.step == SIZES.first
    again = train(state, trained.pool, seed=0, until=SIZES.steps)[-1]
    whole = train(start(0, "cpu"), trained.pool, seed=0, until=SIZES.steps)[-1]
    assert all(torch.equal(again.weights[k], whole.weights[k]) for k in whole.weights)


def test_leaving_nothing_out_of_a_window_is_the_plain_training(trained):
    state = trained.states[0]
    items = sweep.window_items(trained, state)
    masks = np.stack([np.ones(len(items), bool), np.arange(len(items)) % 2 == 0])
    whole, half = sweep.outcomes(trained, state, items, masks)
    end = train(state, trained.pool, seed=0, until=state.step + SIZES.window)[-1]
    model = stages.network(0)
    model.load_state_dict(end.weights)
    with torch.no_grad():
        batches = stages.queries(trained.corpus).values()
        plain = torch.cat([stages.mean_asked_loss(model, batch) for batch in batches])
    assert whole.tolist() == plain.tolist() and not np.allclose(whole, half)


def test_moments_of_a_known_curve():
    steps = [0, 80, 100, 120, 140, 200, 400, 800]
    values = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.5]
    half_way = 200 * 2**0.5  # in the logarithm of the step
    assert moments.rise(steps, values, 0.5) == pytest.approx(half_way)
    assert 400 < moments.peak(steps, values) < 800
    assert moments.crossing(steps, [0.0] * 6 + [1.0, 1.0], 0.5) == pytest.approx(300)
    assert np.isnan(moments.crossing(steps, values, 10.0))


def test_windows_elsewhere_are_as_long_as_the_one_inside():
    found = intervention.windows(300.4, 580.2, 1200)
    assert found == {"inside": (300, 580), "earlier": (20, 300), "later": (580, 860)}


def test_a_window_changes_nothing_before_it_and_something_after(trained):
    plain = trained.watched["second_copy_loss"]
    for of_induction in (True, False):
        found = intervention._watched_with(trained, (5, 7), of_induction=of_induction)
        there = found["second_copy_loss"]
        assert found["step"] == trained.watched["step"] == list(range(9))
        assert there[:6] == plain[:6] and there[6] != plain[6]


def test_moments_are_of_the_seeds_in_which_a_head_forms():
    steps = [80.0, 100.0, 120.0, 140.0, 200.0, 400.0, 800.0]
    bump = [-0.1] * 5 + [-1.0, -0.1]
    keys = [f"induction on {q}" for q in ("induction", "first copy")]
    curves = {"step": steps, **dict.fromkeys([f"{k}, gradient product" for k in keys], bump)}
    curves |= {keys[0]: bump, keys[1]: [0.0] * 7}
    rows = []
    for seed, end in enumerate((0.8, 0.1)):
        score = [0.05] * 5 + [end / 2, end]
        found = stages.moments_of(
            curves, {"step": steps, "prefix_score": score, "in_context_drop": score}
        )
        rows += [
            {"part": "stages", "seed": seed, "quantity": name, **values}
            for name, values in found.items()
        ]
    by = {(row["what"], row["figure"]): row for row in study.summary(rows)}
    assert by["a head forms", "share of seeds"]["mean"] == 0.5
    assert by["influence", "peak"]["seeds"] == 1 and by["influence", "largest"]["mean"] == 1.0
    assert by["influence", "peak minus peak of gradient product"]["mean"] == 0.0


def test_a_mean_over_seeds_has_students_interval_and_leaves_out_what_never_came():
    found = mean_interval([1.0, 2.0, 3.0, float("nan")])
    assert found["mean"] == 2 and found["seeds"] == 3
    assert found["ci_high"] - 2 == pytest.approx(4.302652729696142 / 3**0.5)
