"""Repeated sequences counted twice within a window of the training, and in windows elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.induction import moments
from benchmarks.induction.model import State, start, train
from benchmarks.induction.stages import Trained

WEIGHT = 2.0
"""Weight of the sequences within a window."""
AFTER = 100
"""Updates after a window's end at which the prefix-matching score is compared."""


def windows(onset: float, peak: float, steps: int) -> dict[str, tuple[int, int]]:
    """Return the window from onset to peak, and one as long before and one after it.

    Args:
        onset: Step at which the influence of repeated sequences rises.
        peak: Step at which it is largest.
        steps: Updates of the training, within which all lie.
    """
    begin, end = round(onset), round(peak)
    length = end - begin
    early = max(0, begin - length)
    late = min(end, steps - length)
    return {
        "inside": (begin, end), "earlier": (early, early + length), "later": (late, late + length),
    }  # fmt: skip


def rows(trained: Trained, onset: float, peak: float) -> list[dict[str, Any]]:
    """Return, for each window, how the formation of the head differs from the plain training.

    "sooner" is how many updates earlier the prefix-matching score crosses half of what the plain
    training has at its end, for trainings in which a head forms.  "score" and "drop" are how much
    higher the score and the in-context loss drop are in the mean over the whole training,
    "score_after" the score some updates after the window's end.  "inside, others" doubles all other
    sequences in the window instead.
    """
    found = windows(onset, peak, trained.sizes.steps)
    plain, made = trained.watched, []
    level = plain["prefix_score"][-1] / 2
    usual = moments.crossing(plain["step"], plain["prefix_score"], level)
    arms = {name: (window, True) for name, window in found.items()}
    arms["inside, others"] = (found["inside"], False)
    for name, (window, of_induction) in arms.items():
        watched = _watched_with(trained, window, of_induction=of_induction)
        at = int(np.searchsorted(plain["step"], window[1] + AFTER))
        at = min(at, len(plain["step"]) - 1)
        crossed = moments.crossing(watched["step"], watched["prefix_score"], level)
        made.append({
            "part": "intervention", "seed": trained.seed, "arm": name, "window": list(window),
            "usual_crossing": usual, "sooner": usual - crossed,
            "score": _mean_gap(watched, plain, "prefix_score"),
            "drop": _mean_gap(watched, plain, "in_context_drop"),
            "score_after": watched["prefix_score"][at] - plain["prefix_score"][at],
        })  # fmt: skip
    return made


def _mean_gap(a: Mapping[str, list[float]], b: Mapping[str, list[float]], name: str) -> float:
    return float(np.mean(a[name]) - np.mean(b[name]))


def _watched_with(
    trained: Trained, window: tuple[int, int], *, of_induction: bool
) -> dict[str, list[float]]:
    """Return the measures of a training in which some sequences count twice in a window.

    Up to the last checkpoint before the window, they are those of the plain training.
    """
    is_induction = torch.from_numpy(trained.group_of == "induction")
    weights = torch.ones(len(trained.pool))
    weights[is_induction if of_induction else ~is_induction] = WEIGHT
    weights = weights.to(trained.pool.device)
    states = [start(trained.seed, str(trained.pool.device)), *trained.states]
    begin: State = max((s for s in states if s.step <= window[0]), key=lambda s: s.step)
    watch = trained.new_watch()
    train(
        begin, trained.pool, seed=trained.seed, until=trained.sizes.steps, watch=watch,
        item_weights=lambda step: weights if window[0] <= step < window[1] else None,
    )  # fmt: skip
    plain = trained.watched
    before = sum(step < begin.step for step in plain["step"])
    return {name: plain[name][:before] + watch.found.get(name, []) for name in plain}
