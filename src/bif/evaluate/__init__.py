"""Does a score predict retraining, and does it find wrong labels? Pure functions of arrays."""

from bif.evaluate.lds import (
    LDSResult,
    PairedDifference,
    lds,
    noise_ceiling,
    paired_difference,
    predict,
)
from bif.evaluate.mislabel import auroc
from bif.evaluate.retrain import Recipe, retrain, train
from bif.evaluate.subsets import leave_out, random_subsets

__all__ = [
    "LDSResult",
    "PairedDifference",
    "Recipe",
    "auroc",
    "lds",
    "leave_out",
    "noise_ceiling",
    "paired_difference",
    "predict",
    "random_subsets",
    "retrain",
    "train",
]
