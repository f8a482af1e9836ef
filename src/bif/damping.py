"""The default damping gamma/nbeta: how far draws may go in directions that the data leave open."""

from __future__ import annotations

import math

import torch

from bif import tensors
from bif.curvature import hessian_product
from bif.posterior import LocalPosterior
from bif.types import Gradient, Params

SHARE = 50.0
"""Part of the largest curvature at w* that is the damping where training left no slower trace."""
_ROUNDING = 10.0
"""Rounding errors of the steepest direction below which a gradient at w* is none."""


def usual_damping(largest: float, leftover: float) -> tuple[float, str]:
    """The default gamma/nbeta and the reason.

    `sqrt(a min(a, r))` of two yardsticks: a fiftieth of the largest curvature at w*, `a`, and the
    leftover curvature `r`.  Alone, `r` is too small where the items are fitted perfectly and `a`
    too large where training went on to its minimum: docs/calibration.md has both.

    Args:
        largest: Curvature of the mean loss at w*.
        leftover: What `leftover_curvature` found.
    """
    part = largest / SHARE
    if not leftover < part:  # not known, or steeper
        return part, f"largest curvature at w*, {largest:.4g}, / {SHARE:g}"
    return math.sqrt(part * leftover), (
        f"geometric mean of the largest curvature at w*, {largest:.4g}, / {SHARE:g} and of the "
        f"curvature along the gradient that training left there, {leftover:.4g}"
    )


def leftover_curvature(
    gradient: Gradient, posterior: LocalPosterior, params: Params, *, largest: float
) -> float:
    """`|H g| / |g|` at w* of the training objective's gradient g and Hessian H.

    Training by gradients shrinks g by the factor `exp(-H t)`, so what is left of it lies in
    directions of curvature 1/t, which training and retraining had no time to settle.

    Args:
        gradient: Of the mean loss over all train items.
        posterior: With center, masks and weight decay, both of which count.
        params: w*, leaves `[1, *shape]`.
        largest: Curvature of the mean loss at w*.

    Returns:
        In units of the loss; NaN where g is no more than w*'s rounding.
    """
    decay = posterior.weight_decay

    def objective(found: Params, at: Params) -> Params:
        tensors.add_(found, at, decay)
        for name in found.keys() & posterior.masks.keys():
            found[name].mul_(posterior.masks[name])
        return found

    left = objective(tensors.copied(gradient(params, 0).gradient), params)
    size = float(tensors.squared_norm(left)) ** 0.5
    rounding = torch.finfo(next(iter(params.values())).dtype).eps
    if not size > _ROUNDING * rounding * largest * float(tensors.squared_norm(params)) ** 0.5:
        return math.nan
    tensors.mul_(left, 1 / size)
    ahead = hessian_product(gradient, params, posterior.masks)(left)
    return float(tensors.squared_norm(objective(ahead, left))) ** 0.5
