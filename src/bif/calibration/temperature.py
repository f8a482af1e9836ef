"""Choose nbeta by how far training went and by what is to be predicted."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from bif.problem.items import Items, batch_leaves
from bif.problem.losses import squared_error
from bif.problem.problem import Problem
from bif.sampling.center_gradient import center_gradient
from bif.sampling.factory import item_weights, make_oracle, make_posterior, run_device
from bif.sampling.settings import Settings
from bif.types import Target

AT_A_MINIMUM: dict[Target | None, float] = {"scratch": 10.0, None: 10.0, "checkpoint": 40.0}
"""Factors on the untempered nbeta where training went to a minimum, by what networks are retrained
from.  Networks trained on other items end near it, as the draws of a cold posterior do, and those
retrained from w* stay nearer still.  Measured, not derived: docs/calibration-measured.md."""
SHORT_OF_A_MINIMUM: dict[Target | None, float] = {"scratch": 0.25, None: 1.0, "checkpoint": 40.0}
"""Factors on the untempered nbeta where training stopped short of a minimum.  Networks retrained
from scratch then end elsewhere, as draws of a warm posterior do.  Measured as well."""
FAR = 2.0
"""Squared gradient at w*, in units of its sampling noise, above which w* is no minimum."""
_AT_ONCE = 4096
"""Items whose parts are counted together, and over which the gradient at w* is taken, at most."""


def default_nbeta(problem: Problem, settings: Settings) -> tuple[Settings, str]:
    """Return settings with calibration's nbeta, and the reason.

    Args:
        problem: What is to be attributed.
        settings: Settings with an oracle and a chunk size, nbeta open.
    """
    unit, why = untempered(problem)
    target, there = settings.retrained_from, math.nan
    if settings.memory == "plain":  # elsewhere no gradient is taken
        there = distance_from_minimum(problem, settings)
    far = there > FAR
    factor = (SHORT_OF_A_MINIMUM if far else AT_A_MINIMUM)[target]
    words = f"{factor:g} times {why}" if factor != 1 else why
    # Above 1 a run warns that w* is no minimum.
    near = "near a minimum" if there > 1 else "at a minimum"
    where = "short of a minimum of the training objective" if far else near
    measured = f"squared gradient {there:.2g} times its noise"
    known = "taken for granted" if math.isnan(there) else measured
    words += f", since training stopped {where} ({known})"
    if target is not None:
        words += f", for networks retrained from {target}"
    return replace(settings, nbeta=factor * unit, retrained_from=None), words


def untempered(problem: Problem) -> tuple[float, str]:
    """Return the nbeta in whose units the default is, and the reason.

    It is the number of items where an item's loss is its own negative log-likelihood.  Where a loss
    is a mean over parts of an item (`bif.losses.averages`), such as tokens, it is the number of all
    parts.  With squared errors it is the number of items over the variance of their targets, so
    that the unit of the targets plays no part.  Weights of items play none either.
    """
    count = getattr(problem.loss, "averages", None)
    if count is not None:
        nbeta = float(sum(int(count(batch).sum()) for _, batch in problem.train.chunks(_AT_ONCE)))
        return nbeta, (
            f"the {nbeta:,.0f} tokens or other parts of {problem.num_train:,} train items whose "
            "means are their losses, the untempered posterior"
        )
    if problem.loss is squared_error:
        variance = _target_variance(problem)
        if variance > 0:
            return problem.num_train / variance, (
                f"the number of train items over the variance of their targets, {variance:.4g}"
            )
    return float(problem.num_train), "the number of train items, the untempered posterior"


def _target_variance(problem: Problem) -> float:
    """Return the variance of targets over train items, the mean over outputs."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for _, batch in problem.train.chunks(_AT_ONCE):
        *_, targets = batch_leaves(batch).values()
        rows = targets.detach().cpu().double().reshape(len(targets), -1)
        if not count:
            first = rows[:1]
        rows = rows - first  # a large offset would cost the variance its digits
        count, total, squares = count + len(rows), total + rows.sum(0), squares + (rows**2).sum(0)
    return float((squares / count - (total / count) ** 2).clamp(min=0).mean())


def distance_from_minimum(problem: Problem, settings: Settings) -> float:
    """Return how far w* is from a minimum of the training objective, as `center_gradient` has it.

    Args:
        problem: What is to be attributed.
        settings: Settings with an oracle and a chunk size.
    """
    s = replace(settings, retrained_from=None, nbeta=1.0, gamma=1.0).plain()
    posterior = make_posterior(problem, s)
    oracle = make_oracle(problem, s, list(posterior.center))
    device = run_device(problem, s)
    order = torch.randperm(problem.num_train, generator=torch.Generator().manual_seed(0))
    chosen = order[:_AT_ONCE].sort().values
    items = Items(problem.train.take(chosen)).to(device)
    weights = item_weights(problem, next(iter(posterior.center.values())))[chosen.to(device)]
    assert s.chunk_size is not None
    chunk = len(items) if s.oracle == "live" else s.chunk_size
    with torch.no_grad():
        found = center_gradient(oracle, posterior, items, weights, chunk_size=chunk)
    # The noise of a mean over fewer items is larger than that of all.
    return max(0.0, (found - 1) * problem.num_train / len(items) + 1) if found > 1 else found
