"""How a network is trained, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: `torch.optim.SGD`, step by step.

    Minimises `mean_{i in batch} l_i(w) + (weight_decay/2) |w|^2`.

    Attributes:
        steps: Number of weight updates.
        learning_rate: Step on the gradient of the mean loss, at the first update.
        momentum: Share of the last update direction that is kept; no dampening, no Nesterov.
        weight_decay: Coefficient of the weights in the gradient, on the scale of the mean loss.
        batch_size: Items per update; None takes the whole subset. Batches run through a fresh
            shuffle of the subset in every epoch; the last, incomplete batch is dropped.
        schedule: "constant", or "cosine": `learning_rate (1 + cos(pi t / steps)) / 2` at update
            t = 0, 1, …, as `CosineAnnealingLR` with `T_max=steps`.

    Raises:
        ValueError: If a number is out of range or the schedule is unknown.
    """

    steps: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        ranges = {
            "steps": (self.steps >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1, or None"),
            "schedule": (self.schedule in ("constant", "cosine"), '"constant" or "cosine"'),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def as_dict(self) -> dict[str, Any]:
        """Return numbers and strings that JSON can hold, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Recipe:
        """Return the recipe of what `as_dict` returned, JSON or not.

        Raises:
            ValueError: Unknown or missing names, or values that make no recipe.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(found) - known)
        if unknown:
            raise ValueError(f"unknown entries {unknown} of a recipe; expected {sorted(known)}.")
        try:
            return cls(**found)
        except TypeError as error:
            raise ValueError(f"no recipe: {error}. Pass what Recipe.as_dict returned.") from error
