"""Items of few numbers in words: their features, and a regressor's targets and predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bif.problem.items import Items
from bif.problem.losses import plain_form, squared_error
from bif.problem.problem import Problem
from bif.runs.query_outputs import query_outputs
from bif.sampling.settings import Settings

_SHOWN_FEATURES = 8
"""Features of an item that are told: more are no words to recognise it by."""
_MOST_FEATURES = 32
"""Features of an item at most: of more, the first tell nothing."""
_MOST_ITEMS = 100_000
"""Items of a side at most, whose words take about 100 bytes each."""
_CHUNK = 512
"""Items of a forward pass where the settings do not say."""


def numbers_in_words(
    problem: Problem, settings: Settings, device: torch.device
) -> dict[str, np.ndarray]:
    """Return `train_features` and `query_features`, `[N]` and `[Q]`, as texts of three digits.

    Of items without pictures, texts or tokens, whose inputs are one to 32 numbers each, `[B, F]` of
    floating point; the first eight are told.  Beside them `train_target` and `query_target`, where
    the second part of an item is one number: with `bif.losses.squared_error` of any kind, and then
    `query_prediction`, the output of the model at w*, is there as well; with other losses of
    floating point.

    Args:
        problem: What is attributed.
        settings: With the items of a pass.
        device: Where the model is evaluated.
    """
    sides = {
        "train": list(problem.scored_groups.values()),
        "query": list(problem.query_groups.values()),
    }
    size = settings.chunk_size or _CHUNK
    if problem.tokens or any(sum(map(len, groups)) > _MOST_ITEMS for groups in sides.values()):
        return {}
    regressor = plain_form(problem.loss) is squared_error
    found: dict[str, np.ndarray] = {}
    for side, groups in sides.items():
        features, targets = _features(groups, size), _targets(groups, size, regressor)
        if features is not None:
            found[f"{side}_features"] = features
        if targets is not None:
            found[f"{side}_target"] = targets
    if regressor and "query_target" in found:
        try:
            outputs = [output.cpu() for _, output in query_outputs(problem, size, device)]
        except torch.OutOfMemoryError:
            return found
        found["query_prediction"] = _texts(outputs)
    return found


def _features(groups: Sequence[Items], size: int) -> np.ndarray | None:
    texts: list[str] = []
    for items in groups:
        if items.images is not None or items.tokens is not None or "text" in items.about:
            return None
        for _, batch in items.chunks(size):
            inputs = batch[0] if isinstance(batch, tuple | list) else None
            if not (
                isinstance(inputs, Tensor)
                and inputs.is_floating_point()
                and inputs.dim() == 2
                and inputs.shape[1] <= _MOST_FEATURES
            ):
                return None
            more = ", …" if inputs.shape[1] > _SHOWN_FEATURES else ""
            shown = inputs[:, :_SHOWN_FEATURES].tolist()
            texts += [", ".join(f"{x:.3g}" for x in row) + more for row in shown]
    return np.asarray(texts, object)


def _targets(groups: Sequence[Items], size: int, regressor: bool) -> np.ndarray | None:
    parts: list[Tensor] = []
    for items in groups:
        for _, batch in items.chunks(size):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                return None
            targets = batch[1]
            if not isinstance(targets, Tensor) or targets.numel() != len(targets):
                return None
            if not (regressor or targets.is_floating_point()):
                return None
            parts.append(targets)
    return _texts(parts)


def _texts(parts: Sequence[Tensor]) -> np.ndarray:
    return np.asarray([f"{x:.3g}" for part in parts for x in part.flatten().tolist()], object)
