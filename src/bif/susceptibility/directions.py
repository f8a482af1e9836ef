"""Principal directions of a susceptibility matrix, kept only above a null of shuffled contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bif.susceptibility.components import SusceptibilityMatrix

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class PrincipalDirections:
    """Directions in which components respond together, from the largest share of variance on.

    Attributes:
        num_kept: The first so many have more than both nulls.
        share: Share of the variance of the standardised matrix, of all P directions, `[P]`.
        null_share: Quantile of the share that shuffled contexts have, `[P]`; NaN after the first
            direction that was not kept.
        noise_share: Quantile of the largest share that the noise of the chains alone has.
        loadings: Of the components, rows of length 1, `[P, K]`.
        scores: Of the contexts, `[P, X]`.
        components: Names; contexts: ids.
    """

    num_kept: int
    share: np.ndarray
    null_share: np.ndarray
    noise_share: float
    loadings: np.ndarray
    scores: np.ndarray
    components: tuple[str, ...]
    contexts: tuple[str, ...]

    def dataset(self) -> xr.Dataset:
        """Return all of it with names, on (`direction`, `component`, `context`)."""
        import xarray as xr

        one = ("direction",)
        return xr.Dataset(
            {
                "share": (one, self.share), "null_share": (one, self.null_share),
                "loadings": ((*one, "component"), self.loadings),
                "scores": ((*one, "context"), self.scores),
            },
            coords={"component": list(self.components), "context": list(self.contexts)},
            attrs={"num_kept": self.num_kept, "noise_share": self.noise_share},
        )  # fmt: skip


def principal_directions(
    matrix: SusceptibilityMatrix,
    *,
    num_shuffles: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> PrincipalDirections:
    """Return the principal components of the standardised matrix, and how many are real.

    A direction is kept, after all before it, while its share of the variance is above the `level`
    quantile of two nulls.  In the first every component's contexts are shuffled on their own, in
    what the kept directions leave (parallel analysis, Horn 1965).  The second is the noise of the
    chains alone: it is alike for like contexts, which shuffling undoes.  By Weyl's inequality a
    direction with more than the largest share of the noise is not made of noise.  Signs are such
    that loadings sum to at least 0.

    Args:
        matrix: Of at least two components and three contexts.
        num_shuffles: Matrices of each null.
        level: Quantile of the nulls.
        seed: Of the nulls.

    Raises:
        ValueError: Too few components or contexts; a component that responds to all alike; too few
            shuffles; a level outside (0, 1).
    """
    count, num_contexts = matrix.value.shape
    if count < 2 or num_contexts < 3:
        raise ValueError(
            f"directions need at least 2 components and 3 contexts, got {count} and {num_contexts}."
        )
    if num_shuffles < 20 or not 0 < level < 1:
        raise ValueError(
            f"num_shuffles is {num_shuffles} and level {level}: expected at least 20 shuffles, and "
            "a quantile between 0 and 1."
        )
    x, rng = matrix.standardised(), np.random.default_rng(seed)
    share, loadings = _principal(x)
    noise_share = float(np.quantile(_noise_shares(matrix, num_shuffles, rng), level))
    null_share, num_kept = np.full(count, np.nan), 0
    for place in range(count - 1):  # the last one has all that is left, shuffled or not
        kept = loadings[:place]
        left = x - kept.T @ (kept @ x)
        null = [_largest_share(rng.permuted(left, axis=1), kept) for _ in range(num_shuffles)]
        null_share[place] = np.quantile(null, level) * share[place:].sum()
        if share[place] <= max(null_share[place], noise_share):
            break
        num_kept += 1
    return PrincipalDirections(
        num_kept, share, null_share, noise_share, loadings, loadings @ x, matrix.components,
        matrix.contexts,
    )  # fmt: skip


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shares `[P]`, largest first, and directions `[P, K]` of rows `[K, X]`."""
    values, vectors = np.linalg.eigh(x @ x.T)
    loadings = vectors.T[::-1]
    sums = loadings.sum(axis=1, keepdims=True)
    return values[::-1].clip(min=0) / values.sum(), loadings * np.where(sums < 0, -1, 1)


def _largest_share(x: np.ndarray, without: np.ndarray) -> float:
    """Return the largest share of a direction that is orthogonal to some, `[k, K]`."""
    left = x - without.T @ (without @ x)
    return float(_principal(left)[0][0])


def drawn_noise(
    matrix: SusceptibilityMatrix, count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield matrices `[K, X]` of the noise of the chains alone, in units of the standardised one.

    Args:
        matrix: Whose noise.
        count: Matrices.
        rng: Source of the weights of the groups of chains.
    """
    away = matrix.value - matrix.value.mean(axis=1, keepdims=True)
    scale = np.sqrt((away**2).mean(axis=1, keepdims=True))
    noise = (matrix.noise - matrix.noise.mean(axis=2, keepdims=True)) / scale
    for _ in range(count):
        yield (rng.standard_normal((*noise.shape[:2], 1)) * noise).sum(axis=0)


def _noise_shares(
    matrix: SusceptibilityMatrix, count: int, rng: np.random.Generator
) -> list[float]:
    """Return the largest variance of a direction in noise alone, as a share of the matrix's."""
    return [
        float(np.linalg.eigvalsh(drawn @ drawn.T)[-1]) / drawn.size
        for drawn in drawn_noise(matrix, count, rng)
    ]
