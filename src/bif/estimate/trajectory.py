"""Peaks, sign flips and onsets of trajectories of scores, where errors leave no doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Kind = Literal["peak", "flip", "onset"]


@dataclass(frozen=True)
class Event:
    """Something that happens to a score along a training.

    Attributes:
        kind: "flip": one sign is certain at one checkpoint, the other at another; their most
            certain ones are named.  "peak": a score between the first and the last checkpoint whose
            size is certainly above both.  "onset": the first checkpoint at which the sign is
            certain, after one at which it is not.
        checkpoints: Positions in the series: one, or two for a flip, in order.
        values: Scores there.
        standard_errors: Theirs.
        place: Position of observable, query and train item.
        steps, observable, query, train: In words, where they are known.
    """

    kind: Kind
    checkpoints: tuple[int, ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...]
    place: tuple[int, ...]
    steps: tuple[int, ...] = field(default=())
    observable: str = ""
    query: str = ""
    train: str = ""

    def named(self, *, step: Sequence[int], observable: str, query: str, train: str) -> Event:
        """Return the event in words."""
        return replace(self, steps=tuple(step), observable=observable, query=query, train=train)

    def in_words(self) -> str:
        """Return the event in a line."""
        what = f" ({self.observable})" if self.observable else ""
        return f"{self.kind}: {self.train} on {self.query}{what}: {self.values_in_words()}"

    def values_in_words(self) -> str:
        """Return the scores, their errors and steps."""
        parts = [
            f"{value:+.3g} ± {error:.2g} at step {step:,}"
            for value, error, step in zip(
                self.values, self.standard_errors, self.steps or self.checkpoints, strict=True
            )
        ]
        return ", then ".join(parts)


def find_events(
    scores: np.ndarray,
    errors: np.ndarray,
    *,
    level: float = 0.05,
    unsettled: np.ndarray | None = None,
    nulls: Sequence[np.ndarray] = (),
) -> list[Event]:
    """Return the events of trajectories `[K, ...]`, the largest scores first.

    Args:
        scores: `[K, ...]`.
        errors: Standard errors, taken as Gaussian.
        level: Chance of any event that is none, over all pairs and checkpoints (Bonferroni).
        unsettled: Checkpoints whose scores count for nothing, bool `[K]`.
        nulls: Scores `[K, ...]` without the posterior; an event that one of them has by its signs,
            a flip in the same order, a peak at the same checkpoint or a sign that begins there, is
            left out.

    Raises:
        ValueError: Fewer than two checkpoints.
    """
    from scipy.stats import norm

    if len(scores) < 2:
        raise ValueError(f"a trajectory needs two checkpoints, and has {len(scores)}.")
    shape, scores = scores.shape[1:], scores.reshape(len(scores), -1).astype(float)
    errors = errors.reshape(len(errors), -1).astype(float)
    flat = [null.reshape(len(null), -1) for null in nulls]
    z = float(norm.ppf(1 - level / 2 / scores.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        certainty = np.nan_to_num(scores / errors)
    if unsettled is not None:
        certainty[unsettled] = 0.0
    found = [
        *_flips(scores, errors, certainty, z, flat),
        *_peaks(scores, errors, certainty, z, flat),
        *_onsets(scores, errors, certainty, z, flat),
    ]
    found = [replace(e, place=tuple(map(int, np.unravel_index(e.place[0], shape)))) for e in found]
    return sorted(found, key=lambda event: -max(map(abs, event.values)))


def _event(
    kind: Kind, at: Sequence[Any], pair: Any, scores: np.ndarray, errors: np.ndarray
) -> Event:
    return Event(
        kind, tuple(int(k) for k in at), tuple(float(scores[k, pair]) for k in at),
        tuple(float(errors[k, pair]) for k in at), (int(pair),),
    )  # fmt: skip


def _flips(
    scores: np.ndarray, errors: np.ndarray, certainty: np.ndarray, z: float,
    nulls: Sequence[np.ndarray],
) -> list[Event]:  # fmt: skip
    low, high = certainty.argmin(axis=0), certainty.argmax(axis=0)
    columns = np.arange(scores.shape[1])
    certain = (certainty[low, columns] < -z) & (certainty[high, columns] > z)
    for null in nulls:
        certain &= ~((null[low, columns] < 0) & (null[high, columns] > 0))
    return [
        _event("flip", sorted((low[p], high[p])), p, scores, errors)
        for p in np.flatnonzero(certain)
    ]


def _peaks(
    scores: np.ndarray, errors: np.ndarray, certainty: np.ndarray, z: float,
    nulls: Sequence[np.ndarray],
) -> list[Event]:  # fmt: skip
    size = np.where(np.abs(certainty) > 0, np.abs(scores), 0.0)
    top, columns = size.argmax(axis=0), np.arange(scores.shape[1])
    certain = np.abs(certainty[top, columns]) > z
    for end in (0, len(scores) - 1):
        apart = size[top, columns] - np.abs(scores[end])
        spread = np.hypot(errors[top, columns], errors[end])
        certain &= (top != end) & (apart > z * spread)
    for null in nulls:
        certain &= np.abs(null).argmax(axis=0) != top
    return [_event("peak", [top[p]], p, scores, errors) for p in np.flatnonzero(certain)]


def _onsets(
    scores: np.ndarray, errors: np.ndarray, certainty: np.ndarray, z: float,
    nulls: Sequence[np.ndarray],
) -> list[Event]:  # fmt: skip
    certain = np.abs(certainty) > z
    first, columns = certain.argmax(axis=0), np.arange(scores.shape[1])
    there = certain.any(axis=0) & (first > 0)
    sign = np.sign(scores[first, columns])
    for null in nulls:
        has = np.sign(null[first, columns]) == sign
        there &= ~(has & (np.sign(null[np.maximum(first, 1) - 1, columns]) != sign))
    return [_event("onset", [first[p]], p, scores, errors) for p in np.flatnonzero(there)]


def staying(events: Sequence[Event], others: Sequence[Event]) -> list[Event]:
    """Return the events that other trajectories of the same pairs have as well.

    Of the same kind and with the same signs; a peak or an onset at most a checkpoint away.
    """
    there = {(event.kind, event.place): event for event in others}
    return [e for e in events if _alike(e, there.get((e.kind, e.place)))]


def _alike(event: Event, other: Event | None) -> bool:
    if other is None or list(np.sign(event.values)) != list(np.sign(other.values)):
        return False
    near = abs(event.checkpoints[0] - other.checkpoints[0]) <= 1
    return near or event.kind == "flip"
