"""The linear part of a loss kernel by the Gauss-Newton matrix, and how much of the kernel it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bif.curvature.root_rows import root_rows
from bif.estimate.item_kernel import FeatureKernel, ItemKernel, KernelKind
from bif.estimate.loss_kernel import LossKernel, refuse_without_chains
from bif.problem.problem import Problem, find_observable
from bif.runs.loss_kernel import Sides
from bif.sampling.item_gradients import item_gradients

_MOST_SYSTEM = 20_000
"""Rows of the largest system: 3.2 GB in float64."""
_MOST_NUMBERS = 2**30
"""Of gradients that are held: 8.6 GB in float64."""
_ROWS = 1024
"""Items of a block of the kernel that is made at a time."""


@dataclass(frozen=True)
class LinearShare:
    """How much of a sampled kernel is linear, over pairs of different items.

    Attributes:
        correlation: Pearson's correlation of the entries of both kernels, the sampled one's without
            the noise of its draws; may be above 1 by what noise is left, NaN where there is nothing
            but noise.
        correlation_error: Its standard error by the spread of the chains.
        share: `correlation²`: of the variance of the kernel's entries, what is linear.
        slope: Of the regression of the sampled entries on the linear ones: 1 where both are the
            same.
        slope_error: Its standard error.
        variance_share: Sum of the linear variances of items over that of the sampled.
    """

    correlation: float
    correlation_error: float
    share: float
    slope: float
    slope_error: float
    variance_share: float


def linear_kernel(
    problem: Problem,
    kernel: ItemKernel,
    *,
    nbeta: float,
    gamma: float,
    weight_decay: float = 0.0,
    sides: Sides = "train",
    observable: str | None = None,
) -> FeatureKernel:
    """Return `K_ij = g_iᵀ (nbeta·C + gamma·I)⁻¹ g_j`, the kernel of losses linear in the weights.

    With C the Gauss-Newton matrix of the mean train loss and g the gradients, both at w*: the
    leading order of the loss kernel at low temperature, where w* is a minimum.  A decay adds
    `nbeta·weight_decay` to gamma.  With `C = Aᵀ A` of n·K rows the system is that of the weights,
    or of the rows if weights are too many:
    `gamma·K = G Gᵀ - nbeta·G Aᵀ (gamma·I + nbeta·A Aᵀ)⁻¹ A Gᵀ` (Woodbury).

    Args:
        problem: Model, loss and items; all trained weights move.
        kernel: Of the same items, which names them.
        nbeta: Of the local posterior; a run's is `run.manifest["settings"]["nbeta"]`.
        gamma: Of the local posterior.
        weight_decay: Of the local posterior.
        sides: Items, as for `bif.loss_kernel`.
        observable: Of the queries; the first by default.

    Returns:
        A kernel of as many features as weights, or as items if these are fewer, in float64.

    Raises:
        ValueError: Other items; a gamma or nbeta below 0 or no gamma; more than 20,000 weights, and
            as many rows or items; gradients of more than 2^30 numbers; a loss that has no
            Gauss-Newton matrix; tokens with columns of their own.
        KeyError: No such observable.

    Source: Woodbury 1950; the leading order as in Kreer et al. 2025, arXiv 2509.26544.
    """
    damping = gamma + nbeta * weight_decay
    if not (nbeta >= 0 and gamma >= 0 and damping > 0 and math.isfinite(damping)):
        raise ValueError(
            f"nbeta is {nbeta:g} and gamma {gamma:g} with decay {weight_decay:g}: expected 0 or "
            "more, and gamma or decay above 0, as a run's settings have them."
        )
    problem.refuse_tokens("a linear kernel")
    _refuse_large(problem, len(kernel))
    rows, ids = _gradients(problem, sides, observable)
    if tuple(ids) != kernel.ids:
        raise ValueError(
            f"the problem has {len(ids)} items on side {sides!r}, and the kernel {len(kernel)} "
            "others: take the kernel of a run of this problem, with the same sides."
        )
    return FeatureKernel(_factor(problem, rows, nbeta, damping), kernel.ids, kernel.labels)


def linear_share(
    kernel: LossKernel, linear: ItemKernel, *, kind: KernelKind = "correlation"
) -> LinearShare:
    """Return how much of a sampled kernel is linear.

    The variance of the sampled entries is taken from products of different chains, whose noise is
    independent: that of an estimate would count the noise as not linear.

    Args:
        kernel: Sampled, of at least three chains.
        linear: Of the same items, by `linear_kernel`; any other kernel is compared as well.
        kind: Of entries.

    Raises:
        ValueError: Kernels of other items; fewer than three items or chains.
    """
    refuse_without_chains(kernel, "shares of what was sampled")
    if kernel.ids != linear.ids or len(kernel) < 3:
        raise ValueError(
            f"kernels of {len(kernel)} and {len(linear)} items: expected the same three or more, "
            "in the same order."
        )
    value, error = kernel.jackknife(lambda k: _correlation_and_slope(k, linear, kind))
    share = float(linear.variance.sum() / kernel.variance.sum().clamp(min=1e-300))
    return LinearShare(
        float(value[0]), float(error[0]), float(value[0] ** 2), float(value[1]), float(error[1]),
        share,
    )  # fmt: skip


def _gradients(problem: Problem, sides: Sides, observable: str | None) -> tuple[Tensor, list[str]]:
    """Return gradients of the items' losses, `[N, P]` float64, and ids."""
    groups, ids = [], []
    if sides != "query":
        groups += [(problem.loss, items) for items in problem.scored_groups.values()]
        ids += problem.scored_ids.tolist()
    if sides != "train":
        asked = find_observable(problem, observable).function
        groups += [(asked, items) for items in problem.query_groups.values()]
        ids += problem.query_ids.tolist()
    rows = [item_gradients(problem, function, items).double() for function, items in groups]
    return torch.cat(rows), [str(name) for name in ids]


def _refuse_large(problem: Problem, num_items: int) -> None:
    num_weights = sum(problem.center()[name].numel() for name in problem.trainable)
    if num_items * num_weights > _MOST_NUMBERS or min(num_items, num_weights) > _MOST_SYSTEM:
        raise ValueError(
            f"{num_items:,} items and {num_weights:,} weights: gradients are held of at most "
            f"{_MOST_NUMBERS:,} numbers, and of at most {_MOST_SYSTEM:,} items or weights, "
            "whichever are fewer. Take a smaller model or fewer items."
        )


def _factor(problem: Problem, rows: Tensor, nbeta: float, damping: float) -> Tensor:
    """Return rows whose inner products are `G (nbeta·AᵀA + damping·I)⁻¹ Gᵀ`, on the CPU."""
    num_weights, system, along, num_rows = rows.shape[1], None, [], 0
    parts: list[Tensor] = []
    for part in root_rows(problem):
        part = part.double() * nbeta**0.5
        num_rows += len(part)
        many = num_weights > _MOST_SYSTEM and num_weights * num_rows > _MOST_NUMBERS
        if many or min(num_weights, num_rows) > _MOST_SYSTEM:
            raise ValueError(
                f"{num_weights:,} weights, and {num_rows:,} outputs of all train items or more: "
                "the linear kernel solves a system of the fewer of both, of at most "
                f"{_MOST_SYSTEM:,}, and holds at most {_MOST_NUMBERS:,} numbers. Take a smaller "
                "model or fewer train items."
            )
        if num_weights <= _MOST_SYSTEM:
            product = part.T @ part
            system = product if system is None else system.add_(product)
        else:
            parts.append(part)
            along.append(rows @ part.T)
    if system is not None:
        system.diagonal().add_(damping)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(system), rows.T, upper=False)
        return half.T.contiguous().cpu() if len(rows) > num_weights else _rooted(half.T @ half)
    every, beside = torch.cat(parts), torch.cat(along, dim=1)
    system = every @ every.T
    system.diagonal().add_(damping)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(system), beside.T, upper=False)
    return _rooted((rows @ rows.T - half.T @ half) / damping)


def _rooted(matrix: Tensor) -> Tensor:
    """Return rows whose inner products are a positive semi-definite matrix, on the CPU."""
    sizes, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * sizes.clamp(min=0).sqrt()).cpu()


def _correlation_and_slope(kernel: LossKernel, linear: ItemKernel, kind: KernelKind) -> np.ndarray:
    """Return the correlation without noise, and the slope, over pairs of different items."""
    parts = kernel.columns_of_chains()
    if len(parts) < 2:
        raise ValueError("a variance without noise needs two chains, and there is one.")
    x, other = kernel.embedding(kind).double(), linear.embedding(kind).double()
    sums_C = np.zeros(len(parts))
    squares = product = of_linear = square_of_linear = 0.0
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        expected = other[rows] @ other.T
        own = torch.arange(len(expected))
        expected[own, start + own] = 0
        total, noise = torch.zeros_like(expected), 0.0
        for c, here in enumerate(parts):
            block = x[rows][:, here] @ x[:, here].T
            block[own, start + own] = 0
            total += block
            noise += float(block.square().sum())
            sums_C[c] += float(block.sum())
        squares += float(total.square().sum()) - noise
        product += float((total * expected).sum())
        of_linear += float(expected.sum())
        square_of_linear += float(expected.square().sum())
    pairs = len(x) * (len(x) - 1)
    both = kernel.share_of_different_chains()
    mean_square = (sums_C.sum() ** 2 - (sums_C**2).sum()) / both / pairs**2
    variance = squares / both / pairs - mean_square
    spread = square_of_linear / pairs - (of_linear / pairs) ** 2
    covariance = product / pairs - sums_C.sum() / pairs * of_linear / pairs
    if spread <= 0:
        return np.array([math.nan, math.nan])
    correlation = covariance / (variance * spread) ** 0.5 if variance > 0 else math.nan
    return np.array([correlation, covariance / spread])
