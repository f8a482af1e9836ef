"""Leave-one-out: do scores tell what the removal of a single item does?

The oldest test of influence functions (Koh & Liang 2017, arXiv 1703.04730, section 4). Single
removals move a network less than the chance of its training does (Basu et al. 2021,
arXiv 2006.14651; Søgaard et al. 2021, arXiv 2111.04683): read the correlation beside its ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bif.evaluate.ceiling import noise_ceiling
from bif.evaluate.resampling import (
    Correlation,
    Estimate,
    interval,
    require_finite,
    resampled_correlations,
)


@dataclass(frozen=True)
class LeaveOneOut:
    """Correlations of scores with the effects of leaving single items out.

    Attributes:
        pearson: Pearson correlation over items.
        spearman: Spearman correlation over items; the LDS of the leave-one-out subsets.
        ceiling: Seed-noise ceiling of both, exact for Pearson's; nan where there is one seed only.
        num_queries: Q.
        num_items: N.
        num_seeds: S.
    """

    pearson: Estimate
    spearman: Estimate
    ceiling: float
    num_queries: int
    num_items: int
    num_seeds: int


def leave_one_out_correlation(
    scores: Any,
    differences: Any,
    *,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LeaveOneOut:
    """Return the correlation of scores with leave-one-out differences, 1 where they agree.

    To first order leaving item i out changes the outcome by `-scores[q, i]`, so that the
    correlation is that of `-scores[q]` with `mean_s differences[s, q]`, over items. A query whose
    scores or differences are all equal has correlation 0. The intervals hold the percentiles of
    resamples of queries and items, both, shifted as in `lds`.

    Args:
        scores: [Q, N], signed as the outcome: positive = the outcome rises with the item.
        differences: Outcome without the item minus outcome with all items, [S, Q, N] for S seeds,
            or [Q, N]. A constant that is common to all items of a query and seed changes nothing,
            so that outcomes without a baseline serve as well.
        num_bootstrap: Number of resamples.
        confidence: Probability that an interval is to cover.
        seed: Seed of the resampling.

    Returns:
        A `LeaveOneOut`.

    Raises:
        ValueError: If shapes do not fit, values are not finite, there are fewer than two items,
            or `num_bootstrap` or `confidence` make no sense.
    """
    scores_QN, differences_SQN = _check_arrays(scores, differences)
    effects_QN = differences_SQN.mean(axis=0)

    def estimate(kind: Correlation) -> Estimate:
        per_query, resampled = resampled_correlations(
            [-scores_QN], effects_QN, num_bootstrap=num_bootstrap, seed=seed, kind=kind
        )
        mean = float(per_query[0].mean())
        return Estimate(mean, per_query[0], *interval(resampled[0], mean, confidence))

    num_seeds, num_queries, num_items = differences_SQN.shape
    return LeaveOneOut(
        pearson=estimate("pearson"),
        spearman=estimate("spearman"),
        ceiling=noise_ceiling(differences_SQN.swapaxes(1, 2)),
        num_queries=num_queries,
        num_items=num_items,
        num_seeds=num_seeds,
    )


def _check_arrays(scores: Any, differences: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [Q, N] and differences [S, Q, N]."""
    scores, differences = (np.asarray(x, dtype=np.float64) for x in (scores, differences))
    if differences.ndim == 2:
        differences = differences[None]
    if scores.ndim != 2 or differences.shape[1:] != scores.shape or scores.shape[1] < 2:
        raise ValueError(
            f"scores have shape {scores.shape} and differences {differences.shape}; expected "
            "[Q, N] and [S, Q, N] or [Q, N], with at least two items."
        )
    require_finite(scores, "scores")
    require_finite(differences, "differences")
    return scores, differences
