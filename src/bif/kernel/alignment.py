"""Alignment of two kernels of the same items."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bif.estimate.item_kernel import ItemKernel, KernelKind
from bif.problem.literals import require_literal

Estimator = Literal["debiased", "plain"]


def linear_cka(
    first: ItemKernel,
    second: ItemKernel,
    *,
    kind: KernelKind = "correlation",
    estimator: Estimator = "debiased",
) -> float:
    """Return the centred kernel alignment `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`.

    "plain" is `HSIC(K, L) = tr(H K H L)` with `H = 1 - 11ᵀ/N`, which is near 1 for any two kernels
    of many more features than items.  "debiased" leaves the diagonals out and has expectation 0
    for unrelated features: with K, L of diagonal 0,

        HSIC(K, L) = (tr(K L) + 1ᵀK1 1ᵀL1 / ((N-1)(N-2)) - 2 1ᵀK L 1 / (N-2)) / (N (N-3)).

    Noise of draws in a loss kernel makes `HSIC(K, K)` larger, and so the alignment lower: that of
    two halves of the chains, `linear_cka(*kernel.halves())`, says how much.

    Args:
        first: A kernel.
        second: Another one of the same items.
        kind: Of both.
        estimator: "debiased", or "plain".

    Returns:
        A number up to 1; NaN where one of the kernels is constant.

    Raises:
        ValueError: Kernels of other items; fewer than four items; another kind or estimator.

    Source: Kornblith et al. 2019, arXiv 1905.00414, eq. 1 and 3; Song et al. 2012, "Feature
    selection via dependence maximization", eq. 4.
    """
    require_literal("kind", kind, KernelKind)
    require_literal("estimator", estimator, Estimator)
    if first.ids != second.ids:
        raise ValueError(
            f"kernels of {len(first)} and {len(second)} items that are not the same in the same "
            "order: expected equal ids. Take the items of both by of_items."
        )
    if len(first) < 4:
        raise ValueError(f"{len(first)} items: an alignment needs four or more.")
    x, y = (kernel.embedding(kind).double() for kernel in (first, second))
    alignment = _hsic if estimator == "debiased" else _plain_hsic
    own = alignment(x, x) * alignment(y, y)
    return float(alignment(x, y) / own**0.5) if own > 0 else float("nan")


def _plain_hsic(x: Tensor, y: Tensor) -> float:
    x, y = (rows - rows.mean(dim=0) for rows in (x, y))
    return float(_product_of_traces(x, y))


def _hsic(x: Tensor, y: Tensor) -> float:
    """Return the estimate without the diagonals, of features that are not centred."""
    # Means out of the way first: the estimate is the same, with fewer digits lost.
    x, y = (rows - rows.mean(dim=0) for rows in (x, y))
    count = len(x)
    own = [rows.square().sum(dim=1) for rows in (x, y)]
    sums = [rows @ rows.sum(dim=0) - diagonal for rows, diagonal in zip((x, y), own, strict=True)]
    product = _product_of_traces(x, y) - own[0] @ own[1]
    total = sums[0].sum() * sums[1].sum() / ((count - 1) * (count - 2))
    crossed = 2 * (sums[0] @ sums[1]) / (count - 2)
    return float(product + total - crossed) / (count * (count - 3))


def _product_of_traces(x: Tensor, y: Tensor) -> Tensor:
    """Return `tr(x xᵀ y yᵀ)`, by whichever of features and items are fewer."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return (x.T @ y).square().sum()
    return ((x @ x.T) * (y @ y.T)).sum()
