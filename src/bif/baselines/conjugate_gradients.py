"""Classical influence by conjugate gradients: matrix-free, for models too large to be dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bif.baselines.fitted import require_damping, require_same_fit
from bif.curvature.mean_curvature import Curvature, curvature_operator
from bif.curvature.outputs import Criterion
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import item_gradient_chunks, query_gradient_blocks


@dataclass(frozen=True)
class SolveReport:
    """Iterations and residuals of the linear systems of one call.

    Args:
        iterations: Products with the curvature, of the block of queries that took most.
        residuals: `|g - (C + damping) x| / |g|` of every query, `[Q]`, computed anew at the end.
        tolerance: The tolerance that was asked for.
    """

    iterations: int
    residuals: Tensor
    tolerance: float

    @property
    def largest_residual(self) -> float:
        """The relative residual of the worst query."""
        return float(self.residuals.max())

    @property
    def num_unsolved(self) -> int:
        """Number of queries above twice the tolerance: the recursion rounds."""
        return int((self.residuals > 2 * self.tolerance).sum())


class ConjugateGradients:
    """`-g_iᵀ (C + damping·I)⁻¹ g_phi` by conjugate gradients, one system a query.

    Products with the Hessian or Gauss-Newton matrix C of the mean train loss come from curvlinops
    for many queries together; the iteration is our own, because curvlinops' (`linear_cg`) neither
    reports residuals nor notices negative curvature.  Nothing is computed before the first call
    of `scores`; a Gauss-Newton matrix without damping or the Hessian off a minimum need damping.

    Attributes:
        report: The report of the latest call of `scores`; None before.
    """

    def __init__(
        self, problem: Problem, operator: Any, *, tolerance: float, max_iterations: int,
        num_together: int,
    ) -> None:  # fmt: skip
        self.report: SolveReport | None = None
        self._problem, self._operator = problem, operator
        self._tolerance, self._limit, self._together = tolerance, max_iterations, num_together

    @classmethod
    def fit(
        cls,
        problem: Problem,
        *,
        curvature: Curvature = "hessian",
        criterion: Criterion | None = None,
        tolerance: float = 1e-4,
        max_iterations: int = 500,
        num_together: int = 64,
        chunk_size: int = 256,
    ) -> ConjugateGradients:
        """Make the products with the curvature ready.

        Args:
            problem: Model, loss and train items.
            curvature: "hessian" or "ggn".
            criterion: For "ggn", how the loss curves in the model's outputs; found by default.
            tolerance: Residual relative to the query's gradient. Below about 1e-6 it needs a
                float64 model.
            max_iterations: Iterations after which a system is left as it is, with a warning.
            num_together: Queries solved at a time; memory grows with it times `chunk_size`.
            chunk_size: Items per product.

        Raises:
            ValueError: Limits that are not positive; a loss that cannot be split for "ggn".
            ImportError: The extra `baselines` is not installed.
        """
        limits = {"tolerance": tolerance, "max_iterations": max_iterations,
                  "num_together": num_together, "chunk_size": chunk_size}  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}.")
        operator = curvature_operator(
            problem, curvature, criterion=criterion, chunk_size=chunk_size
        )
        return cls(
            problem, operator, tolerance=tolerance, max_iterations=max_iterations,
            num_together=num_together,
        )  # fmt: skip

    def scores(self, problem: Problem, *, damping: float, observable: str | None = None) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: Damping in units of the mean loss's curvature.
            observable: Name of one of the problem's observables; the first by default.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            ValueError: A direction of negative curvature; another model or train items.

        Warns:
            UserWarning: Systems not solved to the tolerance; `report` has the residuals.
        """
        require_same_fit(self._problem, problem)
        require_damping(damping)
        function = find_observable(problem, observable).function
        blocks, residuals, most = [], [], 0
        for rows in query_gradient_blocks(problem, function, max_rows=self._together):
            solution, residual, iterations = conjugate_gradients(
                lambda x: self._operator @ x,
                rows.T.contiguous(),
                damping=damping,
                tolerance=self._tolerance,
                max_iterations=self._limit,
            )
            train = item_gradient_chunks(problem, problem.loss, problem.train)
            blocks.append(torch.cat([-(solution.T @ g.T).double().cpu() for g in train], dim=1))
            residuals.append(residual.cpu())
            most = max(most, iterations)
        self.report = SolveReport(most, torch.cat(residuals), self._tolerance)
        _warn_unless_solved(self.report)
        return torch.cat(blocks)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    damping: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, int]:
    """Solve `(C + damping·I) x = right` for every column by itself.

    Columns that are solved leave the iteration.

    Args:
        product: `C @ x` for `[P, K]`.
        right: `[P, K]`.
        damping: Number added to the diagonal.
        tolerance: Tolerance of `|residual| / |right|`.
        max_iterations: Largest number of products.

    Returns:
        The solutions `[P, K]`, their relative residuals `[K]` float64, and the iterations.

    Raises:
        ValueError: A direction in which the damped curvature is not positive.
    """
    size = _column_products(right, right).sqrt().clamp(min=1e-300)
    solution = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    squared = _column_products(right, right)
    iterations = 0
    while iterations < max_iterations:
        active = (squared.sqrt() > tolerance * size).nonzero().flatten()
        if not len(active):
            break
        iterations += 1
        along = direction[:, active]
        image = product(along).add_(along, alpha=damping)
        curved = _column_products(along, image)
        _require_positive(curved, _column_products(along, along), damping)
        step = squared[active] / curved
        solution[:, active] += along * step.to(along)
        left = residual[:, active] - image * step.to(along)
        residual[:, active] = left
        now = _column_products(left, left)
        direction[:, active] = left + along * (now / squared[active]).to(along)
        squared[active] = now
    final = right - product(solution) - damping * solution
    return solution, _column_products(final, final).sqrt() / size, iterations


def _column_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of matching columns, `[K]` float64."""
    return (a * b).sum(dim=0, dtype=torch.float64)


def _require_positive(curved: Tensor, squared: Tensor, damping: float) -> None:
    lowest = float((curved / squared).min())
    if not lowest > 0:
        raise ValueError(
            f"conjugate gradients met a direction in which the damped curvature is {lowest:.3g}, "
            f"expected above 0: at damping {damping:.3g} the curvature is not positive. Raise "
            f"damping above {damping - lowest:.3g}, perhaps further, or use curvature='ggn'."
        )


def _warn_unless_solved(report: SolveReport) -> None:
    if report.num_unsolved:
        warnings.warn(
            f"{report.num_unsolved} of {len(report.residuals)} systems are not solved after "
            f"{report.iterations} iterations: relative residuals up to "
            f"{report.largest_residual:.2g}, wanted {report.tolerance:.2g}. Raise max_iterations "
            "or damping; in float32 a tolerance below 1e-6 is out of reach.",
            stacklevel=3,
        )
