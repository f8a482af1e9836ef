"""The largest curvature of the mean loss, from gradients alone."""

from __future__ import annotations

import torch
from torch import Tensor

from bif import tensors
from bif.gradients import FullGradient
from bif.items import Items
from bif.oracles import Oracle
from bif.rng import BlockNoise
from bif.types import Params


def largest_curvature(
    oracle: Oracle,
    params: Params,
    *,
    items: Items,
    chunk_size: int,
    noise: BlockNoise,
    iterations: int = 20,
) -> Tensor:
    """Largest curvature of the mean loss at each chain's weights, by power iteration.

    Hessian products are central differences of gradients, so any oracle will do.

    Args:
        params: Leaves `[C, *shape]`.
        items: Over which the mean is taken.
        noise: For the start directions; weights that may not move stay out of them.

    Returns:
        `[C]`, at least 0.
    """
    first = next(iter(params.values()))
    weights = torch.ones(len(items), dtype=first.dtype, device=first.device)
    gradient = FullGradient(oracle, items, chunk_size=chunk_size, train_weights=weights)
    distance = 1e-4 if first.dtype == torch.float64 else 1e-2
    largest = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    curvature = shift = torch.zeros_like(largest)
    for _ in range(2):
        direction = noise.normal(params)
        for _ in range(iterations):
            length = tensors.squared_norm(direction).sqrt().clamp(min=1e-30)
            tensors.scale_chains_(direction, 1 / length)
            ahead = tensors.add_(tensors.copied(params), direction, distance)
            behind = tensors.add_(tensors.copied(params), direction, -distance)
            product = tensors.difference(gradient(ahead, 0).gradient, gradient(behind, 0).gradient)
            tensors.mul_(product, 0.5 / distance)
            for name, mask in noise.masks.items():
                product[name].mul_(mask)
            curvature = tensors.inner(direction, product)  # a lower bound at every step
            largest = torch.maximum(largest, curvature)
            direction = tensors.add_(product, tensors.scale_chains_(direction, shift))
        # Away from a minimum the eigenvalue of largest size may be negative: lifted by its size,
        # the largest one leads.
        shift = (-curvature).clamp(min=0)
        if not shift.any():
            break
    return largest
