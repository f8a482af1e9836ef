"""The run that tests of growth begin with, and what is added to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bif import Items, Problem
from bif.problem.items import as_items
from small_problems import TINY, classification, labelled

# Blocks of two chains; draws 0 … 3 at steps 2, 4, 6 and 8.
BASE = replace(TINY, chains=4, block_size=2, draws=4, burn_in=2, thin=2)
OWN: dict[str, Items] = {"own": as_items(labelled(5, seed=2))}
MORE: dict[str, Items] = {"more": as_items(labelled(3, seed=5))}
THIRD: dict[str, Items] = {"third": as_items(labelled(2, seed=6))}
EXTRA: dict[str, Items] = {"extra": as_items(labelled(4, seed=7))}


def problem(**changed: Any) -> Problem:
    return classification(**{"queries": OWN, **changed})
