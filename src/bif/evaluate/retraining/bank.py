"""Banks in memory: what retraining on subsets gave, in two parts that are never mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bif.evaluate.retraining.plan import Plan
from bif.types import Target

Purpose = Literal["reported", "tuning"]


@dataclass(frozen=True, eq=False)
class BankPart:
    """Subsets, and the outcomes of queries under networks trained on them.

    Attributes:
        purpose: What its outcomes may be used for.
        masks: The subsets, bool [M, N].
        outcomes: Observable -> outcomes of queries, float64 [S, M, Q].
        seeds: The seeds, S of them.
        train_ids: Names of the train items, [N].
        query_ids: Names of the queries, [Q].
        seconds: Seconds of training and evaluation, summed over networks.
        target: Where its networks start: "scratch" or "checkpoint".
    """

    purpose: Purpose
    masks: np.ndarray
    outcomes: dict[str, np.ndarray]
    seeds: tuple[int, ...]
    train_ids: np.ndarray
    query_ids: np.ndarray
    seconds: float
    target: Target

    @property
    def num_networks(self) -> int:
        """Number of trained networks: S M."""
        return len(self.seeds) * len(self.masks)

    def required(self, purpose: Purpose) -> BankPart:
        """Return the part itself if it is for this purpose.

        Raises:
            ValueError: It is for the other one.
        """
        if self.purpose != purpose:
            raise ValueError(
                f"this is the {self.purpose} part of a bank; expected the {purpose} part. What "
                "was tuned on subsets and queries must be reported on others: pass "
                f"bank.{purpose}."
            )
        return self


@dataclass(frozen=True, eq=False)
class Bank:
    """Networks retrained on subsets.

    Attributes:
        reported: What methods are judged by.
        tuning: What their settings are chosen by: other subsets, other queries. None where the
            plan has none.
        target: "scratch": trained from fresh weights; "checkpoint": from w*.
        recipe: The recipe's entries, or the name and fingerprint of the user's function.
        plan: The plan of subsets and seeds.
        manifest: Everything that the bank says of itself: fingerprints, versions, hardware.
    """

    reported: BankPart
    tuning: BankPart | None
    target: Target
    recipe: Mapping[str, Any]
    plan: Plan
    manifest: Mapping[str, Any]

    @property
    def parts(self) -> tuple[BankPart, ...]:
        """The parts that there are."""
        return (self.reported,) if self.tuning is None else (self.reported, self.tuning)

    @property
    def num_networks(self) -> int:
        """Number of networks of all parts."""
        return sum(part.num_networks for part in self.parts)

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation of all parts."""
        return sum(part.seconds for part in self.parts)
