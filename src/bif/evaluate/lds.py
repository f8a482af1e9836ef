"""The linear datamodeling score (LDS): do scores predict retraining?

Park et al. 2023 (TRAK, arXiv 2303.14186), Definition 2.3. Retrain on M random subsets, measure
an outcome of each query, predict it by the sum of the scores over the subset, and correlate the
ranks over subsets. The prediction moves the way the outcome moves, whichever way is better: no
sign is flipped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.ceiling import check_outcomes, noise_ceiling
from bif.evaluate.resampling import interval, require_finite, resampled_correlations


@dataclass(frozen=True, eq=False)
class LDSResult:
    """An LDS with its interval.

    Attributes:
        mean: Mean of `per_query`.
        per_query: Spearman correlation over subsets, float64 [Q].
        ci_low: Lower end of the bootstrap interval of `mean`.
        ci_high: Upper end.
        ceiling: Seed-noise ceiling of `mean`; nan where there is one seed only.
        num_queries: Q.
        num_subsets: M.
        num_seeds: S.
    """

    mean: float
    per_query: np.ndarray
    ci_low: float
    ci_high: float
    ceiling: float
    num_queries: int
    num_subsets: int
    num_seeds: int

    @property
    def share_of_ceiling(self) -> float:
        """`mean / ceiling`; nan where the ceiling is unknown or 0."""
        return self.mean / self.ceiling if self.ceiling > 0 else float("nan")


@dataclass(frozen=True)
class PairedDifference:
    """LDS of scores a minus LDS of scores b, with the interval of the difference.

    Attributes:
        mean: The difference.
        ci_low: Lower end of its bootstrap interval; above 0 means that a is better.
        ci_high: Upper end.
    """

    mean: float
    ci_low: float
    ci_high: float


def predict(scores: Any, masks: Any) -> np.ndarray:
    """Predict outcomes of subsets: `sum_{i in S_m} scores[q, i]`.

    Args:
        scores: [Q, N].
        masks: bool [M, N].

    Returns:
        Predictions, float64 [Q, M].

    Raises:
        ValueError: If shapes do not fit, masks are not bool, or a score is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    masks = np.asarray(masks)
    if masks.ndim != 2 or masks.dtype != np.bool_:
        raise ValueError(
            f"masks have shape {masks.shape} and dtype {masks.dtype}; expected bool [M, N]."
        )
    if scores.ndim != 2 or scores.shape[1] != masks.shape[1]:
        raise ValueError(
            f"scores have shape {scores.shape}; expected [Q, {masks.shape[1]}], one row per "
            f"query and one column for each of the {masks.shape[1]} items of the masks."
        )
    require_finite(scores, "scores")
    return scores @ masks.T.astype(np.float64)


def lds(
    scores: Any,
    masks: Any,
    outcomes: Any,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LDSResult:
    """Return the linear datamodeling score with a bootstrap interval and its noise ceiling.

    `mean_q Spearman_m( sum_{i in S_m} scores[q, i], mean_s outcomes[s, m, q] )`, average ranks
    for ties. A query whose outcome or prediction is the same for every subset has correlation 0.
    The interval holds the percentiles of resamples of queries and subsets, both (Owen 2007, "The
    pigeonhole bootstrap", which is conservative), with ranks taken anew in every resample. Drawing
    a subset twice lowers a rank correlation by O(1/M); the interval is shifted by that bias.

    Args:
        scores: [Q, N], signed as the outcome: positive = the outcome rises with the item.
        masks: bool [M, N], all subsets of one size.
        outcomes: [S, M, Q] for S seeds, or [M, Q].
        num_bootstrap: Number of resamples.
        confidence: Probability that the interval is to cover.
        seed: Seed of the resampling.

    Returns:
        An `LDSResult`.

    Raises:
        ValueError: If shapes do not fit, subsets differ in size, values are not finite, there
            are fewer than two subsets, or `num_bootstrap` or `confidence` make no sense.
    """
    predictions = {"": _check_predictions(scores, masks, _mean_over_seeds(outcomes))}
    return _compare(
        predictions, outcomes, num_bootstrap=num_bootstrap, confidence=confidence, seed=seed
    )[0][""]


def compare(
    scores: Mapping[str, Any],
    masks: Any,
    outcomes: Any,
    *,
    against: str | None = None,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, LDSResult], dict[str, PairedDifference]]:
    """Return the `lds` of many scores and their paired differences, by the same resamples.

    All meet the same resampled queries and subsets, so that what makes these hard for two methods
    cancels in their difference `lds(scores[name]) - lds(scores[against])`. Each interval is for
    its own pair: with many methods, expect one in twenty to miss 0 by chance.

    Args:
        scores: Name -> [Q, N].
        masks: As in `lds`.
        outcomes: As in `lds`.
        against: The name that the others are compared with; nothing is if None.
        num_bootstrap: As in `lds`.
        confidence: As in `lds`.
        seed: As in `lds`.

    Returns:
        Name -> `LDSResult`, and name -> `PairedDifference` of the others.

    Raises:
        ValueError: As `lds`, or if there is none named `against`.
    """
    if against is not None and against not in scores:
        raise ValueError(f"scores are of {list(scores)}; expected {against!r} among them.")
    outcomes_QM = _mean_over_seeds(outcomes)
    predictions = {
        name: _named_predictions(name, matrix, masks, outcomes_QM)
        for name, matrix in scores.items()
    }
    return _compare(
        predictions, outcomes, against=against, num_bootstrap=num_bootstrap, confidence=confidence,
        seed=seed,
    )  # fmt: skip


def _mean_over_seeds(outcomes: Any) -> np.ndarray:
    """Return outcomes [Q, M]."""
    return check_outcomes(outcomes).mean(axis=0).T


def _compare(
    predictions: Mapping[str, np.ndarray],
    outcomes: Any,
    *,
    against: str | None = None,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> tuple[dict[str, LDSResult], dict[str, PairedDifference]]:
    """Return results and differences of predictions [Q, M], all by the same resamples."""
    outcomes_SMQ = check_outcomes(outcomes)
    num_seeds, num_subsets, num_queries = outcomes_SMQ.shape
    per_query, resampled = resampled_correlations(
        list(predictions.values()), _mean_over_seeds(outcomes), num_bootstrap=num_bootstrap,
        seed=seed,
    )  # fmt: skip
    ceiling = noise_ceiling(outcomes_SMQ)
    base = None if against is None else list(predictions).index(against)
    results, differences = {}, {}
    for p, name in enumerate(predictions):
        mean = float(per_query[p].mean())
        low, high = interval(resampled[p], mean, confidence)
        results[name] = LDSResult(
            mean, per_query[p], low, high, ceiling, num_queries, num_subsets, num_seeds
        )
        if base is not None and p != base:
            mean = float((per_query[p] - per_query[base]).mean())
            low, high = interval(resampled[p] - resampled[base], mean, confidence)
            differences[name] = PairedDifference(mean, low, high)
    return results, differences


def _named_predictions(name: str, scores: Any, masks: Any, outcomes_QM: np.ndarray) -> np.ndarray:
    """Return what `_check_predictions` does, with errors that name the scores."""
    try:
        return _check_predictions(scores, masks, outcomes_QM)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_predictions(scores: Any, masks: Any, outcomes_QM: np.ndarray) -> np.ndarray:
    """Return predictions [Q, M]; those that differ by rounding only are made equal."""
    predictions = predict(scores, masks)
    if predictions.shape != outcomes_QM.shape:
        raise ValueError(
            f"scores and masks predict {predictions.shape[0]} queries and {predictions.shape[1]} "
            f"subsets, but the outcomes hold {outcomes_QM.shape[0]} queries and "
            f"{outcomes_QM.shape[1]} subsets; expected outcomes [S, M, Q] or [M, Q]."
        )
    sizes = np.asarray(masks).sum(axis=1)
    if sizes.min() != sizes.max():
        raise ValueError(
            f"subsets hold between {sizes.min()} and {sizes.max()} items; expected one size, as "
            "from random_subsets or leave_out. Evaluate each size on its own."
        )
    magnitude = np.abs(np.asarray(scores, dtype=np.float64)).sum(axis=1)
    num_items = np.asarray(masks).shape[1]
    # |computed sum - exact sum| <= N eps sum|terms|: a smaller spread carries no information
    constant = np.ptp(predictions, axis=1) <= 2 * num_items * np.finfo(float).eps * magnitude
    predictions[constant] = 0.0
    return predictions
