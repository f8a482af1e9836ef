"""Classical influence by conjugate gradients: matrix-free, for models too large to be dense."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bif.baselines.ekfac import EKFAC
from bif.baselines.fitted import require_damping, require_same_fit
from bif.curvature.outputs import Criterion
from bif.curvature.products import CurvatureProduct
from bif.curvature.solve import conjugate_gradients
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

    Nothing is computed before the first call of `scores`; a Gauss-Newton matrix without damping or
    the Hessian off a minimum need damping.

    Attributes:
        report: The report of the latest call of `scores`; None before.
    """

    def __init__(
        self, problem: Problem, product: CurvatureProduct, preconditioner: EKFAC | None, *,
        tolerance: float, max_iterations: int, num_together: int,
    ) -> None:  # fmt: skip
        self.report: SolveReport | None = None
        self._problem, self._product, self._preconditioner = problem, product, preconditioner
        self._tolerance, self._limit, self._together = tolerance, max_iterations, num_together

    @classmethod
    def fit(
        cls,
        problem: Problem,
        *,
        curvature: str = "hessian",
        criterion: Criterion | None = None,
        preconditioner: EKFAC | None = None,
        tolerance: float = 1e-4,
        max_iterations: int = 500,
        num_together: int = 64,
        chunk_size: int = 256,
    ) -> ConjugateGradients:
        """Make the products with the curvature ready.

        Args:
            problem: Model, loss and train items.
            curvature: "gauss_newton" or "hessian".
            criterion: For "gauss_newton", how the loss curves in the model's outputs; found by
                default.
            preconditioner: EK-FAC fitted to the same problem with all weights, whose damped inverse
                every step begins with.
            tolerance: Residual relative to the query's gradient. Below about 1e-6 it needs a
                float64 model.
            max_iterations: Iterations after which a system is left as it is, with a warning.
            num_together: Queries solved at a time; memory grows with it times `chunk_size`.
            chunk_size: Items per product.

        Raises:
            ValueError: Limits that are not positive; a loss that cannot be split for
                "gauss_newton"; a preconditioner that leaves weights out, or beside a metric.
        """
        limits = {"tolerance": tolerance, "max_iterations": max_iterations,
                  "num_together": num_together, "chunk_size": chunk_size}  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}.")
        if preconditioner is not None:
            if problem.metric is not None:
                raise ValueError(
                    "EK-FAC's factors precondition an isotropic damping, and the problem has a "
                    "metric: leave the preconditioner out, or pass problem.with_metric(None)."
                )
            preconditioner.require_all_weights()
        product = CurvatureProduct(
            problem, curvature, criterion=criterion, chunk_size=chunk_size,
            num_together=num_together,
        )  # fmt: skip
        return cls(
            problem, product, preconditioner, tolerance=tolerance, max_iterations=max_iterations,
            num_together=num_together,
        )  # fmt: skip

    def scores(
        self,
        problem: Problem,
        *,
        damping: float,
        steps: int | None = None,
        observable: str | None = None,
    ) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: Damping in units of the mean loss's curvature.
            steps: Exactly so many iterations, whatever is left: stopping early damps, too.
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
        prepared = self._preconditioner
        blocks, residuals, most = [], [], 0
        for rows in query_gradient_blocks(problem, function, max_rows=self._together):
            found = conjugate_gradients(
                self._product,
                rows,
                damping=damping,
                tolerance=self._tolerance if steps is None else 0.0,
                max_steps=self._limit if steps is None else steps,
                precondition=prepared and partial(prepared.apply_inverse, damping=damping),
            )
            train = item_gradient_chunks(problem, problem.loss, problem.train)
            blocks.append(torch.cat([-(found.value @ g.T).double().cpu() for g in train], dim=1))
            residuals.append(found.residuals.cpu())
            most = max(most, int(found.steps.max()))
        self.report = SolveReport(most, torch.cat(residuals), self._tolerance)
        if steps is None:
            _warn_unless_solved(self.report)
        return torch.cat(blocks)


def _warn_unless_solved(report: SolveReport) -> None:
    if report.num_unsolved:
        warnings.warn(
            f"{report.num_unsolved} of {len(report.residuals)} systems are not solved after "
            f"{report.iterations} iterations: relative residuals up to "
            f"{report.largest_residual:.2g}, wanted {report.tolerance:.2g}. Raise max_iterations "
            "or damping; in float32 a tolerance below 1e-6 is out of reach.",
            stacklevel=3,
        )
