"""Read what a run goes on from, and compare its folder with the problem."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, TypeVar

from torch import Tensor

from bif import store
from bif.problem.array_layout import Panels
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.problem.provenance import hardware
from bif.sampling.center_gradient import gradient_sums
from bif.sampling.choices import Choice
from bif.sampling.engine import Engine
from bif.sampling.oracles.precision import rounding
from bif.sampling.settings import Settings

_Kind = TypeVar("_Kind", bound=Settings)
_SAME = 1e3
"""Roundings by which a gradient may differ from pass to pass on one device, whose sums have no
order."""


def chosen_before(
    folder: store.RunFolder | None, kind: type[_Kind]
) -> tuple[_Kind, tuple[Choice, ...]] | None:
    """Return the settings and choices of a run that was begun; None before that.

    Args:
        folder: Of the run.
        kind: `RunSettings` of chains, `Settings` of a solve.

    Raises:
        DamagedRun: The manifest's settings are none.
    """
    found = folder.manifest.get("settings") if folder else None
    if folder is None or not isinstance(found, dict):
        return None
    try:
        settings = kind.from_dict(found)
    except ValueError as error:
        raise store.DamagedRun(f"the settings in {folder.folder}'s manifest: {error}") from error
    return settings, tuple(map(Choice.from_line, folder.manifest.get("explanations", [])))


def refuse_other_losses(folder: store.RunFolder, engine: Engine) -> list[str]:
    """Compare losses and gradients at w* with those of a run that was begun.

    They tell of changes that no fingerprint sees.

    Returns:
        Notes for the reader where there is nothing to compare with.

    Raises:
        FolderInUse: The run was begun with others.
    """
    now = dict(zip(Panels.of(engine.problem).names, engine.observer.center_values(), strict=True))
    same = folder.manifest.get("hardware") == hardware(engine.device)
    kept, notes = refuse_other_values(folder, now, same=same)
    gradient = gradient_sums(engine)
    if "gradient" in kept:
        then = kept["gradient"]
        unit = rounding(engine.observer.train_center.dtype, *engine.settings.precisions)
        tolerance = (_SAME * unit if same else sqrt(unit)) * float(then[:, 0].norm())
        if then.shape != gradient.shape or bool(((then - gradient).abs() > tolerance).any()):
            raise store.FolderInUse(
                f"{folder.folder} was begun with other gradients at w*, although fingerprints and "
                "losses agree: something that the loss or the model depend on has changed."
            )
    folder.keep_center_values({**now, "gradient": gradient})
    return notes


def refuse_other_values(
    folder: store.RunFolder, now: Mapping[str, Tensor], *, same: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Compare values of the items at w* with those of a run that was begun.

    Args:
        folder: Of the run.
        now: Values by the names of the arrays of traces.
        same: Whether the device is the same.

    Returns:
        What was kept, and notes for the reader where there is nothing to compare with.

    Raises:
        FolderInUse: The run was begun with others.
    """
    notes = []
    try:
        kept = folder.center_values()
    except store.DamagedRun as error:
        kept = {}
        notes.append(
            f"when the run went on, its losses at w* could not be compared with those that it was "
            f"begun with ({error})"
        )
    for name in now:  # the train losses first
        if name not in kept:
            continue
        then = kept[name]
        tolerance = 0.0 if same else 1e-3
        close = then.shape == now[name].shape and bool(
            ((then - now[name]).abs() <= tolerance * (1 + then.abs())).all()
        )
        if not close:
            what = "losses of the train items" if name == "train_loss-0" else f"values of {name}"
            raise store.FolderInUse(
                f"{folder.folder} was begun with other {what} at w*, although fingerprints agree: "
                "something that the model, the data or the loss depend on has changed."
            )
    return kept, notes


def settings_of(folder: store.RunFolder) -> tuple[Settings, Settings]:
    """Return a run's settings as they were asked for, and as they were chosen.

    Raises:
        ValueError: The run holds no state to go on from.
    """
    found = folder.manifest
    if not found.get("resumable", True):
        raise ValueError(
            f"{folder.folder} was saved from memory and holds no state to go on from: runs can "
            "grow that were made with attribute(…, out=…)."
        )
    asked = found["identity"]["settings"]
    return Settings.from_dict(asked), Settings.from_dict(found.get("settings", asked))


def compare_extended(
    folder: store.RunFolder, problem: Problem, requested: Settings, *, free: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the identity of the extended run, and the groups that are new in it.

    Args:
        folder: Of the run.
        problem: With further groups.
        requested: With what changes.
        free: Settings that may differ.

    Raises:
        FolderInUse: The run is of another problem, or of other settings.
    """
    then = folder.manifest["identity"]
    now = store.plain(identity(problem, requested.as_dict()))
    for kind in ("queries", "candidates"):
        there, wanted = list(then[kind]), list(now[kind])
        if wanted[: len(there)] != there:
            raise store.FolderInUse(
                f"{folder.folder} has the {kind} {there}, the problem {wanted}: keep the run's own "
                "first, and add others after them."
            )
    new_groups = new_groups_of(then, problem)
    changed = [
        name
        for name in store.differences(then, now)
        if name not in new_groups and name.removeprefix("settings.") not in free
    ]
    if changed:
        raise store.FolderInUse(
            f"{folder.folder} is of another problem, with another {store.in_words(changed)}."
        )
    return now, new_groups


def new_groups_of(then: Mapping[str, Any], problem: Problem) -> list[str]:
    """Return the names of the problem's groups that a run does not have."""
    now = {"queries": problem.query_groups, "candidates": problem.candidate_groups}
    return [f"{kind}.{n}" for kind, groups in now.items() for n in groups if n not in then[kind]]
