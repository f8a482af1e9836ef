"""The linear datamodeling score (LDS): do scores predict retraining?

Park et al. 2023 (TRAK, arXiv 2303.14186), Definition 2.3. Retrain on M random subsets, measure
an outcome of each query, predict it by the sum of the scores over the subset, and correlate the
ranks over subsets. The prediction moves the way the outcome moves, whichever way is better: no
sign is flipped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


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
    """Predicts outcomes of subsets: `sum_{i in S_m} scores[q, i]`.

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
    _require_finite(scores, "scores")
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
    """Returns the linear datamodeling score with a bootstrap interval and its noise ceiling.

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
    outcomes_SMQ = _check_outcomes(outcomes)
    outcomes_QM = outcomes_SMQ.mean(axis=0).T
    predictions_QM = _check_predictions(scores, masks, outcomes_QM)
    per_query, resampled = _bootstrap(
        [predictions_QM], outcomes_QM, num_bootstrap=num_bootstrap, seed=seed
    )
    low, high = _interval(resampled[0], per_query[0].mean(), confidence)
    num_seeds, num_subsets, num_queries = outcomes_SMQ.shape
    return LDSResult(
        mean=float(per_query[0].mean()),
        per_query=per_query[0],
        ci_low=low,
        ci_high=high,
        ceiling=noise_ceiling(outcomes_SMQ),
        num_queries=num_queries,
        num_subsets=num_subsets,
        num_seeds=num_seeds,
    )


def paired_difference(
    scores_a: Any,
    scores_b: Any,
    masks: Any,
    outcomes: Any,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Returns `lds(scores_a) - lds(scores_b)` with an interval from common resamples.

    Both scores meet the same resampled queries and subsets, so that what makes subsets or
    queries hard for both cancels.

    Args:
        scores_a: [Q, N].
        scores_b: [Q, N].
        masks: As in `lds`.
        outcomes: As in `lds`.
        num_bootstrap: As in `lds`.
        confidence: As in `lds`.
        seed: As in `lds`; equal seeds resample equally.

    Returns:
        A `PairedDifference`.

    Raises:
        ValueError: As `lds`.
    """
    outcomes_QM = _check_outcomes(outcomes).mean(axis=0).T
    predictions = [_check_predictions(s, masks, outcomes_QM) for s in (scores_a, scores_b)]
    per_query, resampled = _bootstrap(
        predictions, outcomes_QM, num_bootstrap=num_bootstrap, seed=seed
    )
    mean = float((per_query[0] - per_query[1]).mean())
    low, high = _interval(resampled[0] - resampled[1], mean, confidence)
    return PairedDifference(mean, low, high)


def noise_ceiling(outcomes: Any) -> float:
    """Returns the LDS that a perfect predictor of the expected outcome would reach.

    `sqrt( S r / (1 + (S-1) r) )`, with r the Pearson correlation over subsets of two seeds'
    outcomes, averaged over pairs of seeds and over queries (Spearman-Brown). Exact for Pearson's
    correlation and 1-2 % optimistic for Spearman's. A constant outcome correlates 0; an average
    r below 0 gives 0.

    Args:
        outcomes: [S, M, Q] for S seeds, M subsets, Q queries.

    Returns:
        The ceiling, between 0 and 1; nan for a single seed.

    Raises:
        ValueError: If outcomes are not finite or not [S, M, Q] with at least two subsets.
    """
    outcomes = _check_outcomes(outcomes)
    num_seeds = outcomes.shape[0]
    if num_seeds == 1:
        return float("nan")
    centered = outcomes - outcomes.mean(axis=1, keepdims=True)
    centered[np.broadcast_to(np.ptp(outcomes, axis=1, keepdims=True) == 0, centered.shape)] = 0
    norm = np.sqrt((centered**2).sum(axis=1, keepdims=True))
    unit = np.divide(centered, norm, out=np.zeros_like(centered), where=norm > 0)
    # sum over pairs s != t of <u_s, u_t> = |sum_s u_s|^2 - sum_s |u_s|^2
    pairs = (unit.sum(axis=0) ** 2).sum(axis=0) - (unit**2).sum(axis=(0, 1))
    correlation = max(float(pairs.mean()) / (num_seeds * (num_seeds - 1)), 0.0)
    reliability = num_seeds * correlation / (1 + (num_seeds - 1) * correlation)
    return float(np.sqrt(min(reliability, 1.0)))


def _check_outcomes(outcomes: Any) -> np.ndarray:
    """Returns outcomes as float64 [S, M, Q]."""
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim == 2:
        outcomes = outcomes[None]
    if outcomes.ndim != 3 or 0 in outcomes.shape or outcomes.shape[1] < 2:
        raise ValueError(
            f"outcomes have shape {outcomes.shape}; expected [S, M, Q] (seeds, subsets, queries) "
            "or [M, Q] with at least two subsets."
        )
    _require_finite(outcomes, "outcomes")
    return outcomes


def _check_predictions(scores: Any, masks: Any, outcomes_QM: np.ndarray) -> np.ndarray:
    """Returns predictions [Q, M]; those that differ by rounding only are made equal."""
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


def _require_finite(values: np.ndarray, name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name} hold {int(bad.sum())} NaN or infinite of {values.size} values, the first at "
            f"{tuple(int(k) for k in np.argwhere(bad)[0])}; expected finite numbers. Leave out "
            "what failed, or mend it, before evaluating."
        )


def _interval(resampled: np.ndarray, mean: float, confidence: float) -> tuple[float, float]:
    """Percentiles of the resamples, shifted so that these have the mean of the sample."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95."
        )
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    shift = mean - resampled.mean()
    return float(low + shift), float(high + shift)


def _bootstrap(
    predictions: list[np.ndarray], outcomes_QM: np.ndarray, *, num_bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns per-query correlations [P, Q] and resampled means [P, R] of P predictions."""
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap is {num_bootstrap}; expected at least 1 resample.")
    num_queries, num_subsets = outcomes_QM.shape
    rng = np.random.default_rng(seed)
    subset_counts = rng.multinomial(
        num_subsets, np.full(num_subsets, 1 / num_subsets), num_bootstrap
    )
    query_counts = rng.multinomial(
        num_queries, np.full(num_queries, 1 / num_queries), num_bootstrap
    )
    # row 0 is the sample itself: estimate and resamples come out of the same lines
    counts_MR = np.concatenate([np.ones((1, num_subsets)), subset_counts]).T.copy()
    correlations = np.empty((len(predictions), num_queries, 1 + num_bootstrap))
    for q in range(num_queries):
        outcome_ranks = _centered_ranks(outcomes_QM[q], counts_MR)
        for p, prediction_QM in enumerate(predictions):
            prediction_ranks = _centered_ranks(prediction_QM[q], counts_MR)
            correlations[p, q] = _correlation(prediction_ranks, outcome_ranks, counts_MR)
    means = np.einsum("rq,pqr->pr", query_counts, correlations[:, :, 1:]) / num_queries
    return correlations[:, :, 0], means


def _centered_ranks(values_M: np.ndarray, counts_MR: np.ndarray) -> np.ndarray:
    """Average ranks [M, R] of value m in the sample that holds it counts[m, r] times.

    `(#smaller + #smaller-or-equal + 1)/2`, less the mean rank (M+1)/2.
    """
    num_subsets = values_M.size
    order = np.argsort(values_M, kind="stable")
    ordered = values_M[order]
    below = np.zeros((num_subsets + 1, counts_MR.shape[1]))
    np.cumsum(counts_MR[order], axis=0, out=below[1:])
    smaller = below[np.searchsorted(ordered, values_M, side="left")]
    smaller_or_equal = below[np.searchsorted(ordered, values_M, side="right")]
    return (smaller + smaller_or_equal - num_subsets) / 2


def _correlation(a_MR: np.ndarray, b_MR: np.ndarray, counts_MR: np.ndarray) -> np.ndarray:
    """Pearson correlation [R] of centred columns with weights; 0 where one is constant."""
    weighted = counts_MR * a_MR
    covariance = np.einsum("mr,mr->r", weighted, b_MR)
    variance_a = np.einsum("mr,mr->r", weighted, a_MR)
    variance_b = np.einsum("mr,mr,mr->r", counts_MR, b_MR, b_MR)
    scale = np.sqrt(variance_a * variance_b)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
