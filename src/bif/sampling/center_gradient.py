"""Measure how far w* is from a minimum of the training objective, in units of noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bif import tensors
from bif.problem.items import Items
from bif.sampling.engine import Engine
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import Oracle
from bif.sampling.posterior import LocalPosterior

_GRADIENT_ITEMS = 32
"""Train items whose gradient at w* is compared when a run goes on."""
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
        oracle: Source of gradients.
        posterior: Posterior with center, masks and weight decay.
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
        squares += float(posterior.total(tensors.squared_norm(gradient)))
    mean = tensors.mul_(total, 1 / parts)
    spread = max(0.0, squares - parts * float(posterior.total(tensors.squared_norm(mean))))
    noise = spread / (parts * (parts - 1))
    force = posterior.potential_gradient_(tensors.copied(mean), center)
    square = float(posterior.total(tensors.squared_norm(force))) / nbeta**2
    return square / noise if noise > 0 else math.nan


def gradient_sums(engine: Engine) -> Tensor:
    """Return the norm and two sums of every moving leaf's gradient at w*, `[L, 3]`.

    They tell one gradient from another.  Of a few train items; empty where steps leave no room
    for a gradient of their own, or the model is sharded.
    """
    s, train = engine.settings, engine.observer.train_items
    if s.memory != "plain" or s.shards > 1:
        return torch.empty(0, 3, dtype=torch.float64)
    num = min(_GRADIENT_ITEMS, s.chunk_size, len(train))
    chosen = torch.linspace(0, len(train) - 1, num, device=engine.device).long()
    gradient, _ = engine.oracle.gradient(
        engine.center(1), train.take(chosen), engine.weights[chosen], per_chain=False
    )
    rows = []
    for leaf in gradient.values():
        x = leaf.detach().reshape(-1).double()
        waves = torch.cos(torch.arange(len(x), device=x.device, dtype=torch.float64))
        mean, wave = x.sum() / len(x) ** 0.5, x @ waves / len(x) ** 0.5  # at most the norm
        rows.append(torch.stack([x.norm(), mean, wave]))
    return torch.stack(rows).cpu()
