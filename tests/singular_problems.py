"""Problems with singular minima, and their learning coefficients at finite nbeta and gamma.

The references integrate; nothing of the library's samplers is in them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

import bif
from bif.types import Batch
from exact_problems import Point
from small_problems import normal

CHAINS = 256


def crossing_loss(model: nn.Module, batch: Batch) -> Tensor:
    """`scale · Π_j w_j^(2 k_j)`."""
    scale, powers = batch
    return scale * (cast(Tensor, model.w) ** (2 * powers)).prod(dim=-1)


def crossing_problem(powers: list[int]) -> bif.Problem:
    """Two items whose mean loss is `Π_j w_j^(2 k_j)`."""
    items = torch.tensor([0.5, 1.5]).double(), torch.tensor([powers, powers]).double()
    center = torch.zeros(len(powers), dtype=torch.float64)
    return bif.Problem(Point(center), crossing_loss, train=items, queries=items)


def crossing_reference(powers: list[int], *, nbeta: float, gamma: float) -> float:
    """`nbeta·E[L]` by the trapezoid rule."""
    grid = torch.linspace(-7, 7, 3001, dtype=torch.float64) / gamma**0.5
    loss, square = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for power in powers:
        loss, square = loss[..., None] * grid ** (2 * power), square[..., None] + grid.square()
    return _mean(nbeta, loss, torch.exp(-nbeta * loss - gamma / 2 * square))


def linear_network(widths: list[int], *, scale: float, seed: int = 0) -> nn.Sequential:
    """Layers without biases, with weights from N(0, scale²), which are the center."""
    layers = [nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:], strict=False)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for place, layer in enumerate(layers):
            layer.weight.copy_(scale * normal(*layer.weight.shape, seed=seed + place))
    return model


def network_problem(model: nn.Sequential) -> bif.Problem:
    """As many items as inputs, for which `L = ½·‖W_K … W_1 - true map‖²`."""
    first = cast(nn.Linear, model[0]).in_features
    x = first**0.5 * torch.eye(first, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    return bif.Problem(model, bif.losses.squared_error, train=(x, y), queries=(x, y))


def two_layer_reference(model: nn.Sequential, *, nbeta: float, gamma: float) -> float:
    """`nbeta·E[L]`: Gaussian integrals over the second layer, a grid over the first.

    Given A, row k of B has precision `P = nbeta·A Aᵀ + gamma` and mean `P⁻¹ (nbeta·A t_k +
    gamma·b*_k)`.
    """
    a0, b0 = (cast(nn.Linear, layer).weight.detach() for layer in model)
    target = b0 @ a0
    hidden, inputs = a0.shape
    reach = 5.0 / gamma**0.5
    grid = torch.linspace(-reach, reach, 41, dtype=torch.float64)
    away = torch.cartesian_prod(*[grid] * (hidden * inputs)).reshape(-1, hidden, inputs)
    loss, weight = [], []
    for part in away.split(200_000):
        a = a0 + part
        precision = nbeta * a @ a.mT + gamma * torch.eye(hidden, dtype=torch.float64)
        covariance = torch.linalg.inv(precision)
        pull = nbeta * target @ a.mT + gamma * b0  # [G, outputs, hidden]
        mean = pull @ covariance
        spread = (a @ a.mT * covariance).sum(dim=(1, 2)) * len(b0)
        loss.append(0.5 * ((mean @ a - target).square().sum(dim=(1, 2)) + spread))
        log_weight = -0.5 * len(b0) * torch.linalg.det(precision).log()
        log_weight += 0.5 * (pull * mean).sum(dim=(1, 2))
        weight.append(log_weight - gamma / 2 * part.square().sum(dim=(1, 2)))
    return _mean(nbeta, torch.cat(loss), torch.softmax(torch.cat(weight), dim=0))


def three_layer_reference(outer: int, *, nbeta: float, gamma: float) -> float:
    """`nbeta·E[L]` of widths (outer, 1, 1, outer) around 0, `L = ½ a² b² c²`, by radii a and c."""
    grid = torch.linspace(-7, 7, 281, dtype=torch.float64) / gamma**0.5
    radius = grid[grid > 0]
    a, b, c = torch.meshgrid(radius, grid, radius, indexing="ij")
    loss = 0.5 * (a * b * c).square()
    square = a.square() + b.square() + c.square()
    weight = (a * c) ** (outer - 1) * torch.exp(-nbeta * loss - gamma / 2 * square)
    return _mean(nbeta, loss, weight)


def settings(*, nbeta: float, gamma: float, step_size: float, thin: int) -> bif.Settings:
    """Chains that forget where they were from draw to draw."""
    return bif.Settings(
        nbeta=nbeta, gamma=gamma, chains=CHAINS, block_size=CHAINS, draws=60, burn_in=8 * thin,
        thin=thin, step_size=step_size, friction=2 * gamma**0.5, mass="identity", gradient="full",
    )  # fmt: skip


def _mean(nbeta: float, loss: Tensor, weight: Tensor) -> float:
    return nbeta * float((loss * weight).sum() / weight.sum())
