"""What calibration, checks and plans ask of a sampler that is chosen by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bif.types import Mass, Sampler

if TYPE_CHECKING:
    from bif.sampling.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a rule declares of itself.  Its methods are its laws on a quadratic of curvature k.

    Attributes:
        underdamped: Whether chains have velocities, and a friction in units of 1 / step size.  The
            step size is then in units of 1 / sqrt(curvature of U), else of 1 / curvature.
        default_step: Step size that calibration takes, in units of 1 / sqrt(largest curvature) if
            underdamped, else of 1 / largest curvature.
        takes_mass: Whether chains can move in the coordinates of a mass.
        adaptive: Whether steps or friction follow the gradients, and so answer to a perturbation
            of U beside the weights.
        least_divisor: What the step size is divided by for a weight whose gradient vanishes, which
            takes the largest steps; None where all weights take the step size itself.
        state_leaves: Numbers that the state keeps for each weight beside the weight.
        leafwise: Whether leaves can move one by one: no number of the state is shared by all.
        compiles: Whether a compiled step serves for all steps: the state counts none.
        bias: Why chains do not sample the posterior, and what to set instead, after the sampler's
            name; None where they do, up to the bias of a finite step.
    """

    underdamped: bool
    default_step: float
    takes_mass: bool
    adaptive: bool
    least_divisor: float | None
    state_leaves: int
    leafwise: bool
    compiles: bool
    bias: str | None

    def relaxation_steps(self, step_size: float, friction: float | None, k: float) -> float:
        """Return the steps in which the direction forgets all but 1/e of where it was."""
        if not self.underdamped:
            return 2 * (self.least_divisor or 1.0) / (step_size * k)
        assert friction is not None
        # Of exp(-rate·t) in w'' = -friction·w' - k·w: slower on either side of 2·sqrt(k).
        half = friction / 2
        rate = half if half**2 <= k else k / (half + math.sqrt(half**2 - k))
        return 1 / (step_size * rate)

    def step_share(self, step_size: float, k: float) -> float:
        """Return the step in units of the largest stable one: `ε·k/4`, or its square `h²k/4`.

        NaN where weights have steps of their own.
        """
        if self.least_divisor is not None:
            return math.nan
        return step_size**2 * k / 4 if self.underdamped else step_size * k / 4

    def heat(self, step_size: float, friction: float | None, k: float, variance: float) -> float:
        """Return the share by which gradient noise of a variance widens the draws.

        Only where all weights take the step size itself.
        """
        if not self.underdamped:
            return step_size * variance / 4
        assert friction is not None
        kept = math.exp(-friction * step_size)
        stable = max(4 - step_size**2 * k, 1e-3)
        return step_size**2 * variance / stable * (1 + kept) / (1 - kept)


class NamedSampler(Sampler[Any], Protocol):
    """A sampler that `Settings.sampler` can name: it declares its traits."""

    traits: ClassVar[Traits]

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> Sampler[Any]:
        """Return the sampler of complete settings, in the coordinates of `mass` if it takes one."""
        ...
