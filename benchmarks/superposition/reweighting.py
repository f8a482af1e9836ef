"""One feature's items at half weight for a while before a stage: what comes of the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.superposition.scores import OBSERVABLES, Help
from benchmarks.superposition.stages import REPRESENTED, Stage, checkpoint_at
from benchmarks.superposition.timing import step_above
from benchmarks.superposition.toy import FEATURES, Path, train

WEIGHT = 0.5
"""Of the items within the window.  Without them altogether most features never come in."""
PREDICTORS = ("influence", "influence, Hessian", "gradient product")
"""Ways that are asked for the delays; the last is what the others are set beside."""


def reweight(seed: int, steps: int, device: str, stages: Sequence[Stage]) -> Path:
    """Train anew for each stage and feature, with the feature's items down-weighted before it."""
    count = len(FEATURES)
    kept = torch.ones(len(stages), count, steps, count, dtype=torch.float64)
    for row, stage in zip(kept, stages, strict=True):
        for j in range(count):
            row[j, slice(*stage.window), j] = WEIGHT
    return train(seed, steps, device, kept.flatten(0, 1))


def delays(changed: Path, stages: Sequence[Stage]) -> np.ndarray:
    """Return the logarithm of a stage's step by that without re-weighting, `[S, 5]`.

    A stage is past when its column is, for good, above half the size that it finally has without
    re-weighting; one that is not past at the end counts as then.
    """
    sizes = changed.sizes().cpu().numpy()
    sizes = sizes.reshape(len(sizes), len(stages), len(FEATURES), len(FEATURES))
    steps = range(len(sizes))
    return np.array([
        [np.log(step_above(steps, sizes[:, s, j, stage.feature], stage.size) / stage.size_half)
         for j in range(len(FEATURES))]
        for s, stage in enumerate(stages)
    ])  # fmt: skip


def orders_changed(changed: Path, path: Path, stages: Sequence[Stage]) -> np.ndarray:
    """Return whether the features come in another order than without re-weighting, `[S, 5]`."""
    steps = range(len(path.W))

    def order(sizes: np.ndarray) -> list[int]:
        at = [step_above(steps, sizes[:, j], REPRESENTED) for j in range(len(FEATURES))]
        return list(np.argsort(at, kind="stable"))

    before = order(path.sizes()[:, 0].cpu().numpy())
    rows = changed.sizes().cpu().numpy().swapaxes(0, 1)
    found = [order(sizes) != before for sizes in rows]
    return np.array(found).reshape(len(stages), len(FEATURES))


def effects(
    stage: Stage, delay: np.ndarray, reordered: np.ndarray, steps: Sequence[int], helps: Help
) -> dict[str, Any]:
    """Return what influence at the begin of a stage's window says, and what came of it.

    The feature of the largest influence on the loss is set beside all others, and the one whose
    items harm the column's size most beside the others that remain.

    Args:
        stage: The stage.
        delay: By re-weighting each feature's items, `[5]`.
        reordered: Whether this changed the order of the features, `[5]`.
        steps: Of the checkpoints.
        helps: How much items help, by each way.
    """
    k, j = checkpoint_at(steps, stage.window[0]), stage.feature
    told = {asked: helps["influence"][asked][k, j] for asked in OBSERVABLES}
    top = int(np.argmax(np.abs(told["loss"])))
    rival = min((i for i in range(len(delay)) if i != j), key=lambda i: told["size"][i])
    beside_top = [i for i in range(len(delay)) if i != top]
    beside_rival = [i for i in range(len(delay)) if i not in (j, rival)]
    return {
        "feature": FEATURES[j], "window": list(stage.window),
        "told": {asked: scores.tolist() for asked, scores in told.items()},
        "delay": delay.tolist(), "reordered": reordered.tolist(),
        "top": FEATURES[top], "rival": FEATURES[rival],
        "top, share of stages, its own": float(top == j),
        "top, share of stages, sign as told": float(delay[top] * told["loss"][top] > 0),
        "top, share of stages, never comes": float(
            stage.size_half * np.exp(delay[top]) > steps[-1] - 1
        ),
        "top, delay": delay[top], "top, delay of others": delay[beside_top].mean(),
        "top, delay beyond": delay[top] - delay[beside_top].mean(),
        "top, order changes": float(reordered[top]),
        "top, order changes by others": float(reordered[beside_top].mean()),
        "top, order changes beyond": reordered[top] - reordered[beside_top].mean(),
        "rival, delay": delay[rival],
        "rival, delay beyond": delay[rival] - delay[beside_rival].mean(),
        "delays told": _delays_told(k, j, delay, helps),
    }  # fmt: skip


def _delays_told(k: int, j: int, delay: np.ndarray, helps: Help) -> list[dict[str, Any]]:
    """Return rank correlations of the delays with what each way says at a checkpoint.

    Over all features, and over the features other than the stage's.
    """
    from scipy.stats import spearmanr

    def correlation(told: np.ndarray, came: np.ndarray) -> float:
        return float(np.asarray(spearmanr(told, came))[0])

    rows, others = [], [i for i in range(len(delay)) if i != j]
    for way in PREDICTORS:
        for asked in OBSERVABLES:
            told = helps[way][asked][k, j]
            rows.append({
                "way": way, "asked": asked, "all": correlation(told, delay),
                "others": correlation(told[others], delay[others]),
            })  # fmt: skip
    return rows
