"""Choose the default damping gamma/nbeta: how far draws go where the data leave w open."""

from __future__ import annotations

import math

import torch

from bif import tensors
from bif.curvature.extreme_eigenvalues import hessian_product
from bif.sampling.posterior import LocalPosterior
from bif.types import Gradient, Params

SHARE = 50.0
"""Divisor of the largest curvature at w* that gives the damping, unless training left less."""
FLATTEST = 1e-3
"""Part of the largest curvature below which the damping does not go, so that chains mix."""
_ROUNDING = 10.0
"""Rounding errors of the steepest direction below which a gradient at w* counts as zero."""


def usual_damping(largest: float, leftover: float) -> tuple[float, str]:
    """Return the default gamma/nbeta and the reason.

    `sqrt(a min(a, r))` of two yardsticks: a fiftieth of the largest curvature at w*, `a`, and the
    leftover curvature `r`; at least a thousandth of the largest, so that chains can mix.  `a` alone
    is too large where training went on to its minimum, and with `r` alone some chains do not mix:
    docs/calibration-measured.md has both.

    Args:
        largest: Largest curvature of the mean loss at w*.
        leftover: What `leftover_curvature` found; NaN where it is not known.
    """
    part = largest / SHARE
    words = f"largest curvature at w*, {largest:.4g}, / {SHARE:g}"
    if math.isnan(leftover):
        return part, f"{words} (the gradient there is not known, or no more than rounding)"
    if leftover >= part:
        return part, f"{words} (training left its gradient in steeper directions, {leftover:.4g})"
    damping, least = math.sqrt(part * leftover), FLATTEST * largest
    words = (
        f"geometric mean of the {words} and of the curvature along the gradient that training left "
        f"there, {leftover:.4g}"
    )
    return (damping, words) if damping >= least else (least, f"{words}, raised so that chains mix")


def left_gradient(gradient: Gradient, posterior: LocalPosterior, params: Params) -> Params:
    """Return the gradient of the training objective at w*, weight decay included.

    Args:
        gradient: Gradient of the mean loss over all train items.
        posterior: Posterior with center, masks and weight decay, both of which count.
        params: w*, leaves `[1, *shape]`.
    """
    left = tensors.copied(gradient(params, 0).gradient)
    posterior.add_decay_(left, params)
    return posterior.masked_(left)


def leftover_curvature(
    gradient: Gradient, posterior: LocalPosterior, params: Params, *, left: Params, largest: float
) -> float:
    """Return `|H g| / |g|` at w* of the training objective's gradient g and Hessian H.

    Gradient descent shrinks g by the factor `exp(-H t)`, so what is left of it lies in directions
    of curvature 1/t, roughly, which training and retraining had no time to settle.  Weight decay is
    part of H.  Where training went on until what is left of g is the rounding of w*, steep
    directions lead again.

    Args:
        gradient: Gradient of the mean loss over all train items.
        posterior: Posterior with center, masks and weight decay, both of which count.
        params: w*, leaves `[1, *shape]`.
        left: g, as of `left_gradient`.
        largest: Largest curvature of the mean loss at w*.

    Returns:
        In units of the loss; NaN where g is certainly no more than w*'s rounding.
    """
    size = float(tensors.squared_norm(left)) ** 0.5
    at = posterior.masked_(tensors.copied(params))
    rounding = max(torch.finfo(leaf.dtype).eps for leaf in params.values())
    if not size > _ROUNDING * rounding * largest * float(tensors.squared_norm(at)) ** 0.5:
        return math.nan
    along = tensors.mul_(tensors.copied(left), 1 / size)
    ahead = hessian_product(gradient, params, posterior.masks)(along)
    ahead = posterior.masked_(tensors.add_(ahead, along, posterior.weight_decay))
    return float(tensors.squared_norm(ahead)) ** 0.5
