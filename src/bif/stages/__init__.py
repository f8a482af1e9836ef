"""Influence over the checkpoints of a training: when an item helped, and when it harmed."""

from bif.problem.series import CheckpointSeries, Stage
from bif.stages.result import Trajectory
from bif.stages.run import trajectory
from bif.stages.saving import SaveCheckpoints, log_spaced_steps

__all__ = [
    "CheckpointSeries",
    "SaveCheckpoints",
    "Stage",
    "Trajectory",
    "log_spaced_steps",
    "trajectory",
]
