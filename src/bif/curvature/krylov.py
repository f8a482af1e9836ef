"""Solutions of one system at any damping and any number of steps, from one Lanczos recursion."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.curvature.solve import Product


class KrylovSpace:
    """The spaces `span(b, b C, …, b Cᵏ⁻¹)` of rows b, with orthonormal bases.

    Conjugate gradients for `x (C + damping·I) = b` after j steps are
    `x = Vⱼᵀ (Tⱼ + damping·I)⁻¹ |b| e₁` with the first j basis vectors and the tridiagonal matrix T
    of the recursion: every damping and every j from the same products.

    Args:
        product: `X -> X C` for `[K, P]`.
        right: b, `[K, P]`.
        steps: k.

    Attributes:
        basis: `[k, K, P]`.

    Source: Lanczos 1950; Paige and Saunders 1975.
    """

    def __init__(self, product: Product, right: Tensor, *, steps: int) -> None:
        self._size = right.double().norm(dim=1)
        vector = right / self._size.clamp(min=1e-300).to(right)[:, None]
        before, beta = torch.zeros_like(vector), torch.zeros_like(self._size)
        self.basis, alphas, betas = right.new_empty(steps, *right.shape), [], []
        for step in range(steps):
            self.basis[step] = vector
            image = product(vector) - beta.to(vector)[:, None] * before
            alpha = (image * vector).sum(dim=1, dtype=torch.float64)
            image -= alpha.to(vector)[:, None] * vector
            for earlier in self.basis[: step + 1]:  # rounding brings earlier directions back
                image -= (image * earlier).sum(dim=1, keepdim=True) * earlier
            beta = image.double().norm(dim=1)
            alphas.append(alpha)
            betas.append(beta)
            # A space that is whole has no further direction.
            scale = torch.where(beta > 1e-12 * alphas[0].abs(), 1 / beta.clamp(min=1e-300), 0.0)
            before, vector = vector, image * scale.to(vector)[:, None]
        self._alpha, self._beta = torch.stack(alphas, dim=1), torch.stack(betas, dim=1)

    def coefficients(self, *, damping: float, steps: int) -> Tensor:
        """Return the solutions in the basis, `[K, steps]` float64."""
        alpha, beta = self._alpha[:, :steps], self._beta[:, : steps - 1]
        matrix = torch.diag_embed(alpha + damping)
        matrix = matrix + torch.diag_embed(beta, offset=1) + torch.diag_embed(beta, offset=-1)
        unit = torch.zeros_like(alpha)
        unit[:, 0] = self._size
        return torch.linalg.solve(matrix, unit)
