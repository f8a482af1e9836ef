"""One line: which dynamics, by which rule."""

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
class MySamplerState:
    """Everything that goes from step to step; tensors with the chain axis first.

    `params` is required: the weights at which the next gradient is wanted, leaves `[C, *shape]`.
    """

    params: Params


@dataclass(frozen=True)
class MySampler:
    """One line: which dynamics.

    The rule in the code's own symbols, here SGLD's:
    `w ← w - (step_size / 2) * ∇U + sqrt(step_size) * ξ`, ξ ~ N(0, I).

    What it samples on a quadratic of curvature k, and where it is stable. For this rule: variance
    `1 / (k * (1 - step_size * k / 4))`, stable for `step_size * k < 4`. The tests compare with it.

    Args:
        step_size: ε, in units of 1 / (curvature of U).

    Source: the paper, with its equation.
    """

    # What each says stands in `Traits`; a trait that is left out is refused.
    traits: ClassVar[Traits] = Traits(
        underdamped=False,
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
    def from_settings(cls, settings: RunSettings, mass: Mass | None) -> MySampler:
        """Return the sampler of complete settings.

        Args:
            settings: Their friction is None unless the sampler is underdamped.
            mass: The coordinates to move in; None unless the sampler takes a mass.
        """
        return cls(settings.step_size)

    def init(self, params: Params, noise: Noise) -> MySamplerState:
        """Start from `params`, which the sampler may keep and overwrite.

        Args:
            params: Weights, leaves `[C, *shape]`.
            noise: The block's only source of random numbers, for example of first velocities.
        """
        return MySamplerState(params)

    def step(self, state: MySamplerState, gradient: Params, noise: Noise) -> MySamplerState:
        """One step with the gradient of U at `state.params`.

        Args:
            state: May be overwritten: write into its buffers rather than allocate.
            gradient: ∇U, leaves `[C, *shape]`; may be overwritten. Exactly 0 where a weight may
                not move.
            noise: `noise.normal(like)` is N(0, 1) in the shapes of `like`, exactly 0 where a weight
                may not move. Adding anything else at random would move such weights.
        """
        params = tensors.add_(state.params, gradient, -0.5 * self.step_size)
        return MySamplerState(tensors.add_(params, noise.normal(params), sqrt(self.step_size)))
