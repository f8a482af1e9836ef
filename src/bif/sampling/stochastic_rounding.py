"""Round stochastically to bfloat16, and tell what that adds to the variance of a chain.

A weight x between neighbours a < b = a + u becomes b with probability p = (x - a) / u, else a: the
mean is x, exactly, and the variance `p (1 - p) u²`.  Steps that are no smaller than u leave p about
uniform on [0, 1], so a rounding adds `u² ∫ p (1 - p) dp = u²/6` a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

_DROPPED = 16
"""Low bits of a float32 that a bfloat16 lacks."""
_PRECISION = 8
"""Significant bits of a bfloat16, the implied one included."""


def round_stochastically_(target: Tensor, x: Tensor, source: torch.Generator) -> Tensor:
    """Write `target = x` in bfloat16, up or down at random so that the mean is x.

    Args:
        target: bfloat16, overwritten.
        x: float32, of the same shape.
        source: Gives 16 random bits a number.
    """
    noise = torch.randint(
        0, 1 << _DROPPED, x.shape, generator=source, device=x.device, dtype=torch.int32
    )
    # In sign and magnitude, adding to the low bits and cutting them off rounds away from 0 with
    # the probability that they spell; a carry into the exponent is the next binade's first number.
    bits = noise.add_(x.contiguous().view(torch.int32)).bitwise_and_(-1 << _DROPPED)
    # NaN and infinity stay what they are.
    return target.copy_(torch.where(x.isfinite(), bits.view(torch.float32), x))


def spacing(x: Tensor) -> Tensor:
    """Return u, the distance from one bfloat16 to the next at the size of x, float32."""
    _, exponent = torch.frexp(x.float().abs())
    # The smallest normal number is 2^-126; below it the spacing stays.
    exponent = exponent.clamp(min=-125) - _PRECISION
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)


def rounding_variance(x: Tensor) -> float:
    """Return `u²/6`, averaged over x: what one rounding adds to a weight's variance."""
    return float(spacing(x).double().square().mean()) / 6


def rounding_shares(leaves: Mapping[str, Tensor], step_size: float) -> dict[str, float]:
    """Return the share by which rounding widens SGLD's draws, of each leaf in bfloat16.

    A step adds noise of variance `step_size` and the rounding `u²/6` to it, so on a quadratic of
    curvature k the variance is `(1 + u²/(6 step_size)) / (k (1 - step_size k / 4))`.

    Args:
        leaves: w*.
        step_size: SGLD's.
    """
    return {
        name: rounding_variance(leaf) / step_size
        for name, leaf in leaves.items()
        if leaf.dtype == torch.bfloat16
    }


def refuse_coarse(leaves: Mapping[str, Tensor], step_size: float) -> None:
    """Raise where the noise of a step is below its rounding.

    Args:
        leaves: w*.
        step_size: SGLD's.

    Raises:
        ValueError: A leaf in which roundings outweigh the noise.
    """
    shares = rounding_shares(leaves, step_size)
    worst = max(shares, key=shares.__getitem__, default=None)
    if worst is None or shares[worst] <= 1:
        return
    noise, rounding = sqrt(step_size), sqrt(shares[worst] * step_size)
    raise ValueError(
        f"the noise of a step, {noise:.3g} a weight, is below its rounding to bfloat16 in "
        f"{worst!r}, {rounding:.3g}: the draws would have {1 + shares[worst]:.3g} times the "
        f"variance asked for. Raise step_size from {step_size:.3g} to at least "
        f"{shares[worst] * step_size:.3g} (ten times that for a tenth), or use memory='fused', "
        "which keeps float32 weights."
    )
