"""Extreme curvatures of the mean loss, from gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bif import tensors
from bif.types import Gradient, Params


def largest_curvature(
    gradient: Gradient,
    params: Params,
    *,
    direction: Params,
    masks: Params,
    iterations: int = 20,
) -> Tensor:
    """Return the largest curvature of a function at each chain's weights, by power iteration.

    Hessian products are central differences of gradients, so any gradient will do.

    Args:
        gradient: The gradient of the function at given weights.
        params: Leaves `[C, *shape]`.
        direction: The first direction, leaves `[C, *shape]`; overwritten.
        masks: The Hessian is 0 where weights may not move.

    Returns:
        `[C]`, at least 0.
    """
    product = hessian_product(gradient, params, masks)
    return largest_eigenvalue(product, direction, iterations=iterations)


def largest_eigenvalue(
    product: Callable[[Params], Params],
    direction: Params,
    *,
    iterations: int = 20,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Return the largest eigenvalue of a symmetric map of each chain, by power iteration.

    Args:
        product: The map of directions of length 1.
        direction: The first direction, leaves `[C, *shape]`; overwritten.
        total: Sum of a tensor over the processes that hold a part of all directions each.

    Returns:
        `[C]`, at least 0, a lower bound.
    """
    first = next(iter(direction.values()))
    largest = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    eigenvalue = shift = torch.zeros_like(largest)
    start = tensors.copied(direction)
    for _ in range(2):
        for eigenvalue in _power_iteration(product, direction, shift, iterations, total):
            largest = torch.maximum(largest, eigenvalue)
        # The eigenvalue of largest size may be negative: lifted by its size, the largest leads.
        shift = (-eigenvalue).clamp(min=0)
        if not shift.any():
            break
        direction = start
    return largest


def smallest_curvature(
    gradient: Gradient,
    params: Params,
    *,
    direction: Params,
    masks: Params,
    largest: Tensor,
    iterations: int = 20,
) -> Tensor:
    """Return the smallest curvature of a function, by power iteration on `H - largest`.

    Args: as for `largest_curvature`, and
        largest: The result of `largest_curvature`, `[C]`.

    Returns:
        `[C]`, an upper bound; at a minimum about 0, and below it at a saddle.
    """
    product = hessian_product(gradient, params, masks)
    smallest = largest.clone()
    for curvature in _power_iteration(product, direction, -largest, iterations):
        smallest = torch.minimum(smallest, curvature)
    return smallest


def _power_iteration(
    product: Callable[[Params], Params],
    direction: Params,
    shift: Tensor,
    iterations: int,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Iterator[Tensor]:
    """Yield curvatures `[C]` along the directions of a power iteration on `H + shift`."""
    for _ in range(iterations):
        length = total(tensors.squared_norm(direction)).sqrt()
        # Squares of what is smaller still are 0 in float32: there is no direction to go on in.
        tensors.scale_chains_(direction, torch.where(length > 1e-18, 1 / length, 0.0))
        ahead = product(direction)
        yield total(tensors.inner(direction, ahead))
        direction = tensors.add_(ahead, tensors.scale_chains_(direction, shift))


def hessian_product(
    gradient: Gradient, params: Params, masks: Params
) -> Callable[[Params], Params]:
    """Return the map `u -> H u` of a function, for directions of length 1.

    Args:
        gradient: The gradient of the function at given weights.
        params: Leaves `[C, *shape]`.
        masks: The product is 0 where weights may not move.
    """
    distance = 1e-4 if next(iter(params.values())).dtype == torch.float64 else 1e-2

    def product(direction: Params) -> Params:
        ahead = tensors.add_(tensors.copied(params), direction, distance)
        behind = tensors.add_(tensors.copied(params), direction, -distance)
        change = tensors.difference(gradient(ahead, 0).gradient, gradient(behind, 0).gradient)
        tensors.mul_(change, 0.5 / distance)
        for name, mask in masks.items():
            change[name].mul_(mask)
        return change

    return product
