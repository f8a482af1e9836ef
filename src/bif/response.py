"""The response estimator: the public name of `bif.linear_response`."""

from bif.linear_response.choice import Choice, Cost, choose_estimator, measure_costs
from bif.linear_response.respond import Response, respond

__all__ = ["Choice", "Cost", "Response", "choose_estimator", "measure_costs", "respond"]
