"""Banks: networks retrained on subsets of the train items, in memory and on disk.

What a score is judged by, and, apart from it, what its settings are tuned by.
"""

from bif.bank.bank import Bank, BankPart, Purpose
from bif.bank.load import load
from bif.bank.plan import Plan
from bif.bank.retrained import retrained
from bif.bank.trainers import TrainFunction
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
