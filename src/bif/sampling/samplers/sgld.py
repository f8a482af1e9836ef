"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from bif import tensors
from bif.types import Noise, Params


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

    step_size: float

    def init(self, params: Params, noise: Noise) -> SGLDState:
        """Start from `params`; draws no noise."""
        return SGLDState(params)

    def step(self, state: SGLDState, gradient: Params, noise: Noise) -> SGLDState:
        """One step with the gradient of U at `state.params`."""
        params = tensors.add_(state.params, gradient, -0.5 * self.step_size)
        return SGLDState(tensors.add_(params, noise.normal(params), sqrt(self.step_size)))
