"""Does a score predict retraining, and does it find wrong labels? Pure functions of arrays."""

from bif.evaluate.brittleness import Brittleness, brittleness
from bif.evaluate.lds import (
    LDSResult,
    PairedDifference,
    compare,
    lds,
    noise_ceiling,
    predict,
)
from bif.evaluate.leave_one_out import LeaveOneOut, leave_one_out_correlation
from bif.evaluate.mislabel import auroc
from bif.evaluate.removal import Curve, RemovalCurve, RemovalMasks, removal_curve, removal_masks
from bif.evaluate.resampling import Estimate
from bif.evaluate.retrain import Recipe, retrain, train, train_with_checkpoints
from bif.evaluate.subsets import leave_out, random_subsets
from bif.evaluate.tracing import Tracing, tracing
from bif.evaluate.weighted import retrain_weighted

__all__ = [
    "Brittleness",
    "Curve",
    "Estimate",
    "LDSResult",
    "LeaveOneOut",
    "PairedDifference",
    "Recipe",
    "RemovalCurve",
    "RemovalMasks",
    "Tracing",
    "auroc",
    "brittleness",
    "compare",
    "lds",
    "leave_one_out_correlation",
    "leave_out",
    "noise_ceiling",
    "predict",
    "random_subsets",
    "removal_curve",
    "removal_masks",
    "retrain",
    "retrain_weighted",
    "tracing",
    "train",
    "train_with_checkpoints",
]
