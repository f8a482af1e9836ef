"""Influence with the empirical Fisher matrix, solved among the items instead of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.baselines.fitted import require_same_fit, resolve_damping
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import item_gradient_chunks, signed_products


class EmpiricalFisher:
    """`-g_iᵀ (F + damping·I)⁻¹ g_phi` with `F = (1/n) Σ rho_i g_i g_iᵀ`, in kernel form.

    With `K = G Gᵀ` of the items' gradients and `R = diag(rho)`, the scores of train items are
    `-n K_qt (R K + n·damping)⁻¹` (Woodbury): a system of the items, whatever the number of weights,
    and one factor for every query.  K is made once.

    Attributes:
        kernel: K, `[N, N]` float64 on the CPU.

    Source: Woodbury 1950; the empirical Fisher matrix in influence, e.g. Schioppa et al. 2022.
    """

    def __init__(self, problem: Problem, kernel: Tensor) -> None:
        self.kernel = kernel
        self._problem = problem

    @classmethod
    def fit(cls, problem: Problem) -> EmpiricalFisher:
        """Make the kernel of the train items' gradients, block by block of items."""
        rows = []
        for left in item_gradient_chunks(problem, problem.loss, problem.train):
            right = item_gradient_chunks(problem, problem.loss, problem.train)
            rows.append(torch.cat([(left @ part.T).double().cpu() for part in right], dim=1))
        return cls(problem, torch.cat(rows))

    @property
    def mean_eigenvalue(self) -> float:
        """The mean of F's eigenvalues that are not 0 for want of items."""
        return float(self.kernel.diagonal().mean()) / len(self.kernel)

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
            ValueError: Another model or train items; both or neither of the dampings; no damping.
        """
        require_same_fit(self._problem, problem)
        own = resolve_damping(damping, damping_scale, self.mean_eigenvalue)
        if not own > 0:
            raise ValueError(
                f"damping is {own:g}: the empirical Fisher matrix has a rank of at most the number "
                "of items and needs a damping above 0."
            )
        n, rho = len(self.kernel), self._problem.train_weights
        products = signed_products(problem, find_observable(problem, observable).function)
        system = self.kernel if rho is None else rho.double()[:, None] * self.kernel
        system = system + n * own * torch.eye(n, dtype=torch.float64)
        return n * torch.linalg.solve(system.T, products.T).T
