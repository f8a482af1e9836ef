"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from bif import tensors
from bif.sampling.samplers.traits import Traits
from bif.types import Mass, Noise, Params

if TYPE_CHECKING:
    from bif.sampling.settings import RunSettings


@dataclass(frozen=True)
class SGLDState:
    """Weights of the chains, leaves `[C, *shape]`."""

    params: Params


@dataclass(frozen=True)
class SGLD:
    """Stochastic gradient Langevin dynamics.

    `w ← w - (step_size / 2) * ∇U + sqrt(step_size) * ξ`, ξ ~ N(0, I).

    On a quadratic of curvature k: variance `1 / (k * (1 - step_size * k / 4))`, stable for
    `step_size * k < 4`; the mean relaxes by `1 - step_size * k / 2` a step.

    Args:
        step_size: ε, in units of 1 / (curvature of U).

    Source: Welling & Teh 2011.
    """

    traits: ClassVar[Traits] = Traits(
        underdamped=False,
        # Variances are 1 / (1 - step·k/4) times too large.
        default_step=0.05,
        takes_mass=False,
        adaptive=False,
        least_divisor=None,
        state_leaves=0,
        leafwise=True,
        compiles=True,
        bias=None,
    )

    step_size: float

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> SGLD:
        """Return the sampler of complete settings."""
        return cls(settings.step_size)

    def init(self, params: Params, noise: Noise) -> SGLDState:
        """Start from `params`; draws no noise."""
        return SGLDState(params)

    def step(self, state: SGLDState, gradient: Params, noise: Noise) -> SGLDState:
        """One step with the gradient of U at `state.params`."""
        params = tensors.add_(state.params, gradient, -0.5 * self.step_size)
        return SGLDState(tensors.add_(params, noise.normal(params), sqrt(self.step_size)))
