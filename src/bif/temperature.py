"""How wide the default posterior is: untempered, or as predicts a kind of retraining."""

from __future__ import annotations

from typing import NamedTuple

from bif.problem import Problem
from bif.types import Target


class Width(NamedTuple):
    """Factors on the untempered posterior's nbeta, and on the usual gamma/nbeta."""

    nbeta: float = 1.0
    damping: float = 1.0


WIDTHS: dict[Target, Width] = {"scratch": Width(0.25), "checkpoint": Width(4.0, 0.25)}
"""Networks retrained from scratch end up far from w*, as a warm posterior in a wide ball does;
those retrained from w* stay near, as a cold one in the usual ball.  Measured, not derived, see
docs/calibration.md.
"""
_AT_ONCE = 4096
"""Items whose parts are counted together."""


def default_nbeta(problem: Problem, retrained_from: Target | None) -> tuple[float, str]:
    """What calibration takes where nbeta is open, and why.

    Args:
        problem: What is to be attributed.
        retrained_from: What the scores are to predict, if that was said.
    """
    nbeta, why = untempered(problem)
    if retrained_from is None:
        return nbeta, why
    factor = WIDTHS[retrained_from].nbeta
    return factor * nbeta, f"{factor:g} times {why}, for networks retrained from {retrained_from}"


def damping_factor(retrained_from: Target | None) -> float:
    """On the gamma/nbeta that calibration takes otherwise."""
    return 1.0 if retrained_from is None else WIDTHS[retrained_from].damping


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
