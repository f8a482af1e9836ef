"""The response estimator: the public name of `bif.linear_response`."""

from bif.runs.estimator_costs import Choice, Cost, choose_estimator, measure_costs
from bif.runs.respond import Response, respond

__all__ = ["Choice", "Cost", "Response", "choose_estimator", "measure_costs", "respond"]
