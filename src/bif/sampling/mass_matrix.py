"""A mass that is diagonal in a basis of Kronecker products, a leaf at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bif import tensors
from bif.sampling.posterior import LocalPosterior
from bif.types import Mass, Params


@dataclass(frozen=True)
class KroneckerMass:
    """`M = (R_l ⊗ R_r) diag(1 / scale²) (R_l ⊗ R_r)ᵀ` for each leaf as a matrix `[m, n]`.

    A leaf `[m, …]` is a matrix of its first axis by all others; a vector is one row.  With
    `w = w* + M^(-1/2) x` a step of unit mass in x is a step of mass M in w: the posterior of w is
    the same, whatever M is, and the nearer `M` is to the curvature of U, the rounder is that of x.

    Attributes:
        left: Rotations `[m, m]`; a leaf that is not here is not rotated on that side.
        right: Rotations `[n, n]`, likewise.
        scale: `M^(-1/2)` in the rotated basis, `[m, n]`.

    Source: the eigenbasis of Kronecker factors is that of EK-FAC (George et al. 2018,
    arXiv 1806.03884) and SOAP (Vyas et al. 2024, arXiv 2409.11321).
    """

    left: Params
    right: Params
    scale: Params

    def to_weights(self, velocity: Params) -> Params:
        """Return `M^(-1/2) x`: velocities in the mass's coordinates to those of weights."""
        return {
            name: self._rotated(name, self._matrix(name, leaf) * self.scale[name], back=True)
            .reshape(leaf.shape)
            for name, leaf in velocity.items()
        }  # fmt: skip

    def to_velocity(self, force: Params) -> Params:
        """Return `(M^(-1/2))ᵀ g`: gradients by weights to those in the mass's coordinates."""
        return {
            name: (self._rotated(name, self._matrix(name, leaf), back=False) * self.scale[name])
            .reshape(leaf.shape)
            for name, leaf in force.items()
        }  # fmt: skip

    def _matrix(self, name: str, leaf: Tensor) -> Tensor:
        return leaf.reshape(len(leaf), *self.scale[name].shape)

    def _rotated(self, name: str, matrix: Tensor, *, back: bool) -> Tensor:
        left, right = self.left.get(name), self.right.get(name)
        if left is not None:
            matrix = torch.matmul(left if back else left.T, matrix)
        if right is not None:
            matrix = torch.matmul(matrix, right.T if back else right)
        return matrix


def whitened_product(
    product: Callable[[Params], Params], posterior: LocalPosterior, mass: Mass | None
) -> Callable[[Params], Params]:
    """Return `x -> (M^(-1/2))ᵀ U'' M^(-1/2) x`, from products with the mean loss's Hessian.

    Args:
        product: Product with the mean loss's Hessian, of directions of length 1.
        posterior: Posterior with nbeta, gamma and weight decay.
        mass: Unit mass if None.
    """
    ridge = posterior.nbeta * posterior.weight_decay + posterior.gamma

    def white(direction: Params) -> Params:
        moved = tensors.copied(direction) if mass is None else mass.to_weights(direction)
        length = posterior.total(tensors.squared_norm(moved)).sqrt().clamp(min=1e-30)
        ahead = product(tensors.scale_chains_(tensors.copied(moved), 1 / length))
        ahead = tensors.mul_(tensors.scale_chains_(ahead, length), posterior.nbeta)
        ahead = tensors.add_(ahead, moved, ridge)
        return ahead if mass is None else mass.to_velocity(ahead)

    return white
