"""Bootstrap intervals: resamples as counts, so that everything compared meets the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Correlation = Literal["spearman", "pearson"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over queries with its interval.

    Attributes:
        mean: Mean of `per_query`.
        per_query: float64 [Q].
        ci_low: Lower end of the bootstrap interval of `mean`.
        ci_high: Upper end.
    """

    mean: float
    per_query: np.ndarray
    ci_low: float
    ci_high: float


def require_finite(values: np.ndarray, name: str) -> None:
    """Raise a ValueError that counts and places the NaN and infinite values, if there are any."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name} hold {int(bad.sum())} NaN or infinite of {values.size} values, the first at "
            f"{tuple(int(k) for k in np.argwhere(bad)[0])}; expected finite numbers. Leave out "
            "what failed, or mend it, before evaluating."
        )


def require_confidence(confidence: float) -> None:
    """Raise a ValueError unless `confidence` is a number between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95."
        )


def resample_counts(num_units: int, num_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each resample holds each unit, int [R, num_units].

    Raises:
        ValueError: If there is no resample.
    """
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap is {num_bootstrap}; expected at least 1 resample.")
    return rng.multinomial(num_units, np.full(num_units, 1 / num_units), num_bootstrap)


def interval(resampled: np.ndarray, mean: float, confidence: float) -> tuple[float, float]:
    """Return percentiles of resamples [R], shifted so that these have the mean of the sample."""
    low, high = intervals(resampled, np.asarray(mean), confidence)
    return float(low), float(high)


def intervals(
    resampled: np.ndarray, means: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper ends […] of resamples [R, …] of means […], as `interval`."""
    require_confidence(confidence)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    shift = means - resampled.mean(axis=0)
    return low + shift, high + shift


def mean_over_queries(
    per_query: Any, *, num_bootstrap: int, confidence: float, seed: int
) -> Estimate:
    """Return the mean of values [Q] with the percentiles of resamples of queries."""
    values = np.asarray(per_query, dtype=np.float64)
    counts = resample_counts(values.size, num_bootstrap, np.random.default_rng(seed))
    mean = float(values.mean())
    return Estimate(mean, values, *interval(counts @ values / values.size, mean, confidence))


def resampled_correlations(
    predictions: list[np.ndarray],
    outcomes_QM: np.ndarray,
    *,
    num_bootstrap: int,
    seed: int,
    kind: Correlation = "spearman",
) -> tuple[np.ndarray, np.ndarray]:
    """Return correlations over M, and their means over Q in resamples of both M and Q.

    Owen 2007, "The pigeonhole bootstrap". Ranks and means are taken anew in every resample. The
    resamples depend on the seed and the shapes alone, so that all predictions share them.

    Args:
        predictions: P arrays [Q, M].
        outcomes_QM: [Q, M].
        num_bootstrap: Number of resamples R.
        seed: Seed of the resampling.
        kind: The kind of correlation.

    Returns:
        Correlations of the sample [P, Q] and means of the resamples [P, R].
    """
    num_queries, num_units = outcomes_QM.shape
    rng = np.random.default_rng(seed)
    unit_counts = resample_counts(num_units, num_bootstrap, rng)
    query_counts = resample_counts(num_queries, num_bootstrap, rng)
    centered = _centered_ranks if kind == "spearman" else _centered_values
    # row 0 is the sample itself: estimate and resamples come out of the same lines
    counts_MR = np.concatenate([np.ones((1, num_units)), unit_counts]).T.copy()
    correlations = np.empty((len(predictions), num_queries, 1 + num_bootstrap))
    for q in range(num_queries):
        outcome = centered(outcomes_QM[q], counts_MR)
        variance = np.einsum("mr,mr,mr->r", counts_MR, outcome, outcome)
        for p, prediction_QM in enumerate(predictions):
            prediction = centered(prediction_QM[q], counts_MR)
            correlations[p, q] = _correlation(prediction, outcome, variance, counts_MR)
    means = np.einsum("rq,pqr->pr", query_counts, correlations[:, :, 1:]) / num_queries
    return correlations[:, :, 0], means


def _centered_ranks(values_M: np.ndarray, counts_MR: np.ndarray) -> np.ndarray:
    """Return average ranks [M, R] of value m in the sample that holds it counts[m, r] times.

    `(#smaller + #smaller-or-equal + 1)/2`, less the mean rank (M+1)/2.
    """
    num_units = values_M.size
    order = np.argsort(values_M, kind="stable")
    ordered = values_M[order]
    below = np.zeros((num_units + 1, counts_MR.shape[1]))
    np.cumsum(counts_MR[order], axis=0, out=below[1:])
    smaller = below[np.searchsorted(ordered, values_M, side="left")]
    smaller_or_equal = below[np.searchsorted(ordered, values_M, side="right")]
    return (smaller + smaller_or_equal - num_units) / 2


def _centered_values(values_M: np.ndarray, counts_MR: np.ndarray) -> np.ndarray:
    """Return values less their mean in each sample [M, R]; rounding becomes 0."""
    values = values_M - values_M.mean()
    # the values themselves are exact to eps, a sum of M of what is left to M eps
    eps = np.finfo(float).eps
    rounding = eps * (np.abs(values_M).max() + 2 * values_M.size * np.abs(values).max())
    centered = values[:, None] - values @ counts_MR / values_M.size
    centered[np.abs(centered) <= rounding] = 0.0
    return centered


def _correlation(
    a_MR: np.ndarray, b_MR: np.ndarray, variance_b: np.ndarray, counts_MR: np.ndarray
) -> np.ndarray:
    """Return Pearson's correlation [R] of centred columns with weights; 0 if one is constant."""
    weighted = counts_MR * a_MR
    covariance = np.einsum("mr,mr->r", weighted, b_MR)
    variance_a = np.einsum("mr,mr->r", weighted, a_MR)
    scale = np.sqrt(variance_a * variance_b)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
