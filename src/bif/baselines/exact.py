"""Classical influence with the exact Hessian or Gauss-Newton matrix, for models small enough."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from bif.baselines.fitted import require_same_fit, resolve_damping
from bif.curvature.outputs import Criterion
from bif.curvature.products import CurvatureProduct, curvature_in_words
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import item_gradient_chunks, query_gradient_blocks

_MAX_WEIGHTS = 30_000
"""Number of weights of the largest dense matrix."""


class ExactInfluence:
    """`-g_iᵀ (C + damping·I)⁻¹ g_phi` for any damping, from one C.

    C is the Hessian or the Gauss-Newton matrix of the mean train loss at w*.  With the Hessian and
    `damping = gamma / nbeta` it is the leading order of `nbeta · BIF` (`docs/scale-and-sign.md`).
    C is made once, and that costs most; each damping is then one Cholesky factor, kept until
    another damping is asked.  (An eigendecomposition would serve all dampings, but takes as long
    as twenty factors.)

        fitted = ExactInfluence.fit(problem)
        fitted.scores(problem, damping=0.01)

    Attributes:
        curvature: C, `[P, P]` in float64, on the problem's device.
    """

    def __init__(self, problem: Problem, curvature: Tensor) -> None:
        self.curvature = curvature
        self._problem = problem
        self._factor: tuple[float, Tensor] | None = None

    @classmethod
    def fit(
        cls,
        problem: Problem,
        *,
        curvature: str = "hessian",
        criterion: Criterion | None = None,
    ) -> ExactInfluence:
        """Make the curvature matrix.

        Args:
            problem: A problem of at most 30,000 weights, all of which enter.
            curvature: "gauss_newton" or "hessian".
            criterion: For "gauss_newton", how the loss curves in the model's outputs:
                "cross_entropy" (a softmax over the last axis) or "squared_error".  Found by
                default.

        Raises:
            ValueError: Too many weights; a loss that cannot be split for "gauss_newton".
        """
        return cls(problem, dense_curvature(problem, curvature, criterion))

    @property
    def mean_eigenvalue(self) -> float:
        """The mean eigenvalue of C: its trace over the number of weights."""
        return float(self.curvature.diagonal().mean())

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of C, computed when first asked; negative off a minimum."""
        return float(torch.linalg.eigvalsh(self.curvature)[0])

    def scores(
        self,
        problem: Problem,
        *,
        damping: float | None = None,
        damping_scale: float | None = None,
        observable: str | None = None,
    ) -> Tensor:
        """Return the scores of any queries at any damping.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            damping: Damping in units of the mean loss's curvature.
            damping_scale: Instead, in units of the mean eigenvalue.
            observable: Name of one of the problem's observables; the first by default.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            ValueError: A damped curvature that is not positive; another model or train items;
                both or neither of the dampings.
        """
        require_same_fit(self._problem, problem)
        factor = self._damped_factor(resolve_damping(damping, damping_scale, self.mean_eigenvalue))
        blocks = []
        for rows in query_gradient_blocks(problem, find_observable(problem, observable).function):
            solved = torch.cholesky_solve(rows.double().T, factor).T
            train = item_gradient_chunks(problem, problem.loss, problem.train)
            blocks.append(torch.cat([-(solved @ part.double().T).cpu() for part in train], dim=1))
        return torch.cat(blocks)

    def _damped_factor(self, damping: float) -> Tensor:
        """Return the Cholesky factor of `C + damping·I`."""
        if self._factor is not None and self._factor[0] == damping:
            return self._factor[1]
        self._factor = None  # before another of its size is made
        damped = self.curvature.clone()
        damped.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            lowest = self.smallest_eigenvalue
            raise ValueError(
                "the damped Hessian is not positive: its smallest eigenvalue is "
                f"{lowest + damping:.3g}. Raise damping above {-lowest:.3g}."
            )
        self._factor = (damping, factor)
        return factor


def dense_curvature(problem: Problem, curvature: str, criterion: Criterion | None = None) -> Tensor:
    """Return the curvature matrix of the (weighted) mean train loss at w*, `[P, P]` float64.

    Raises:
        ValueError: More than 30,000 weights; a loss that cannot be split for "gauss_newton".
    """
    center = problem.center()
    count = sum(center[name].numel() for name in problem.trainable)
    if count > _MAX_WEIGHTS:
        raise ValueError(
            f"the exact {curvature_in_words(curvature)} of {count:,} weights does not fit: at most "
            f"{_MAX_WEIGHTS:,}. Use "
            "ConjugateGradients or EKFAC."
        )
    product = CurvatureProduct(problem, curvature, criterion=criterion)
    dtype = center[problem.trainable[0]].dtype
    matrix = torch.empty(count, count, dtype=torch.float64, device=problem.device)
    for start in range(0, count, 256):
        stop = min(start + 256, count)
        unit = torch.zeros(stop - start, count, dtype=dtype, device=problem.device)
        unit[:, start:stop].fill_diagonal_(1)
        matrix[start:stop] = product(unit)
    return (matrix + matrix.T) / 2
