"""The default of nbeta: the untempered posterior's, or what predicts a kind of retraining."""

from __future__ import annotations

from bif.problem import Problem
from bif.settings import RetrainedFrom

FACTORS: dict[RetrainedFrom, float] = {"scratch": 0.25, "checkpoint": 4.0}
"""On the untempered posterior's nbeta.  Networks retrained from scratch end up far from w*, as a
warm posterior does; those retrained from w* stay near.  Measured, not derived: docs/calibration.md.
"""
_AT_ONCE = 4096
"""Items whose parts are counted together."""


def default_nbeta(problem: Problem, retrained_from: RetrainedFrom | None) -> tuple[float, str]:
    """What calibration takes where nbeta is open, and why.

    Args:
        problem: What is to be attributed.
        retrained_from: What the scores are to predict, if that was said.
    """
    nbeta, why = untempered(problem)
    if retrained_from is None:
        return nbeta, why
    factor = FACTORS[retrained_from]
    return factor * nbeta, f"{factor:g} times {why}, for networks retrained from {retrained_from}"


def untempered(problem: Problem) -> tuple[float, str]:
    """The nbeta where `nbeta · mean loss` is the train items' negative log-likelihood, and why.

    The number of items, or of a loss that is the mean of several log-likelihoods of an item
    (`bif.losses.averages`), such as one per token, the number of all of these.  Weights of items
    play no part.
    """
    count = getattr(problem.loss, "averages", None)
    if count is None:
        return float(problem.num_train), "the number of train items, the untempered posterior"
    nbeta = float(sum(int(count(batch).sum()) for _, batch in problem.train.chunks(_AT_ONCE)))
    return nbeta, (
        f"the {nbeta:,.0f} tokens or other parts of {problem.num_train:,} train items whose means "
        "are their losses, the untempered posterior"
    )
