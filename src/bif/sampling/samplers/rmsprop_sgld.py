"""SGLD with RMSprop step sizes, as published, and with the second moment frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

import torch

from bif import tensors
from bif.sampling.samplers.traits import Traits
from bif.types import Mass, Noise, Params

if TYPE_CHECKING:
    from bif.sampling.settings import RunSettings


@dataclass(frozen=True)
class RMSpropSGLDState:
    """Weights and second moments of the chains, leaves `[C, *shape]`, and steps done."""

    params: Params
    second_moment: Params
    num_steps: int


@dataclass(frozen=True)
class RMSpropSGLD:
    """SGLD with a step size per weight from the running second moment of the gradient.

    With `g = ∇U / gradient_scale`: `v ← decay·v + (1 - decay)·g²`, `v̂ = v / (1 - decay^t)`,
    `ε_t = step_size / (sqrt(v̂) + stabilizer)`, `w ← w - (ε_t/2)·∇U + sqrt(ε_t)·ξ`.
    v starts at 0 and is bias-corrected as in Adam, since chains are short.

    While v adapts to the current gradient this does **not** sample the posterior: a correction
    term is missing, and on a quadratic the variance comes out too large.  With
    `freeze_after` the step sizes stay as they are after that many steps, and the rule is SGLD with
    a fixed step a weight, so SGLD's law holds at ε_t.

    Args:
        step_size: ε; see `gradient_scale` for its unit.
        decay: Share of v kept at a step.
        stabilizer: Added to sqrt(v̂), in the unit of g.
        gradient_scale: Published settings take g as the gradient of the *mean loss*: pass `nbeta`
            to use them (exact but for the Gaussian's part of ∇U).
        freeze_after: Steps after which v stands still; None as published.

    Source: Lee et al. 2025 (arXiv 2510.12071), App. B; Li et al. 2016 (preconditioned SGLD).
    """

    step_size: float
    decay: float = 0.99
    stabilizer: float = 0.1
    gradient_scale: float = 1.0
    freeze_after: int | None = None

    traits: ClassVar[Traits] = Traits(
        underdamped=False,
        # SGLD's, of the weights that take the largest steps.
        default_step=0.05 * stabilizer,
        takes_mass=False,
        adaptive=True,
        least_divisor=stabilizer,
        state_leaves=1,
        leafwise=True,
        compiles=False,
        bias="as published does not sample the posterior: its step follows the gradient and a "
        "correction is missing. Set sampler='rmsprop_sgld_frozen'",
    )

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> RMSpropSGLD:
        """Return the sampler of complete settings, with g the gradient of the mean loss."""
        return cls(settings.step_size, gradient_scale=settings.nbeta or 1.0)

    def init(self, params: Params, noise: Noise) -> RMSpropSGLDState:
        """Start from `params` with v = 0; draws no noise."""
        return RMSpropSGLDState(params, tensors.zeros_like(params), 0)

    def step(self, state: RMSpropSGLDState, gradient: Params, noise: Noise) -> RMSpropSGLDState:
        """One step with the gradient of U at `state.params`."""
        count, moment = state.num_steps, state.second_moment
        if self.freeze_after is None or count < self.freeze_after:
            count += 1
            tensors.mul_(moment, self.decay)
            scale = (1 - self.decay) / self.gradient_scale**2
            tensors.add_product_(moment, gradient, gradient, scale)
        step_sizes = self.step_sizes(RMSpropSGLDState(state.params, moment, count))
        params = tensors.add_product_(state.params, gradient, step_sizes, -0.5)
        roots = {name: leaf.sqrt_() for name, leaf in step_sizes.items()}
        tensors.add_product_(params, noise.normal(params), roots)
        return RMSpropSGLDState(params, moment, count)

    def step_sizes(self, state: RMSpropSGLDState) -> Params:
        """ε_t of every weight, leaves `[C, *shape]`."""
        correction = sqrt(1 - self.decay ** max(state.num_steps, 1))
        return {
            name: self.step_size / (torch.sqrt(v) / correction + self.stabilizer)
            for name, v in state.second_moment.items()
        }


@dataclass(frozen=True)
class FrozenRMSpropSGLD(RMSpropSGLD):
    """The same, built with the second moment frozen after burn-in."""

    traits: ClassVar[Traits] = replace(RMSpropSGLD.traits, bias=None)

    @classmethod
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> RMSpropSGLD:
        """Return the sampler of complete settings, which is frozen from the first draw on."""
        return replace(super().from_settings(settings, mass), freeze_after=settings.burn_in)
