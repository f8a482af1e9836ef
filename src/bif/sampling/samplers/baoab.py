"""Underdamped Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt
from typing import TYPE_CHECKING, ClassVar

from bif import tensors
from bif.sampling.samplers.traits import Traits
from bif.types import Mass, Noise, Params

if TYPE_CHECKING:
    from bif.sampling.settings import RunSettings


@dataclass(frozen=True)
class BAOABState:
    """Weights and velocities of the chains, leaves `[C, *shape]`; velocities of unit mass."""

    params: Params
    velocity: Params


@dataclass(frozen=True)
class BAOAB:
    """Underdamped Langevin dynamics, one gradient a step.

    Full kick `v ← v - h∇U`; half drift `w ← w + (h/2)v`; `v ← c·v + sqrt(1 - c²)·ξ` with
    `c = exp(-friction · h)`; half drift.  This is BAOAB with the two half kicks that meet between
    steps done as one, so `params` are the positions at which BAOAB evaluates the force.

    On a quadratic of curvature k the variance of positions is exactly `1/k` for any stable h
    (`h²k < 4`) and c.  Gradient noise of standard deviation s makes it
    `(1/k)·[1 + h²s²/(4 - h²k)·(1 + c)/(1 - c)]`: low friction multiplies gradient noise.

    Args:
        step_size: h, in units of 1 / sqrt(curvature of U).
        friction: In units of 1 / step_size; about `2·sqrt(k_min)` relaxes the slowest direction
            fastest.
        mass: Coordinates `w = w* + M^(-1/2) x` in which all this is done, with curvatures and step
            size in theirs; those of the weights, unit mass, if None.  The posterior is the same.

    Source: Leimkuhler & Matthews 2013, Rational construction of stochastic numerical methods.
    """

    traits: ClassVar[Traits] = Traits(
        underdamped=True,
        # Positions have no discretisation bias on quadratics.  Where U is none, the steepest of
        # many directions are biased, and the losses hardly (`benchmarks/converged/coverage.py`).
        default_step=0.8,
        takes_mass=True,
        adaptive=False,
        least_divisor=None,
        state_leaves=1,
        leafwise=True,
        compiles=True,
        bias=None,
    )

    step_size: float
    friction: float
    mass: Mass | None = None

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> BAOAB:
        """Return the sampler of complete settings, in the coordinates of a mass if there is one."""
        assert settings.friction is not None
        return cls(settings.step_size, settings.friction, mass)

    @property
    def velocity_kept(self) -> float:
        """c, the share of the velocity that survives a step."""
        return exp(-self.friction * self.step_size)

    def init(self, params: Params, noise: Noise) -> BAOABState:
        """Start from `params` with velocities from N(0, I)."""
        return BAOABState(params, noise.normal(params))

    def step(self, state: BAOABState, gradient: Params, noise: Noise) -> BAOABState:
        """One step with the gradient of U at `state.params`."""
        h, c = self.step_size, self.velocity_kept
        if self.mass is not None:
            return self._step(state, self.mass, gradient, noise)
        velocity = tensors.add_(state.velocity, gradient, -h)
        params = tensors.add_(state.params, velocity, 0.5 * h)
        tensors.mul_(velocity, c)
        tensors.add_(velocity, noise.normal(velocity), sqrt(1 - c * c))
        return BAOABState(tensors.add_(params, velocity, 0.5 * h), velocity)

    def _step(self, state: BAOABState, mass: Mass, gradient: Params, noise: Noise) -> BAOABState:
        """The same in the coordinates of a mass, with both half drifts in one."""
        h, c = self.step_size, self.velocity_kept
        velocity = tensors.add_(state.velocity, mass.to_velocity(gradient), -h)
        drift = tensors.copied(velocity)
        tensors.mul_(velocity, c)
        tensors.add_(velocity, noise.normal(velocity), sqrt(1 - c * c))
        tensors.add_(drift, velocity)
        return BAOABState(tensors.add_(state.params, mass.to_weights(drift), 0.5 * h), velocity)
