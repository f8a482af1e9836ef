"""Conjugate gradients for many right-hand sides at once, with their residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A linear map of rows `[K, P]`."""
_WIDENED = 2**25
"""Weights of a row that an inner product widens to float64 at a time."""


class NegativeCurvature(ValueError):
    """Raised where a direction is met in which the damped curvature is not positive.

    Attributes:
        lowest: That curvature, damping included.
    """

    def __init__(self, lowest: float, damping: float) -> None:
        super().__init__(
            f"conjugate gradients met a direction in which the damped curvature is {lowest:.3g}, "
            f"expected above 0: at damping {damping:.3g} the curvature is not positive. Raise "
            f"damping above {damping - lowest:.3g}, perhaps further, or use "
            "curvature='gauss_newton'."
        )
        self.lowest = lowest


@dataclass(frozen=True)
class Solution:
    """Solutions of `x (C + damping·I) = right`, row by row.

    Attributes:
        value: x, `[K, P]`.
        earlier: x after a fourth to half of its steps: how far it still moves; none, and a
            shrinkage of NaN, unless it was asked for.
        residuals: `|right - x (C + damping)| / |right|` of every row, `[K]` float64, computed anew
            at the end.
        shrinkage: The residual over that of `earlier`, `[K]` float64: about what of the error of
            `earlier` is left.
        steps: Products with C of every row, `[K]` on the CPU.
        diagonal: `[K, steps]` float64, of the tridiagonal matrix that `C + damping·I` is in the
            basis of the residuals; 1 after a row was solved.
        offdiagonal: `[K, steps - 1]`, beside it; 0 after a row was solved.
    """

    value: Tensor
    earlier: Tensor
    residuals: Tensor
    shrinkage: Tensor
    steps: Tensor
    diagonal: Tensor
    offdiagonal: Tensor

    def kept(self, change: float) -> Tensor:
        """Return `right·x` over what it is with another damping, `[K]`, without preconditioner.

        Args:
            change: What is added to the damping.
        """
        return _corner(self.diagonal, self.offdiagonal) / _corner(
            self.diagonal + change, self.offdiagonal
        )


def conjugate_gradients(
    product: Callable[..., Tensor],
    right: Tensor,
    *,
    damping: float,
    tolerance: float,
    max_steps: int,
    precondition: Product | None = None,
    row_factors: Tensor | None = None,
    device: torch.device | None = None,
    keeps_earlier: bool = True,
) -> Solution:
    """Solve `x (C + damping·I) = right` for every row by itself.

    Rows that are solved leave the iteration.  Inner products are accumulated in float64.  Vectors
    that a step only adds to stay where `right` is, which may be the host.

    Args:
        product: `X -> X C` for `[K, P]`.
        right: `[K, P]`.
        damping: Number added to the diagonal.
        tolerance: Largest `|residual| / |right|`; 0 takes all steps.
        max_steps: Most products of a row.
        precondition: `X -> X M⁻¹` with M near `C + damping·I`, symmetric and positive.
        row_factors: `[K, …]`, of which the product takes those of its rows as a second argument: a
            map of its own for each row.
        device: Device of the products; that of `right` by default.
        keeps_earlier: Whether there is an earlier solution, which takes two vectors a row.

    Raises:
        NegativeCurvature: A direction in which the damped curvature is not positive.

    Source: Hestenes and Stiefel 1952.
    """
    apply = precondition or (lambda rows: rows)
    times = _with_factors(product, row_factors)
    device, home = device or right.device, right.device
    residual = right.to(device, copy=True)
    size = _inner(residual, residual).sqrt().clamp(min=1e-300)
    direction = apply(residual).clone()
    aligned = _inner(residual, direction)
    solution = torch.zeros_like(right)
    earlier = _Earlier(solution, size) if keeps_earlier else None
    steps, steps_K = 0, torch.zeros(len(right), dtype=torch.long)
    tridiagonal = _Tridiagonal(aligned)
    while steps < max_steps:
        active = (_inner(residual, residual).sqrt() > tolerance * size).nonzero().flatten()
        if not len(active):
            break
        rows = slice(None) if len(active) == len(right) else active  # a slice makes no copies
        along = direction[rows]
        image = times(along, active).add_(along, alpha=damping)
        curved = _inner(along, image)
        lowest = float((curved / _inner(along, along)).min())
        if not lowest > 0:
            raise NegativeCurvature(lowest, damping)
        length = aligned[active] / curved
        at_home = active.to(home)
        solution[at_home] += (along * length.to(along)[:, None]).to(home)
        residual[rows] -= image.mul_(length.to(along)[:, None])
        del image
        left = residual[rows]
        ahead = apply(left)
        now = _inner(left, ahead)
        ratio = now / aligned[active]
        direction[rows] = along.mul_(ratio.to(along)[:, None]).add_(ahead)
        tridiagonal.add(active, length, ratio)
        aligned[active] = now
        steps += 1
        steps_K[active.cpu()] = steps
        if earlier is not None:
            earlier.follow(steps, solution, left, active)
    del residual, direction
    final = times(solution.to(device)).neg_()
    final += right.to(device) - damping * solution.to(device)
    left_over = _inner(final, final).sqrt()
    if earlier is None:
        then, shrinkage = solution[:0], torch.full_like(left_over, math.nan)
    else:
        then, shrinkage = earlier.value, left_over / earlier.size.clamp(min=1e-300)
    return Solution(solution, then, left_over / size, shrinkage, steps_K, *tridiagonal.stacked())


class _Earlier:
    """The solution at an earlier power of two of the steps; rows that are solved keep theirs.

    Attributes:
        value: It, `[K, P]`.
        size: Norm of its residual, `[K]` float64.
    """

    def __init__(self, solution: Tensor, size: Tensor) -> None:
        self.value, self._next = solution.clone(), solution.clone()
        self.size, self._next_size = size.clone(), size.clone()

    def follow(self, steps: int, solution: Tensor, residual: Tensor, active: Tensor) -> None:
        """Take in the solution after so many steps, and the residuals of rows that are active."""
        if steps & (steps - 1):
            return
        rows = active.to(solution.device)
        self.value[rows], self._next[rows] = self._next[rows], solution[rows]
        self.size[active] = self._next_size[active]
        self._next_size[active] = _inner(residual, residual).sqrt()


def _with_factors(
    product: Callable[..., Tensor], row_factors: Tensor | None
) -> Callable[..., Tensor]:
    """Return the product of rows, and of their positions where not all are multiplied."""

    def times(rows: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        return product(rows) if row_factors is None else product(rows, row_factors[which])

    return times


class _Tridiagonal:
    """The matrix of the recursion, row by row, from the lengths of its steps.

    Args:
        like: A number of every row, `[K]`.
    """

    def __init__(self, like: Tensor) -> None:
        self._like, self._before = like, torch.zeros_like(like)
        self._diagonal: list[Tensor] = []
        self._beside: list[Tensor] = []

    def add(self, active: Tensor, step: Tensor, ratio: Tensor) -> None:
        """Add a step of some rows; rows that are solved get a 1 that nothing is coupled to."""
        one, zero = torch.ones_like(self._like), torch.zeros_like(self._like)
        self._diagonal.append(one.index_copy(0, active, 1 / step) + self._before)
        self._beside.append(zero.index_copy(0, active, ratio.clamp(min=0).sqrt() / step))
        self._before = zero.index_copy(0, active, ratio / step)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the diagonal `[K, steps]` and what stands beside it `[K, steps - 1]`."""
        diagonal = torch.stack(self._diagonal or [torch.ones_like(self._like)], dim=1)
        beside = torch.stack(self._beside or [torch.zeros_like(self._like)], dim=1)
        return diagonal, beside[:, :-1]


def _corner(diagonal: Tensor, offdiagonal: Tensor) -> Tensor:
    """Return the first entry of the inverses of tridiagonal matrices, `[K]`."""
    matrix = torch.diag_embed(diagonal)
    matrix = matrix + torch.diag_embed(offdiagonal, 1) + torch.diag_embed(offdiagonal, -1)
    return torch.linalg.inv(matrix)[:, 0, 0]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of matching rows, `[K]` float64; by parts, which are widened."""
    parts = zip(a.split(_WIDENED, dim=1), b.split(_WIDENED, dim=1), strict=True)
    found = a.new_zeros(len(a), dtype=torch.float64)
    for x, y in parts:
        found += (x * y).sum(dim=1, dtype=torch.float64)
    return found
