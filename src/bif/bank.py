"""Banks, networks retrained on subsets: the public name of `bif.evaluate.retraining`."""

from bif.evaluate.retraining import (
    Bank,
    BankPart,
    Plan,
    Purpose,
    Target,
    TrainFunction,
    load,
    retrained,
)

__all__ = ["Bank", "BankPart", "Plan", "Purpose", "Target", "TrainFunction", "load", "retrained"]
