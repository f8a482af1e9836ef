"""Checkpoints of a language model that are revisions of its repository."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bif.language.models import Task, load_model
from bif.problem.series import CheckpointSeries, Stage, Weights, step_of


def revisions(name: str, names: Sequence[str], *, task: Task | None = None) -> CheckpointSeries:
    """Return a series of revisions, such as `["step1000", "step2000"]` of a Pythia model.

    The step is the number in a revision's name.  A model is read when its turn comes.  Folders that
    `save_pretrained` wrote are read by `CheckpointSeries.from_folder`.

    Args:
        name: A name on the Hugging Face hub, or of a model in the local cache.
        names: The revisions.
        task: As of `load_model`.
    """
    found, unusable = [], {}
    for revision in names:
        step = step_of(revision)
        if step is None:
            unusable[revision] = "its name has no number of steps"
        else:
            found.append(Stage(step, revision, partial(_read, name, revision, task)))
    return CheckpointSeries(found, unusable=unusable)


def _read(name: str, revision: str, task: Task | None) -> Weights:
    return load_model(name, task=task, revision=revision).model.state_dict()
