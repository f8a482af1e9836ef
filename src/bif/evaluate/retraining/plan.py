"""Which networks a bank holds: subsets and seeds of its two parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from bif.evaluate.subsets import leave_out, random_subsets

_MAX_SEEDS = 10**6
"""Seeds that a plan may have."""
_TUNING_STREAM = 1
"""Stream of the tuning part's subsets; the reported part's come from the seed itself."""


@dataclass(frozen=True)
class Plan:
    """Which networks are retrained.

    Reported subsets `m` with every seed, and tuning subsets, all different from the reported
    ones, with every tuning seed. More subsets or seeds leave the others as they are.

    Attributes:
        num_subsets: Reported subsets M.
        fraction: Share of the train items that a subset holds, between 0 and 1; one half where
            `num_removed` is not given either.
        num_removed: Number of items that a subset lacks, instead of `fraction`; 1 with
            `num_subsets = N` is leave-one-out.
        seeds: Seeds S, or their number: n stands for 0, …, n - 1.
        mask_seed: Seed of the subsets.
        num_tuning_subsets: Subsets of the tuning part; none by default.
        tuning_seeds: As `seeds`, which they are by default.

    Raises:
        ValueError: Numbers out of range; both `fraction` and `num_removed`.
    """

    num_subsets: int
    fraction: float | None = None
    num_removed: int | None = None
    seeds: tuple[int, ...] | int = 1
    mask_seed: int = 0
    num_tuning_subsets: int = 0
    tuning_seeds: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and self.num_removed is not None:
            raise ValueError(
                f"fraction is {self.fraction} and num_removed is {self.num_removed}; expected one "
                "of the two. Drop the other."
            )
        if self.fraction is None and self.num_removed is None:
            object.__setattr__(self, "fraction", 0.5)
        tuning_seeds = self.seeds if self.tuning_seeds is None else self.tuning_seeds
        object.__setattr__(self, "seeds", _seeds(self.seeds, "seeds"))
        object.__setattr__(self, "tuning_seeds", _seeds(tuning_seeds, "tuning_seeds"))
        ranges = {
            "num_subsets": (self.num_subsets >= 1, "at least 1"),
            "num_tuning_subsets": (self.num_tuning_subsets >= 0, "at least 0"),
            "mask_seed": (self.mask_seed >= 0, "at least 0"),
            "num_removed": (self.num_removed is None or self.num_removed >= 1, "at least 1"),
            "fraction": (
                self.fraction is None or 0 < self.fraction < 1,
                "a number between 0 and 1, exclusive",
            ),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def masks(self, num_items: int) -> np.ndarray:
        """Return the reported subsets of N items, bool [M, N]; True marks an item that stays.

        Raises:
            ValueError: Subsets that would be empty or whole, or more than there are.
        """
        return self._draw(num_items, self.num_subsets, self.mask_seed)

    def tuning_masks(self, num_items: int) -> np.ndarray:
        """Return the tuning part's subsets, bool [M', N], none of which is a reported one.

        They come from a stream of their own; what is among the reported subsets is left out.

        Raises:
            ValueError: As for `masks`; too few subsets that are not reported.
        """
        if not self.num_tuning_subsets:
            return np.zeros((0, num_items), dtype=bool)
        reported = {mask.tobytes() for mask in self.masks(num_items)}
        num_drawn = min(self._num_distinct(num_items), self.num_subsets + self.num_tuning_subsets)
        drawn = self._draw(num_items, num_drawn, (self.mask_seed, _TUNING_STREAM))
        others = [mask for mask in drawn if mask.tobytes() not in reported]
        if len(others) < self.num_tuning_subsets:
            raise ValueError(
                f"num_tuning_subsets is {self.num_tuning_subsets}, but besides the "
                f"{self.num_subsets} reported subsets only {len(others)} others of their size "
                f"were found among the {self._num_distinct(num_items)} that exist. Tune with "
                "fewer, or in a bank of its own with another fraction."
            )
        return np.stack(others[: self.num_tuning_subsets])

    def joined(self, other: Plan) -> Plan:
        """Return the smallest plan that holds both, the other's seeds after one's own.

        Raises:
            ValueError: Subsets of another kind or seed.
        """
        kind = lambda plan: (plan.fraction, plan.num_removed, plan.mask_seed)  # noqa: E731
        if kind(self) != kind(other):
            raise ValueError(
                f"the subsets have (fraction, num_removed, mask_seed) {kind(self)} and "
                f"{kind(other)}; expected the same. Make two banks."
            )
        return Plan(
            num_subsets=max(self.num_subsets, other.num_subsets),
            fraction=self.fraction,
            num_removed=self.num_removed,
            seeds=_union(self.seeds, other.seeds),
            mask_seed=self.mask_seed,
            num_tuning_subsets=max(self.num_tuning_subsets, other.num_tuning_subsets),
            tuning_seeds=_union(self.tuning_seeds, other.tuning_seeds),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers and lists that JSON can hold, for `from_dict`."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Plan:
        """Return the plan of what `as_dict` returned, JSON or not.

        Raises:
            ValueError: Unknown or missing names, or values that make no plan.
        """
        unknown = sorted(set(found) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown entries {unknown} of a plan: of another version of bif? Read it by that."
            )
        given: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in found.items()
        }
        try:
            return cls(**given)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"no plan: {error}. Pass what Plan.as_dict returned.") from error

    def _draw(self, num_items: int, num: int, seed: int | tuple[int, ...]) -> np.ndarray:
        if self.num_removed is not None:
            return leave_out(num_items, num, num_removed=self.num_removed, seed=seed)
        assert self.fraction is not None  # filled in at the start
        return random_subsets(num_items, num, fraction=self.fraction, seed=seed)

    def _num_distinct(self, num_items: int) -> int:
        """Return the number of subsets of this size."""
        if self.num_removed is not None:
            return math.comb(num_items, self.num_removed)
        assert self.fraction is not None
        return math.comb(num_items, round(self.fraction * num_items))


def _seeds(seeds: tuple[int, ...] | int, name: str) -> tuple[int, ...]:
    """Return the seeds one by one."""
    if isinstance(seeds, int):
        listed = tuple(range(seeds)) if seeds <= _MAX_SEEDS else ()
    else:
        listed = tuple(int(seed) for seed in seeds)
    if not listed or len(set(listed)) != len(listed):
        raise ValueError(
            f"{name} are {seeds!r}; expected at least one, all different, and at most "
            f"{_MAX_SEEDS:,}."
        )
    return listed


def _union(mine: Any, more: Any) -> tuple[int, ...]:
    """Return all seeds, each once, the first ones first."""
    return tuple(dict.fromkeys((*mine, *more)))
