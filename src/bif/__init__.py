"""Bayesian influence functions: which training data made this model do that, and how sure are we?

import bif
problem = bif.Problem(model, bif.losses.cross_entropy, train=(x, y), queries=(qx, qy))
run = bif.attribute(problem)
print(run.influence.top(0, k=5))
"""

__version__ = "0.1.0"

from bif import baselines, estimate, evaluate, losses, response, samplers
from bif.calibration.calibrate import Calibration, calibrate
from bif.calibration.tune import Tuned, tune
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.traces import LossTraces
from bif.kernel import loss_kernel
from bif.problem.items import Items
from bif.problem.metric import adam_metric, gradient_metric
from bif.problem.problem import MARGIN, Observable, Problem
from bif.problem.proxy import Proxy, known_proxy
from bif.response import Response, respond
from bif.results.averages import average
from bif.results.influence import Influence
from bif.results.ranking import Ranking, Score
from bif.runs.attribute import attribute
from bif.runs.average_over_draws import at_draws, average_over_draws
from bif.runs.cross_check import CrossChecks, cross_check
from bif.runs.extend import extend
from bif.runs.merge import merge
from bif.runs.run import Run, load
from bif.runs.streaming import stream_covariance
from bif.sampling.chain import run_chains
from bif.sampling.posterior import LocalPosterior
from bif.sampling.settings import Settings
from bif.stages import CheckpointSeries, SaveCheckpoints, Trajectory, log_spaced_steps, trajectory

__all__ = [
    "MARGIN",
    "Calibration",
    "CheckpointSeries",
    "CrossChecks",
    "Influence",
    "Items",
    "LocalPosterior",
    "LossKernel",
    "LossTraces",
    "Observable",
    "Problem",
    "Proxy",
    "Ranking",
    "Response",
    "Run",
    "SaveCheckpoints",
    "Score",
    "Settings",
    "Trajectory",
    "Tuned",
    "adam_metric",
    "at_draws",
    "attribute",
    "average",
    "average_over_draws",
    "baselines",
    "calibrate",
    "cross_check",
    "estimate",
    "evaluate",
    "extend",
    "gradient_metric",
    "known_proxy",
    "load",
    "log_spaced_steps",
    "loss_kernel",
    "losses",
    "merge",
    "respond",
    "response",
    "run_chains",
    "samplers",
    "stream_covariance",
    "trajectory",
    "tune",
]


def __dir__() -> list[str]:
    """Return the public names alone."""
    return __all__
