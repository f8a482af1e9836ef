"""The study of one setting: retrain, predict, choose by the tuning queries, score the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shifts.prediction import (
    GAUSS_NEWTON,
    NO_CHANGE,
    ORDERS,
    Prediction,
    sampled,
    solved,
)
from benchmarks.shifts.score import Truth, one_network, scores
from benchmarks.shifts.setting import ADDED, SIZES, Setting, labels
from benchmarks.shifts.truth import actual_changes
from bif.types import Target

DIFFERENCES = (
    ("second", "first"), ("reweighted", "first"), ("second", GAUSS_NEWTON),
    ("first", GAUSS_NEWTON), ("second of the same draws", "first"),
)  # fmt: skip
"""Pairs of methods that are compared on the same resamples."""
SAME_DRAWS = "second of the same draws"
"""The second order at the nbeta and gamma that were chosen for the first."""
_TUNED_ON = 0.5
"""Sizes up to which the tuning queries choose."""
_RESAMPLES = 400


class Case(NamedTuple):
    """Groups that are shifted together in one study.

    Attributes:
        shifted: The groups.
        inside: Groups of the training without a shift.
        added: Whether the groups are outside of it.
        sizes: What their items gain.
    """

    shifted: tuple[str, ...]
    inside: tuple[str, ...]
    added: bool
    sizes: tuple[float, ...]


class Made(NamedTuple):
    """What was retrained and predicted in a case, for all queries."""

    actual: dict[Target, np.ndarray]
    predictions: list[Prediction]


Found = dict[str, list[dict[str, Any]]]
"""Rows by what they say."""
Chosen = dict[str, tuple[float, float]]
"""nbeta and damping by method."""
Kept = Callable[[str, Callable[[], Any]], Any]
"""From a name and what makes something, that thing; made once where a folder is given."""


def cases(setting: Setting) -> tuple[Case, list[Case]]:
    """Return the shifts of the groups, and each group that is added to a training without it."""
    outside = [
        Case((name,), tuple(g for g in setting.groups if g != name), True, ADDED)
        for name in setting.outside
    ]
    return Case(setting.groups, setting.groups, False, SIZES), outside


def study(
    setting: Setting, *, device: str, seed: int, kept: Kept
) -> dict[str, list[dict[str, Any]]]:
    """Return what is said of shifts, and of groups that are added, with all that was tried."""
    shifts, outside = cases(setting)
    found: Found = {}
    made = _made(setting, shifts, setting.posteriors, setting.dampings, device, seed, kept)
    for target in setting.retraining:
        tried, chosen = _choose(setting, shifts, made, target)
        _extend(found, {"tried": tried}, part="groups", target=target)
        _extend(found, _scored(setting, [shifts], [made], chosen, target, seed),
                part="groups", target=target)  # fmt: skip
    target = next(iter(setting.retraining))
    _, chosen = _choose(setting, shifts, made, target)
    posteriors = tuple(dict.fromkeys(chosen[order] for order in ORDERS))
    added = [
        _made(setting, case, posteriors, (chosen[GAUSS_NEWTON][1],), device, seed, kept, (target,))
        for case in outside
    ]
    if outside:
        _extend(found, _scored(setting, outside, added, chosen, target, seed),
                part="outside", target=target)  # fmt: skip
    return found


def _made(
    setting: Setting, case: Case, posteriors: Sequence[tuple[float, float]],
    dampings: Sequence[float], device: str, seed: int, kept: Kept,
    targets: tuple[Target, ...] | None = None,
) -> Made:  # fmt: skip
    name = "-".join([setting.name, *(case.shifted if case.added else ["groups"])])
    model = kept(f"{name}-network", lambda: setting.trained(case.inside, device))
    every = setting.of_groups([*case.inside, *case.shifted])
    inside = setting.of_groups(case.inside)
    outside = setting.of_groups(case.shifted) if case.added else None
    actual: dict[Target, np.ndarray] = {
        target: kept(f"{name}-{target}", lambda target=target: actual_changes(
            setting, model, every, case.shifted, case.sizes, target, added=case.added,
            device=device, seed=seed,
        ))
        for target in targets or setting.retraining
    }  # fmt: skip
    predictions: list[Prediction] = []
    for posterior in posteriors:
        predictions += kept(
            f"{name}-{posterior[0]:g}-{posterior[1]:g}", lambda posterior=posterior: sampled(
                setting, model, inside, outside, case.shifted, case.sizes, posterior, seed
            ),
        )  # fmt: skip
    for damping in dampings:
        predictions.append(kept(
            f"{name}-solved-{damping:g}", lambda damping=damping: solved(
                setting, model, inside, outside, case.shifted, case.sizes, damping
            ),
        ))  # fmt: skip
    return Made(actual, predictions)


def _choose(
    setting: Setting, case: Case, made: Made, target: Target
) -> tuple[list[dict[str, Any]], Chosen]:
    """Return what was tried with its R² on the tuning queries, and the best by method.

    A run that its own gates refuse is not chosen while another is trusted.
    """
    some = [z for z, size in enumerate(case.sizes) if abs(size) <= _TUNED_ON]
    ours = slice(len(setting.queries), None)
    truth = Truth(made.actual[target][:, some][..., ours], None)
    tried = []
    for one in made.predictions:
        told = {one.method: one.changes[:, some][..., ours]}
        curves = scores(truth, told, [case.sizes[z] for z in some], (), number=2, seed=0)["curves"]
        tried.append({
            "method": one.method, "nbeta": one.nbeta, "damping": one.damping,
            "r2": float(np.mean([row["r2"] for row in curves])), **one.figures,
        })  # fmt: skip
    chosen = {}
    for method in dict.fromkeys(row["method"] for row in tried):
        rows = [row for row in tried if row["method"] == method]
        best = max(rows, key=lambda row: (row["trusted"], row["r2"]))
        chosen[method] = best["nbeta"], best["damping"]
    return tried, chosen


def _scored(
    setting: Setting, some: Sequence[Case], made: Sequence[Made], chosen: Chosen, target: Target,
    seed: int,
) -> Found:  # fmt: skip
    """Return the scores of the reported queries, of each and of means over their groups."""
    ours = slice(0, len(setting.queries))
    actual = np.concatenate([one.actual[target] for one in made])[..., ours]
    used = {method: _all(made, method, *at) for method, at in chosen.items()}
    used[SAME_DRAWS] = _all(made, "second", *chosen["first"])
    told = {
        name: np.concatenate([one.changes for one in parts])[..., ours]
        for name, parts in used.items()
    }
    told[NO_CHANGE] = np.zeros_like(actual[:, :, 0])
    found: Found = {}
    for level, places, groups in _levels(setting, some[0]):
        truth = Truth(actual[..., places], groups)
        parts = {name: changes[..., places] for name, changes in told.items()}
        rows = scores(truth, parts, some[0].sizes, DIFFERENCES, number=_RESAMPLES, seed=seed)
        for row in rows["curves"] if groups is None else ():
            row["draws_share"] = _noise_of_draws(
                used.get(row["method"], ()), row, some[0].sizes.index(row["size"]), places
            )
        for row in rows["radii"]:
            row |= _about(used.get(row["method"]))
        if actual.shape[2] > 1:
            rows["one_network"] = [
                {"size": size, "r2": float(value)}
                for size, value in zip(some[0].sizes, one_network(truth), strict=True)
            ]
        _extend(found, rows, level=level)
    if some[0].added:  # what its own queries gain
        own = labels(setting.queries) == np.array([case.shifted for case in some])
        told["actual"] = actual.mean(axis=2)
        found["change"] = [
            {"size": size, **{name: float(x[:, z][own].mean()) for name, x in told.items()}}
            for z, size in enumerate(some[0].sizes)
        ]
    return found


def _levels(setting: Setting, case: Case) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Return what is scored: name, positions of queries, and their groups if it is their means.

    Queries of a group that no shift trains on are apart.
    """
    found = labels(setting.queries)
    known = np.isin(found, case.inside if not case.added else found)
    levels = [
        ("queries", np.flatnonzero(known), None), ("means", np.flatnonzero(known), found[known])
    ]  # fmt: skip
    return levels if known.all() else [*levels, ("queries outside", np.flatnonzero(~known), None)]


def _all(made: Sequence[Made], method: str, nbeta: float, damping: float) -> list[Prediction]:
    wanted = (method, nbeta, damping)
    return [
        one for case in made for one in case.predictions
        if (one.method, one.nbeta, one.damping) == wanted
    ]  # fmt: skip


def _noise_of_draws(
    used: Sequence[Prediction], row: dict[str, Any], place: int, places: np.ndarray
) -> float | None:
    """Return squares of the errors of the draws over those of the changes; None without draws."""
    if not used or not row["rms_change"] or any(one.errors is None for one in used):
        return None
    errors = np.concatenate([one.errors for one in used if one.errors is not None])
    return float(np.mean(errors[:, place][:, places] ** 2) / row["rms_change"] ** 2)


def _about(used: Sequence[Prediction] | None) -> dict[str, Any]:
    if not used:
        return {}
    return {
        "nbeta": used[0].nbeta, "damping": used[0].damping,
        "trusted": all(one.figures["trusted"] for one in used),
    }  # fmt: skip


def _extend(found: Found, rows: Found, **about: str) -> None:
    for name, some in rows.items():
        found.setdefault(name, []).extend({**about, **row} for row in some)


def keeper(folder: Path | None) -> Kept:
    """Return a function that makes something, or reads it from the folder where it was made."""
    import pickle

    def kept(name: str, make: Callable[[], Any]) -> Any:
        place = folder / f"{name}.pickle" if folder else None
        if place and place.exists():
            return pickle.loads(place.read_bytes())
        print(name, flush=True)
        value = make()
        if place:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(pickle.dumps(value))
        return value

    return kept
