"""What the tests of stationary laws share: simulation, reference laws, and the one assertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from bif.sampling.rng import BlockNoise
from bif.types import Noise, Params, Sampler

STANDARD_ERRORS = 5
MIN_CHAINS = 32
# The relative error of a variance is sqrt(2 / ess): five of them are 5 %.
MIN_ESS = 20_000
OFF_LAW = pytest.raises(AssertionError, match="standard errors")


def assert_mean(
    values_CD: Tensor,
    expected: float | Sequence[float] | Tensor,
    *,
    min_ess: float = MIN_ESS,
    bias: float = 0,
) -> None:
    """Assert that `values_CD` `[C, D, *rest]` of independent chains have the mean `expected`.

    The standard error comes from the spread of the C chains' means, so autocorrelation within a
    chain needs no estimate.  Gate: an effective sample size (variance of the values over squared
    standard error) of at least `min_ess`, so that the test cannot pass for want of draws; then
    `|mean - expected| <= 5 standard errors + bias`.

    Args:
        expected: Broadcastable to `[*rest]`.
        min_ess: For a variance estimated from `E[x²]`, the relative error is sqrt(2 / ess).
        bias: A derived bound on what the reference leaves out, in units of the values.
    """
    values = values_CD.double()
    num_chains = len(values)
    assert num_chains >= MIN_CHAINS, f"{num_chains} chains are too few for a standard error"
    assert values.isfinite().all(), "a chain is not finite"
    mean = values.mean(dim=(0, 1))
    error = values.mean(dim=1).std(dim=0) / num_chains**0.5
    ess = values.flatten(0, 1).var(dim=0) / error**2
    assert (ess >= min_ess).all(), f"effective sample size {ess.min():.0f} < {min_ess:.0f}"
    gap = (mean - torch.as_tensor(expected, dtype=torch.float64)).abs()
    assert (gap <= STANDARD_ERRORS * error + bias).all(), (
        f"mean {mean.tolist()} is off {expected} by more than {STANDARD_ERRORS} standard errors "
        f"{error.tolist()}"
    )


@dataclass(frozen=True)
class Scaled:
    """A sampler that sees its noise and its gradients multiplied: the plainest mutants."""

    sampler: Sampler[Any]
    noise: float = 1.0
    gradient: float = 1.0

    def init(self, params: Params, noise: Noise) -> Any:
        return self.sampler.init(params, noise)

    def step(self, state: Any, gradient: Params, noise: Noise) -> Any:
        scaled = {name: leaf * self.gradient for name, leaf in gradient.items()}
        return self.sampler.step(state, scaled, ScaledNoise(noise, self.noise))


@dataclass(frozen=True)
class ScaledNoise:
    """A noise source multiplied by a factor."""

    source: Noise
    factor: float

    def normal(self, like: Params) -> Params:
        return {name: leaf * self.factor for name, leaf in self.source.normal(like).items()}


def quadratic_chains(
    sampler: Sampler[Any],
    curvature_K: Sequence[float],
    *,
    num_chains: int,
    num_draws: int,
    burn_in: int,
    gradient_noise_K: Sequence[float] | None = None,
    curvature_noise: float = 0.0,
    start: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Any]:
    """Run chains on `U(w) = Σ_k curvature_k * w_k² / 2`: one independent coordinate a curvature.

    Args:
        gradient_noise_K: Standard deviation of noise added to each coordinate's gradient.
        curvature_noise: Standard deviation of the curvature from step to step.
        start: Where every chain starts; by default at N(0, 1/k).

    Returns:
        Positions `[C, D, K]` and the last state.
    """
    curvature = torch.tensor(curvature_K, dtype=torch.float64)
    source = torch.Generator().manual_seed(seed)
    noise = BlockNoise(torch.Generator().manual_seed(seed + 1))
    shape = (num_chains, len(curvature))

    def normal() -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    if start is None:
        positions = normal() / curvature.sqrt()
    else:
        positions = torch.full(shape, start, dtype=torch.float64)
    state = sampler.init({"w": positions}, noise)
    draws = torch.empty(num_chains, num_draws, len(curvature), dtype=torch.float64)
    for step in range(burn_in + num_draws):
        position = state.params["w"]
        if step >= burn_in:
            draws[:, step - burn_in] = position
        gradient = curvature * position
        if curvature_noise:
            gradient += curvature_noise * normal() * position
        if gradient_noise_K is not None:
            gradient += torch.tensor(gradient_noise_K, dtype=torch.float64) * normal()
        state = sampler.step(state, {"w": gradient}, noise)
    return draws, state


class LinearStep:
    """One step of kicks, drifts and velocity refreshments on a quadratic as `z ← A z + noise`.

    z = (position, velocity); built substep by substep, as an independent reference.
    """

    def __init__(self, curvature: float) -> None:
        self.curvature = curvature
        self.matrix = np.eye(2)
        self.noise = np.zeros((2, 2))

    def kick(self, step: float, gradient_noise: float = 0.0, factor: float = 1.0) -> LinearStep:
        """`v ← v - step * factor * (k x + gradient_noise * ξ)`."""
        return self._then(
            [[1, 0], [-step * factor * self.curvature, 1]],
            [[0, 0], [0, (step * factor * gradient_noise) ** 2]],
        )

    def drift(self, step: float) -> LinearStep:
        """`x ← x + step * v`."""
        return self._then([[1, step], [0, 1]], np.zeros((2, 2)))

    def refresh(self, kept: float, noise_variance: float) -> LinearStep:
        """`v ← kept * v + N(0, noise_variance)`."""
        return self._then([[1, 0], [0, kept]], [[0, 0], [0, noise_variance]])

    def stationary(self) -> np.ndarray:
        """Stationary covariance of (x, v) at the end of the step: `S = A S Aᵀ + noise`."""
        return solve_discrete_lyapunov(self.matrix, self.noise)

    def applied_to(self, covariance: np.ndarray) -> np.ndarray:
        """The covariance of (x, v) after the substeps, from the one before them."""
        return self.matrix @ covariance @ self.matrix.T + self.noise

    def spectral_radius(self) -> float:
        """Growth of a perturbation at a step; the step is stable below 1."""
        return float(np.abs(np.linalg.eigvals(self.matrix)).max())

    def _then(self, matrix: Any, noise: Any) -> LinearStep:
        substep = np.asarray(matrix, dtype=np.float64)
        self.matrix = substep @ self.matrix
        self.noise = substep @ self.noise @ substep.T + np.asarray(noise, dtype=np.float64)
        return self


def steps_to_forget(per_step: float) -> int:
    """Steps after which a perturbation that shrinks by `per_step` is below 1e-6."""
    return round(log(1e-6) / log(per_step)) + 1


def sgld_variance(
    step_size: float, curvature: float, gradient_noise: float = 0, curvature_noise: float = 0
) -> float:
    """SGLD's stationary variance, with noise on the gradient or on the curvature."""
    shrink = (1 - step_size * curvature / 2) ** 2 + (step_size / 2 * curvature_noise) ** 2
    return (step_size + (step_size / 2 * gradient_noise) ** 2) / (1 - shrink)


def baoab_step(
    curvature: float, step_size: float, kept: float, gradient_noise: float = 0.0
) -> LinearStep:
    """BAOAB's step as `BAOAB` takes it: kick, half drift, refreshment, half drift."""
    return (
        LinearStep(curvature)
        .kick(step_size, gradient_noise)
        .drift(step_size / 2)
        .refresh(kept, 1 - kept**2)
        .drift(step_size / 2)
    )
