"""The response estimator: the public name of what `bif.linear_response` computes.

`bif.runs.respond` composes it, and `bif.calibration.estimator_choice` chooses between it and the
fluctuations of a run.
"""

from bif.calibration.estimator_choice import Cost, choose_estimator
from bif.runs.estimator_costs import measure_costs
from bif.runs.respond import Response, respond
from bif.sampling.choices import Choice

__all__ = ["Choice", "Cost", "Response", "choose_estimator", "measure_costs", "respond"]
