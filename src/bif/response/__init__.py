"""The response estimator: influence from pairs of chains around each query."""

from bif.response.choice import Choice, Cost, choose_estimator, measure_costs
from bif.response.respond import Response, respond

__all__ = ["Choice", "Cost", "Response", "choose_estimator", "measure_costs", "respond"]
