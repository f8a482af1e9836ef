"""Bayesian influence functions: which training data made this model do that, and how sure are we?

import bif
problem = bif.Problem(model, bif.losses.cross_entropy, train=(x, y), queries=(qx, qy))
run = bif.attribute(problem)
print(run.influence.top(0, k=5))
"""

__version__ = "0.1.0"

from bif import estimate, evaluate, losses, response, samplers
from bif.attribute import attribute
from bif.calibrate import Calibration, calibrate
from bif.chains import run_chains
from bif.crosscheck import CrossChecks, cross_check
from bif.growth import extend
from bif.influence import Influence
from bif.items import Items
from bif.merge import merge
from bif.posterior import LocalPosterior
from bif.problem import MARGIN, Observable, Problem
from bif.proxy import Proxy, known_proxy
from bif.ranking import Ranking, Score
from bif.response import Response, respond
from bif.run import Run, load
from bif.settings import Settings
from bif.traces import LossTraces
from bif.tune import Tuned, tune

__all__ = [
    "MARGIN",
    "Calibration",
    "CrossChecks",
    "Influence",
    "Items",
    "LocalPosterior",
    "LossTraces",
    "Observable",
    "Problem",
    "Proxy",
    "Ranking",
    "Response",
    "Run",
    "Score",
    "Settings",
    "Tuned",
    "attribute",
    "calibrate",
    "cross_check",
    "estimate",
    "evaluate",
    "extend",
    "known_proxy",
    "load",
    "losses",
    "merge",
    "respond",
    "response",
    "run_chains",
    "samplers",
    "tune",
]
