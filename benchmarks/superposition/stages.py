"""Stages of a training, and when curves tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import bif
from benchmarks.superposition.scores import OBSERVABLES, Help
from benchmarks.superposition.timing import HALF, RISEN, rise_and_peak, step_above, step_of_part
from benchmarks.superposition.toy import FEATURES, Path

REPRESENTED = 0.5
"""Size of a feature's column of W from which on it is a corner of the polygon: final sizes are
above 1, or nearly 0."""


@dataclass(frozen=True)
class Stage:
    """A feature that becomes represented.

    Attributes:
        feature: Its position.
        loss_half: Step from which on its loss has fallen by half of what it falls in all.
        loss_risen: The same by a tenth: the first that one sees of it in the loss.
        size: Half the final size of its column of W.
        size_half: Step from which on the column is above that.
        size_risen: Step from which on the column has grown by a tenth.
    """

    feature: int
    loss_half: float
    loss_risen: float
    size: float
    size_half: float
    size_risen: float

    @property
    def window(self) -> tuple[int, int]:
        """The second half of the steps before anything is seen in the loss."""
        return int(self.loss_risen / 2), int(self.loss_risen)


def find_stages(path: Path) -> list[Stage]:
    """Return the stages of the first training in the order of the columns' growth.

    The first feature's is left out: no plateau comes before it.
    """
    sizes, losses = (x[:, 0].cpu().numpy() for x in (path.sizes(), path.losses()))
    steps, found = range(len(sizes)), []
    for j in range(len(FEATURES)):
        if sizes[-1, j] < REPRESENTED:
            continue
        loss, size = losses[:, j], sizes[:, j]
        half = HALF * float(size[-1])
        found.append(
            Stage(
                j, step_of_part(steps, loss, HALF), step_of_part(steps, loss, RISEN),
                half, step_above(steps, size, half), step_of_part(steps, size, RISEN),
            )
        )  # fmt: skip
    return sorted(found, key=lambda stage: stage.size_half)[1:]


def polygons(path: Path) -> list[list[int]]:
    """Return the steps at which the first training's number of corners changes, and the numbers."""
    corners = (path.sizes()[:, 0] > REPRESENTED).sum(dim=-1).cpu().numpy()
    changed = np.nonzero(np.diff(corners, prepend=-1))[0]
    return [[int(step), int(corners[step])] for step in changed]


def timings(stage: Stage, steps: Sequence[int], helps: Help) -> list[dict[str, Any]]:
    """Return the steps at which each curve has risen, and those of its peak.

    The curves are the loss and the column's size themselves, and how much the feature's own items
    help either, by each way.
    """
    rows: list[dict[str, Any]] = [
        {"way": "the curve itself", "asked": "loss", "risen": stage.loss_risen},
        {"way": "the curve itself", "asked": "size", "risen": stage.size_risen},
    ]
    for way, by_observable in helps.items():
        for asked in OBSERVABLES:
            curve = by_observable[asked][:, stage.feature, stage.feature]
            risen, peak = rise_and_peak(steps, curve)
            rows.append({"way": way, "asked": asked, "risen": risen, "peak": peak})
    return rows


def certain_events(found: bif.Trajectory, stages: Sequence[Stage]) -> dict[str, int]:
    """Return how many of a trajectory's events there are of each kind, on the loss.

    On a stage's own feature by its own items, and between different features.
    """
    names = {FEATURES[stage.feature] for stage in stages}
    counts = {f"{kind}s, {of}": 0 for kind in ("peak", "onset", "flip") for of in ("own", "cross")}
    for event in found.events():
        if event.observable == "loss" and event.query in names:
            counts[f"{event.kind}s, {'own' if event.train == event.query else 'cross'}"] += 1
    return counts


def signs_between_features(found: bif.Trajectory, stages: Sequence[Stage]) -> dict[str, int]:
    """Return how many other features' items help or harm a stage's loss, before it, for certain."""
    counts = {"harm": 0, "help": 0, "not certain": 0}
    for stage in stages:
        k = checkpoint_at(found.steps, stage.window[0])
        width = float(found.dataset["error_quantile"].values[k])
        for other in (name for j, name in enumerate(FEATURES) if j != stage.feature):
            scores, errors = found.of_pair(other, FEATURES[stage.feature], observable="loss")
            certain = abs(scores[k]) > width * errors[k]
            sign = "harm" if scores[k] > 0 else "help"
            counts[sign if certain else "not certain"] += 1
    return counts


def checkpoint_at(steps: Sequence[int] | np.ndarray, step: int) -> int:
    """Return the last checkpoint at or before a step."""
    return int(np.searchsorted(np.asarray(steps), step, side="right")) - 1
