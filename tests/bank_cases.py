"""Small banks that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import bif
from bif.bank import Bank, Plan, retrained
from bif.evaluate import Recipe
from small_problems import classification, labelled

RECIPE = Recipe(steps=6, learning_rate=0.1, momentum=0.5, batch_size=3)
PLAN = Plan(num_subsets=5, seeds=2, num_tuning_subsets=3, tuning_seeds=(7,))
TUNING = labelled(4, seed=3)
PER_STACK = 4


def bank(out: str | Path | None = None, **changed: Any) -> Bank:
    """A bank of 5 x 2 reported and 3 x 1 tuning networks of 43 weights."""
    given: dict[str, Any] = {
        "problem": None, "tuning_queries": TUNING, "how": RECIPE, "plan": PLAN, "target": "scratch",
        "networks_per_stack": PER_STACK, **changed,
    }  # fmt: skip
    problem: bif.Problem = given.pop("problem") or classification()
    positional = [given.pop(name) for name in ("tuning_queries", "how", "plan")]
    return retrained(problem, *positional, out=out, **given)


def bits(found: Bank) -> dict[str, bytes]:
    """All outcomes and masks to the last bit."""
    return {
        f"{part.purpose} {name}": np.ascontiguousarray(values).tobytes()
        for part in found.parts
        for name, values in {**part.outcomes, "masks": part.masks}.items()
    }


def distance(a: Bank, b: Bank) -> float:
    """Largest difference of any outcome."""
    assert len(a.parts) == len(b.parts)
    return max(
        float(np.abs(values - other.outcomes[name]).max())
        for part, other in zip(a.parts, b.parts, strict=True)
        for name, values in part.outcomes.items()
    )
