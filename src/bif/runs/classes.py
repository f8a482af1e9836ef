"""Classes of a classifier's items in words: the labels that they have and what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bif.problem.items import Items
from bif.problem.losses import cross_entropy, plain_form
from bif.problem.problem import Problem
from bif.runs.query_outputs import query_outputs
from bif.sampling.settings import Settings

_CHUNK = 512
"""Items of a forward pass where the settings do not say."""


def classes_in_words(
    problem: Problem, settings: Settings, device: torch.device
) -> dict[str, np.ndarray]:
    """Return `train_label` and `query_label` `[N]`, `[Q]`, and `query_prediction` `[Q]`, as texts.

    Of problems with `bif.losses.cross_entropy` alone, whose targets are classes.  A class is named
    by the labels that were given with the items, where each class has one label, or by its number.
    Predictions are those of the model at w*; none where the device has no room for a copy of it.

    Args:
        problem: What is attributed.
        settings: With the items of a pass.
        device: Where the model is evaluated.
    """
    size = settings.chunk_size or _CHUNK
    found, names = _labels(problem, size)
    if not found:
        return {}
    try:
        predicted = _predictions(problem, size, device)
    except torch.OutOfMemoryError:
        return found
    return found if predicted is None else {**found, "query_prediction": _texts(predicted, names)}


def class_labels(problem: Problem) -> dict[str, np.ndarray]:
    """Return `train_label` and `query_label` as `classes_in_words` does, without predictions."""
    return _labels(problem, _CHUNK)[0]


def _labels(problem: Problem, size: int) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Return the labels of both sides, and the names of classes; empty if there are no classes."""
    if plain_form(problem.loss) is not cross_entropy or problem.tokens:
        return {}, {}
    sides = {
        "train": list(problem.scored_groups.values()),
        "query": list(problem.query_groups.values()),
    }
    targets = {side: _targets(groups, size) for side, groups in sides.items()}
    names = _names(sides, targets)
    return {f"{side}_label": _texts(values, names) for side, values in targets.items()}, names


def _targets(groups: Sequence[Items], size: int) -> np.ndarray:
    """Return the classes of all items of some groups."""
    parts = [batch[1] for items in groups for _, batch in items.chunks(size)]
    return torch.cat([part.cpu() for part in parts]).numpy()


def _names(
    sides: Mapping[str, Sequence[Items]], targets: Mapping[str, np.ndarray]
) -> dict[int, str]:
    """Return the names of classes; empty where labels are not names of classes."""
    names: dict[int, str] = {}
    for side, groups in sides.items():
        if any(items.labels is None for items in groups):
            continue
        labels = np.concatenate([np.asarray(items.labels) for items in groups])
        for target, label in zip(targets[side].tolist(), labels.tolist(), strict=True):
            if names.setdefault(target, label) != label:
                return {}
    return names if len(set(names.values())) == len(names) else {}


def _texts(classes: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    return np.asarray([names.get(c, str(c)) for c in classes.tolist()])


def _predictions(problem: Problem, size: int, device: torch.device) -> np.ndarray | None:
    """Return the class of the largest output for each query; None of a model without classes."""
    found: list[Tensor] = []
    for targets, output in query_outputs(problem, size, device):
        if output.shape[:-1] != targets.shape:
            return None
        found.append(output.argmax(dim=-1).cpu())
    return torch.cat(found).numpy()
