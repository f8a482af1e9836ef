"""The untempered posterior: how many observations the losses of the train items stand for."""

from __future__ import annotations

from bif.problem import Problem

_AT_ONCE = 4096
"""Items whose parts are counted together."""


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
