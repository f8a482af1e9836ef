"""How far w* is from a minimum of the training objective, in units of the gradient's noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bif import tensors
from bif.problem.items import Items
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import Oracle
from bif.sampling.posterior import LocalPosterior

_PARTS = 8
"""Parts of the items; the spread of their gradients is the sampling noise."""


def center_gradient(
    oracle: Oracle,
    posterior: LocalPosterior,
    items: Items,
    weights: Tensor,
    *,
    chunk_size: int,
) -> float:
    """Return `|∇L(w*) + weight_decay·w*|²` over its sampling noise, were the items drawn anew.

    About 1 or less at a minimum.  NaN of a single item, or where no gradient has any noise.

    Args:
        oracle: Where gradients come from.
        posterior: With center, masks and weight decay.
        items: Train items on the device.
        weights: rho of the items, `[N]`.
        chunk_size: Items of a forward and backward pass.
    """
    n, nbeta = len(items), posterior.nbeta
    parts = min(_PARTS, n)
    if parts < 2 or not nbeta:
        return math.nan
    center = tensors.stacked(posterior.center, 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(weights.device)
    total, squares = tensors.zeros_like(center), 0.0
    for chosen in order[: n - n % parts].chunk(parts):
        part = Items(items.take(chosen))
        gradient = FullGradient(oracle, part, chunk_size=chunk_size, train_weights=weights[chosen])(
            center, 0
        ).gradient
        tensors.add_(total, gradient)
        squares += float(tensors.squared_norm(gradient))
    mean = tensors.mul_(total, 1 / parts)
    spread = max(0.0, squares - parts * float(tensors.squared_norm(mean)))
    noise = spread / (parts * (parts - 1))
    force = posterior.potential_gradient_(tensors.copied(mean), center)
    square = float(tensors.squared_norm(force)) / nbeta**2
    return square / noise if noise > 0 else math.nan
