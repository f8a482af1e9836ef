"""How well a score ranks the items that are known to be mislabelled."""

from __future__ import annotations

from typing import Any

import numpy as np


def auroc(scores: Any, positives: Any) -> float:
    """Return the area under the receiver operating characteristic.

    The probability that a random positive item scores above a random negative one, ties
    counting one half: `(R - P(P+1)/2) / (P (N-P))` with R the sum of the average ranks of the P
    positives among N items (the Mann-Whitney statistic).

    Args:
        scores: Scores [N]; higher = more suspicious, as those of `run.suspects().scores`.
            `run.influence.self_influence()` is the other way round, and refused.
        positives: True for the items to be found, bool [N].

    Returns:
        A number between 0 and 1; 0.5 is chance.

    Raises:
        ValueError: If the shapes differ, a score is NaN, only one class is present, or the scores
            are self-influences.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    from scipy.stats import mannwhitneyu

    named = getattr(scores, "name", None)  # which negation keeps
    scores = np.asarray(scores, dtype=np.float64)
    if named == "self_influence" and not (scores > 0).any():
        raise ValueError(
            "self-influence is -Var(loss_i), lowest for what is suspicious, and here higher is "
            "more suspicious: pass -scores, or run.suspects().scores['loss']."
        )
    positives = np.asarray(positives)
    if scores.ndim != 1 or positives.shape != scores.shape:
        raise ValueError(
            f"scores have shape {scores.shape} and positives {positives.shape}; expected one "
            "score and one truth value per item, [N] each."
        )
    if positives.dtype != np.bool_:
        raise ValueError(f"positives have dtype {positives.dtype}; expected bool.")
    if np.isnan(scores).any():
        raise ValueError(
            f"scores hold {int(np.isnan(scores).sum())} NaN of {scores.size}; expected numbers. "
            "Find out where they come from before ranking."
        )
    num_positives = int(positives.sum())
    num_negatives = positives.size - num_positives
    if num_positives == 0 or num_negatives == 0:
        raise ValueError(
            f"positives mark {num_positives} of {positives.size} items; the AUROC needs at "
            "least one positive and one negative item. Check how they are marked."
        )
    wins = mannwhitneyu(scores[positives], scores[~positives], method="asymptotic").statistic
    return float(wins / (num_positives * num_negatives))
