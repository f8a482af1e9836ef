"""Word the remedies of a run that is refused as settings that can be given as they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from bif.calibration.steps import burn_in_steps, relaxation_steps, smallest_curvature
from bif.sampling.settings import RunSettings, Settings

_LONGER = 4.0
"""Factor on draws and burn-in where no figure says by how much they are too few."""
_FEWEST = 100
"""Draws of a chain: of far fewer no figure tells anything."""
_LONGEST = 100.0
"""Factor on a burn-in at most: gamma alone may hold a direction for far longer than is needed."""


@dataclass(frozen=True)
class Remedies:
    """The changes to a run, each as words of the form `set NAME=VALUE, … and NAME=VALUE`.

    They are to be given besides what the run was asked for, which stays as it is.

    Attributes:
        settings: Complete settings of the run; None, which makes words general, if not known.
        asked: The settings that were asked for.
        num_items: Train items, which a mini-batch cannot exceed.
    """

    settings: RunSettings | None = None
    asked: Settings = Settings()
    num_items: float = inf

    @classmethod
    def of(cls, settings: RunSettings, identity: Mapping[str, Any], num_items: int) -> Remedies:
        """Return the remedies of a run, by its complete settings and its identity."""
        return cls(settings, Settings.from_dict(identity["settings"]), num_items)

    def smaller_step(self, times: float = 2.0) -> str:
        """Divide the step by a factor; burn-in and thinning last as long as before."""
        s = self.settings
        if s is None:
            return "lower step_size"
        mass = {} if s.mass != "kronecker" else {"mass": s.mass}
        return _set(
            step_size=s.step_size / times, **mass, burn_in=ceil(times * s.burn_in),
            thin=ceil(times * s.thin),
        )  # fmt: skip

    def tighter_ball(self, times: float = _LONGER) -> str:
        """Raise gamma: another posterior closer to w*, with chains that are fitted to it."""
        s = self.settings
        if s is None:
            return "raise gamma"
        motion = ("step_size", "friction", "burn_in", "thin")
        opened = {name: None for name in motion if getattr(self.asked, name) is not None}
        return _set(gamma=times * s.gamma if s.gamma else None, **opened)

    def more_draws(self, times: float = _LONGER) -> str:
        """Raise the draws of each chain."""
        s = self.settings
        if s is None:
            return "raise draws"
        return _set(draws=max(ceil(times * s.draws), _FEWEST), **self._not_forecast)

    def longer_burn_in(self) -> str:
        """Raise burn-in to what calibration would choose, and beyond what it was."""
        s = self.settings
        return "raise burn_in" if s is None else _set(burn_in=_burn_in(s))

    def longer_chains(self, times: float = _LONGER) -> str:
        """Lengthen chains by a factor, beyond a longer burn-in: draws first, then thin."""
        s = self.settings
        if s is None:
            return "raise burn_in, draws and thin"
        draws = max(ceil(min(times, _LONGER) * s.draws), _FEWEST)
        thin = ceil(max(times / _LONGER, 1.0) * s.thin)
        return _set(burn_in=_burn_in(s), draws=draws, thin=thin, **self._not_forecast)

    def all_items(self) -> str:
        """Take gradients of all items, which have no noise."""
        return _set(gradient="full", batch_size=None)

    def larger_batches(self, times: float) -> str | None:
        """Enlarge mini-batches by a factor; None where there are not so many items."""
        s = self.settings
        if s is None or s.batch_size is None:
            return "raise batch_size"
        size = ceil(times * s.batch_size)
        return _set(batch_size=size) if size <= self.num_items else None

    @property
    def is_noisy(self) -> bool:
        """Return whether gradients are of mini-batches, as far as is known."""
        return self.settings is None or self.settings.gradient != "full"

    @property
    def is_underdamped(self) -> bool:
        """Return whether the step's bias goes with its square, as far as is known."""
        return self.settings is None or self.settings.traits.underdamped

    @property
    def _not_forecast(self) -> dict[str, None]:
        """Return the settings that given draws replace."""
        given = ("budget", "reliability")
        return {name: None for name in given if getattr(self.asked, name) is not None}


def _burn_in(s: RunSettings) -> int:
    """Return the burn-in of calibration, or `_LONGER` times the run's where that is longer."""
    longer = max(_LONGER * s.burn_in, 100.0)
    if not (slowest := smallest_curvature(s)) > 0:
        return ceil(longer)
    needed = burn_in_steps(s, relaxation_steps(s, slowest))
    return ceil(max(longer, min(needed, _LONGEST * max(s.burn_in, 10))))


def alternatives(*remedies: str | None) -> str:
    """Return the remedies as a sentence without its full stop; None is left out."""
    words = ", or ".join(remedy for remedy in remedies if remedy)
    return words[:1].upper() + words[1:]


def _set(**given: float | str | None) -> str:
    """Return `set NAME=VALUE, … and NAME=VALUE`, in Python's notation."""
    values = [f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v!r}" for n, v in given.items()]
    *most, last = values
    return f"set {', '.join(most)} and {last}" if most else f"set {last}"
