"""A loss kernel with the noise of its draws shrunk, direction by direction, by held-out chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bif.estimate.item_kernel import FeatureKernel, names_of_items
from bif.estimate.loss_kernel import LossKernel, refuse_without_chains


@dataclass(frozen=True, eq=False)
class CleanedKernel(FeatureKernel):
    """A kernel of features with a diagonal of its own, which scales its correlations.

    A correlation of an item with itself is what the features hold of its variance.

    Args:
        features: What is held of the losses, `[N, r]`.
        ids: Names of the items.
        labels: Of each item, by what they say, such as "class".
        diagonal: Variances of the items, `[N]` float64.
        spectrum: Of the kernel of correlations: what the draws say, and what held-out chains say,
            each over the largest of the first, `[2, r]`.

    Raises:
        ValueError: As of a `FeatureKernel`; another number of variances.
    """

    diagonal: Tensor
    spectrum: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagonal.shape != (len(self.features),):
            raise ValueError(
                f"variances are {tuple(self.diagonal.shape)}, expected one for each of "
                f"{len(self.features)} items."
            )

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """The variances that were given, `[N]` float64."""
        return self.diagonal

    def of_items(self, items: Sequence[int] | np.ndarray) -> CleanedKernel:
        """Return the kernel of some of the items, by their positions."""
        kept = torch.as_tensor(np.asarray(items))
        ids, labels = names_of_items(self, items)
        return CleanedKernel(self.features[kept], ids, labels, self.diagonal[kept], self.spectrum)


def cleaned(kernel: LossKernel, *, num_groups: int = 8) -> CleanedKernel:
    """Return the kernel with eigenvalues that chains outside of the eigenvectors' give.

    The largest eigenvalues of a noisy kernel are too large and the small ones too small, since its
    eigenvectors follow the noise.  So the k-th eigenvector of `R` without a group of chains, `u_k`,
    is held against that group: `u_kᵀ R_group u_k` is without that bias.  Their mean over the
    groups, made to fall with k, takes the eigenvalue's place, less that of the directions which no
    draw shows; eigenvectors and diagonal stay.

    Values come nearer to the truth, and neighbours too where there are more draws than directions
    that matter (`python -m benchmarks.kernel.noise`).  Two halves of the chains are compared by
    cleaning each by itself; a cleaned kernel has no chains to leave out.

    Args:
        kernel: Of at least two chains.
        num_groups: Groups of chains, at most as many as chains.

    Raises:
        ValueError: A single chain; fewer than two groups; losses that never move.

    Source: Abadir, Distaso & Zikes 2014, "Design-free estimation of variance matrices"; Bartz 2016,
    arXiv 1611.00798, for groups and the monotone fit.
    """
    refuse_without_chains(kernel, "cleaned kernels")
    chains = kernel.chains.unique()
    if len(chains) < 2 or num_groups < 2:
        raise ValueError(
            f"{len(chains)} chains in {num_groups} groups: held-out chains need two of each."
        )
    x = kernel.embedding().double()
    sizes, directions = _directions(x)
    if not len(sizes):
        raise ValueError("no item's loss moves over the draws: there is nothing to clean.")
    curves = []
    for group in chains.tensor_split(min(num_groups, len(chains))):
        out = torch.isin(kernel.chains, group)
        # about the mean of the rest: that of all draws would tie the group to the rest
        mean = x[:, ~out].mean(dim=1, keepdim=True)
        along = (x[:, out] - mean).T @ _directions(x[:, ~out] - mean)[1]
        scale = (len(out) - 1) / int(out.sum()) / (1 + 1 / int((~out).sum()))
        shares = along.square().sum(dim=0).numpy() * scale
        shares = np.append(shares, 0.0) if not len(shares) else shares[: len(sizes)]
        # fewer draws have fewer directions: the last ones are as the last of those
        curves.append(np.pad(shares, (0, len(sizes) - len(shares)), mode="edge"))
    fitted, unseen = _falling(np.mean(curves, axis=0), int((kernel.variance > 0).sum()))
    scale = torch.outer(kernel.variance.sqrt(), torch.from_numpy(fitted - unseen).sqrt())
    return CleanedKernel(
        (directions * scale).to(kernel.losses.dtype), kernel.ids, kernel.labels, kernel.variance,
        np.stack([sizes.numpy(), fitted]) / float(sizes[0]),
    )  # fmt: skip


def _falling(shares: np.ndarray, num_items: int) -> tuple[np.ndarray, float]:
    """Return eigenvalues made to fall, and that of the directions which no draw shows.

    What is the same in all directions is of the diagonal alone, which is kept as it was.
    """
    from scipy.optimize import isotonic_regression

    outside = num_items - len(shares)
    if outside <= 0:
        return np.array(isotonic_regression(shares, increasing=False).x), 0.0
    given = np.append(shares, (num_items - shares.sum()) / outside)
    weights = np.append(np.ones(len(shares)), outside)
    fitted = np.array(isotonic_regression(given, weights=weights, increasing=False).x)
    return fitted[:-1], max(float(fitted[-1]), 0.0)


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of `X Xᵀ` that are not rounding, falling, and vectors `[N, r]`."""
    wide = x.shape[0] <= x.shape[1]
    sizes, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    rounding = float(sizes[-1]) * len(sizes) * torch.finfo(x.dtype).eps
    kept = sizes > max(rounding, 1e-300)
    sizes, vectors = sizes[kept].flip(0), vectors[:, kept].flip(1)
    return sizes, vectors if wide else x @ vectors / sizes.sqrt()
