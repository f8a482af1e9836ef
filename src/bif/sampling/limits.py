"""Limit how far a chain may go."""

from __future__ import annotations

import math

from bif.sampling.engine import Engine


def distance_limit(engine: Engine) -> float:
    """Return `|w - w*|²` that no chain reaches while it samples the posterior.

    With losses ≥ 0, `gamma · E|w - w*|²` is at most about `2·nbeta·L(w*)`, all the loss there
    is to lose, plus the number of moving weights; a hundred times that is far out.  Without
    gamma only NaN and infinity tell.
    """
    s = engine.settings
    if not s.gamma:
        return math.inf
    items = sum(len(group) for group in engine.problem.scored_groups.values())
    to_lose = 2 * s.nbeta * abs(float(engine.observer.train_center.double().sum())) / items
    return 100 * (engine.posterior.num_moving + 25 + to_lose) / s.gamma
