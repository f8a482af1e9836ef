"""The costs of both estimators, by pilots."""

from __future__ import annotations

import bif
from bif.response import choose_estimator, measure_costs
from small_problems import classification


def test_pilots_measure_both_costs():
    settings = bif.Settings(chains=8, gamma=20.0, step_size=0.1, friction=6.0, burn_in=20, thin=2)
    fluctuation, response = measure_costs(classification(), settings, h=0.1)
    for cost in (fluctuation, response):
        assert cost.seconds > 0 and 0 < cost.standard_error < 1 and cost.num_queries == 4
    assert choose_estimator(5, fluctuation=fluctuation, response=response).reason
