"""Weights on the way of training, and a problem at other weights than its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bif.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights on the way of training, and the updates that they stand for.

    Attributes:
        weights: Every trained parameter, and the buffers that differ, by name: a state dict.
        learning_rate: Mean learning rate of these updates on the gradient of the mean loss;
            with momentum, divided by `1 - momentum`.
        num_steps: Number of these updates.

    Raises:
        ValueError: A learning rate that is not positive; no update.
    """

    weights: Mapping[str, Tensor]
    learning_rate: float
    num_steps: int

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate!r}; expected a positive number: the mean "
                "over the updates that the checkpoint stands for."
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps!r}; expected at least 1.")

    @property
    def duration(self) -> float:
        """`learning_rate · num_steps`: the length of gradient flow, in 1/curvature."""
        return self.learning_rate * self.num_steps


def at_checkpoint(problem: Problem, checkpoint: Checkpoint) -> Problem:
    """Return the same problem at a checkpoint's weights; frozen parameters may be left out.

    Raises:
        ValueError: Weights of another model.
    """
    return problem.at_weights(checkpoint.weights)


def require_checkpoints(problem: Problem, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise unless there are checkpoints, each of the problem's model.

    Raises:
        ValueError: None, or one of another model, by its number.
        TypeError: One that is no `Checkpoint`.
    """
    if not len(checkpoints):
        raise ValueError("checkpoints is empty: expected at least one, in the order of training.")
    for number, checkpoint in enumerate(checkpoints):
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"checkpoint {number} is a {type(checkpoint).__name__}; expected "
                "Checkpoint(weights, learning_rate, num_steps)."
            )
        try:
            problem.require_weights(checkpoint.weights)
        except ValueError as error:
            raise ValueError(f"checkpoint {number}: {error}") from error


def duration_shares(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Return each checkpoint's share of the learning rate times steps of all."""
    total = sum(one.duration for one in checkpoints)
    return [one.duration / total for one in checkpoints]
