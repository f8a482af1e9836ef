"""Underdamped Langevin dynamics whose friction is a Nosé-Hoover thermostat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from bif import tensors
from bif.sampling.samplers.traits import Traits
from bif.types import Mass, Noise, Params

if TYPE_CHECKING:
    from bif.sampling.settings import RunSettings


@dataclass(frozen=True)
class SGNHTState:
    """Weights and velocities, leaves `[C, *shape]`, and friction and moving weights, `[C]`."""

    params: Params
    velocity: Params
    friction: Tensor
    num_moving: Tensor


@dataclass(frozen=True)
class SGNHT:
    """Stochastic gradient Nosé-Hoover thermostat in BAOAB's order of substeps.

    Kick, half drift as in `BAOAB`; then half thermostat
    `friction ← friction + (h / (2·mass))·(|v|²/d - 1)`, the exact solution of
    `dv = -friction·v dt + sqrt(2·diffusion) dW` over h, half thermostat, and the other half drift;
    d is the number of moving weights of a chain.  Without gradient noise it is BAOAB with
    `friction = diffusion`; with noise of equal size in every direction the friction rises until
    the velocities have unit variance, which corrects the temperature.  At finite h it corrects a
    little too far, for it also sees velocities that the noise has just kicked.  One thermostat
    cannot correct noise that differs between directions.

    Args:
        step_size: h, in units of 1 / sqrt(curvature of U).
        diffusion: Noise injected into the velocities, and the friction that the chains start with.
        mass: Inertia of the thermostat; larger follows more slowly.  The friction moves by
            `1 / sqrt(d·mass)` of itself; None keeps that below half of `diffusion`:
            `max(1, 4 / (d·diffusion²))`.

    Source: Ding et al. 2014; Leimkuhler & Shang 2016 (BADODAB) for the splitting.
    """

    traits: ClassVar[Traits] = Traits(
        underdamped=True,
        # BAOAB's, whose law it has but for the friction.
        default_step=0.8,
        takes_mass=False,
        adaptive=True,
        least_divisor=None,
        state_leaves=1,
        leafwise=False,
        compiles=True,
        bias=None,
    )

    step_size: float
    diffusion: float
    mass: float | None = None

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> SGNHT:
        """Return the sampler of complete settings, whose friction is the diffusion."""
        assert settings.friction is not None
        return cls(settings.step_size, settings.friction)

    def init(self, params: Params, noise: Noise) -> SGNHTState:
        """Start from `params` with velocities from N(0, I) and friction = diffusion."""
        velocity = noise.normal(params)
        # A weight that may not move gets exactly no velocity, so counting finds the moving ones.
        moving = torch.stack(
            [leaf.reshape(len(leaf), -1).count_nonzero(dim=1) for leaf in velocity.values()]
        ).sum(dim=0)
        friction = torch.full(moving.shape, self.diffusion, dtype=torch.float64)
        return SGNHTState(params, velocity, friction.to(moving.device), moving)

    def step(self, state: SGNHTState, gradient: Params, noise: Noise) -> SGNHTState:
        """One step with the gradient of U at `state.params`."""
        h, moving = self.step_size, state.num_moving
        velocity = tensors.add_(state.velocity, gradient, -h)
        params = tensors.add_(state.params, velocity, 0.5 * h)
        friction = state.friction + self._heat(velocity, moving)
        kept = torch.exp(-friction * h)
        # (1 - exp(-2·friction·h)) / (2·friction) tends to h as friction tends to 0.
        small = friction.abs() * h < 1e-8
        safe = torch.where(small, torch.ones_like(friction), friction)
        spread = torch.where(
            small, torch.full_like(safe, h), -torch.expm1(-2 * safe * h) / (2 * safe)
        )
        tensors.scale_chains_(velocity, kept)
        kicks = tensors.scale_chains_(
            noise.normal(velocity), torch.sqrt(2 * self.diffusion * spread)
        )
        tensors.add_(velocity, kicks)
        friction = friction + self._heat(velocity, moving)
        params = tensors.add_(params, velocity, 0.5 * h)
        return SGNHTState(params, velocity, friction, moving)

    def _heat(self, velocity: Params, num_moving: Tensor) -> Tensor:
        excess = tensors.squared_norm(velocity) / num_moving - 1
        mass = (
            (4 / (num_moving * self.diffusion**2)).clamp(min=1) if self.mass is None else self.mass
        )
        return 0.5 * self.step_size / mass * excess
