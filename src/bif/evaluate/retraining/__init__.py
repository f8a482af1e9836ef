"""Banks: networks retrained on subsets of the train items, in memory and on disk.

What a score is judged by, and, apart from it, what its settings are tuned by.
"""

from bif.evaluate.retraining.bank import Bank, BankPart, Purpose
from bif.evaluate.retraining.load import load
from bif.evaluate.retraining.plan import Plan
from bif.evaluate.retraining.retrained import retrained
from bif.evaluate.retraining.trainers import TrainFunction
from bif.types import Target

__all__ = [
    "Bank",
    "BankPart",
    "Plan",
    "Purpose",
    "Target",
    "TrainFunction",
    "load",
    "retrained",
]
