"""Compute the response estimator: batch means, the choice of h, fluctuation over response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

_SMALL_BIAS = 0.1
"""Bias of a rung, as a share of the signal, up to which rungs below it follow the bias's law."""
_AS_GOOD = 1.1
"""Ratio of errors up to which two rungs count as equally good."""


class BatchMeans:
    """The mean of correlated traces and its standard error, from the means of long batches.

    Every replicate gives its own batches, one after another in time; a batch that is long against
    the autocorrelation is independent of the next.  Kept are the running mean and the sum of
    squares about it (Welford 1962), so traces that do not fluctuate have an error of exactly 0.

    `standard_error² = Σ_g (x_g - x̄)² / (G (G - 1))` over G batches of equal length.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self._count = 0
        self._open: Tensor | None = None
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, values_KRN: Tensor) -> None:
        """Add one moment of time of the open batch: `[K, R, N]` of R independent replicates."""
        values = values_KRN.double()
        self._open = values.clone() if self._open is None else self._open.add_(values)
        self._count += 1

    def close(self) -> None:
        """End the open batch of every replicate.

        Raises:
            ValueError: Nothing was added to it.
        """
        if self._open is None:
            raise ValueError("the open batch is empty: add values before it is closed.")
        for batch in (self._open / self._count).unbind(dim=1):
            if self._mean is None or self._squares is None:
                self._mean, self._squares = torch.zeros_like(batch), torch.zeros_like(batch)
            self.num_batches += 1
            away = batch - self._mean
            self._mean += away / self.num_batches
            self._squares += away * (batch - self._mean)
        self._open, self._count = None, 0

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return mean `[K, N]` and standard error `[K, N]`, NaN with a single batch.

        Raises:
            ValueError: No batch was closed.
        """
        if self._mean is None or self._squares is None:
            raise ValueError("no batch was closed: there is nothing to estimate.")
        if self.num_batches < 2:
            return self._mean, torch.full_like(self._mean, float("nan"))
        variance = self._squares / (self.num_batches * (self.num_batches - 1))
        return self._mean, variance.clamp(min=0).sqrt()


def student_factor(num_batches: int, *, level: float = 0.95) -> float:
    """Return how much wider an interval from few batches is than the normal law's.

    `t(level, G - 1) / z(level)`: multiplied onto a standard error from G batches, it makes two of
    them (1.96, at the default level) hold the truth as often as they say.

    Raises:
        ValueError: Fewer than two batches.
    """
    if num_batches < 2:
        raise ValueError(f"an error needs at least 2 batches, got {num_batches}: run longer.")
    from scipy.stats import norm, t

    return float(t.ppf((1 + level) / 2, num_batches - 1) / norm.ppf((1 + level) / 2))


@dataclass(frozen=True)
class Rung:
    """The findings of a pilot at one size of the perturbation; root means of squares.

    Attributes:
        size: Size of the perturbation; h is proportional to it.
        bias: Estimated bias of finite h, in the units of the responses.
        noise: Standard error that the final run will have.
        signal: Size of the scores.
    """

    size: float
    bias: float
    noise: float
    signal: float


@dataclass(frozen=True)
class Perturbation:
    """The size taken and the ladder it was taken from; `accepted` says whether the rule held."""

    size: float
    bias: float
    accepted: bool
    ladder: tuple[Rung, ...]

    def __str__(self) -> str:
        if not self.ladder:
            return f"h = {self.size:.4g} for all queries: as given; its bias was not measured"
        rung = next(r for r in self.ladder if r.size == self.size)
        why = (
            "the best of the pilot, with a bias below noise or tolerance"
            if self.accepted
            else "the least bias and noise of the pilot, although the bias is above both noise and "
            "tolerance"
        )
        return (
            f"perturbation = {self.size:.3g} standard deviations: {why} (relative to the scores: "
            f"bias {rung.bias:.2g}, noise {rung.noise:.2g})"
        )


def choose_perturbation(
    size_H: Sequence[float],
    response_HQN: Tensor,
    *,
    error_HQN: Tensor,
    change_error_HQN: Tensor,
    noise_factor: float,
    tolerance: float,
    advice: str = "lower step_size, or raise gamma",
) -> Perturbation:
    """Return the best perturbation whose bias is below its noise, or a share of the scores.

    A response at h is off by `-(h²/6)·κ₄(l_i, phi, phi, phi)` and its noise is a constant or falls
    as 1/h.  With h growing by the factor r from rung to rung, the bias at the upper of two rungs is
    `r²/(r² - 1)` times the change between them, to leading order; what is expected of the change
    from noise alone is taken off in the mean of squares.  Below a rung whose bias is under a tenth
    of the scores, the bias is at most what the law makes of it.  Of the sizes that pass, the one
    with the least bias and noise together is taken, and the largest of those as good as it: noise
    that cancels between pairs does not fall with h, and then nothing is to be had from a large one.

    Args:
        size_H: At least two sizes, ascending; h is proportional to them.
        response_HQN: The pilot's responses at each size; NaN or infinite where chains diverged.
        error_HQN: Their standard errors.
        change_error_HQN: Standard errors of the changes from rung to rung, `[H - 1, Q, N]`; small
            where the rungs share their noise.
        noise_factor: Standard error of the final run over the pilot's.
        tolerance: Bias that is always fine, relative to the scores' root mean square.
        advice: Words on what to change where chains diverged at every size.

    Raises:
        ValueError: Sizes that are not ascending or fewer than two; no finite response.
    """
    if len(size_H) < 2 or any(a >= b or a <= 0 for a, b in zip(size_H, size_H[1:], strict=False)):
        raise ValueError(f"expected at least two ascending sizes > 0, got {list(size_H)}.")
    noise_per_rung = [_rms(e) for e in error_HQN]
    signal = [_rms_beyond(r, e) for r, e in zip(response_HQN, error_HQN, strict=True)]
    bias = _bias_of_rungs(size_H, response_HQN, change_error_HQN, signal)
    ladder = tuple(
        Rung(size, b, noise_factor * e, s)
        for size, b, e, s in zip(size_H, bias, noise_per_rung, signal, strict=True)
        if all(x < float("inf") for x in (b, e, s))  # False for NaN, too
    )
    if not ladder:
        raise ValueError(f"the pilot's chains diverged at every h: {advice}.")
    # Noise that grows with h is a chain that runs away: what smaller sizes showed is the measure.
    least = list(accumulate((r.noise for r in ladder), min))
    fine = [
        r
        for r, noise in zip(ladder, least, strict=True)
        if r.bias <= max(noise, tolerance * r.signal)
    ]
    least_error = min(_error(r, tolerance) for r in fine or ladder)
    best = [r for r in fine or ladder if _error(r, tolerance) <= _AS_GOOD * least_error][-1]
    return Perturbation(best.size, best.bias, bool(fine), ladder)


def _error(rung: Rung, tolerance: float) -> float:
    """Return the mean square of bias and noise together, where it matters."""
    return max(rung.bias**2 + rung.noise**2, (tolerance * rung.signal) ** 2)


def _bias_of_rungs(
    size_H: Sequence[float], response_HQN: Tensor, change_error_HQN: Tensor, signal_H: list[float]
) -> list[float]:
    """Return the root mean square bias of every rung, from the changes between rungs."""
    squares = [(b / a) ** 2 for a, b in zip(size_H, size_H[1:], strict=False)]
    changes = zip(response_HQN[1:] - response_HQN[:-1], change_error_HQN, squares, strict=True)
    bias = [square / (square - 1) * _rms_beyond(x, error) for x, error, square in changes]
    bias.insert(0, bias[0] / squares[0])
    for k in reversed(range(len(squares))):
        # Where the rung above is in the regime of the law, the law is better than a small change,
        # which may be rounding.
        if bias[k + 1] <= _SMALL_BIAS * signal_H[k + 1]:
            bias[k] = min(bias[k], bias[k + 1] / squares[k])
    return bias


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _rms_beyond(x: Tensor, error: Tensor) -> float:
    """Return the root mean square of x without what its errors alone would bring."""
    return float((x.double().square() - error.double().square()).mean().clamp(min=0).sqrt())


class Ratio(NamedTuple):
    """A ratio and its standard error."""

    value: float
    standard_error: float


def fluctuation_over_response(fluctuation_GQN: Tensor, response_RQN: Tensor) -> Ratio:
    """Return the slope of fluctuation on response: 1 where the sampler is right.

    `slope = Σ f·r / Σ r²` over queries and items.  Discretisation and gradient noise change the
    spread of the draws, and with it the fluctuation; the linear response of the mean they leave
    alone.  So on a problem that is nearly quadratic a slope away from 1 is the sampler's error:
    SGLD at step ε and curvature k gives `1 / (1 - ε·k/4)` for scores that are products of
    gradients.

    Args:
        fluctuation_GQN: `-Cov(l_i, phi_q)` by G ≥ 2 independent groups of chains.
        response_RQN: Responses by R ≥ 2 independent runs.  Σ r² is taken over pairs of different
            runs, so their noise does not enlarge it.

    Returns:
        The slope and its standard error by the delete-one jackknife, once over groups and once
        over runs.

    Raises:
        ValueError: Shapes that do not match, or fewer than two groups or runs.

    Source: the two estimators of one derivative, Kubo's fluctuation-response theorem.
    """
    f, r = fluctuation_GQN.double(), response_RQN.double()
    if f.dim() != 3 or r.dim() != 3 or f.shape[1:] != r.shape[1:] or min(len(f), len(r)) < 2:
        raise ValueError(
            "expected fluctuation [G, Q, N] and response [R, Q, N] with G and R at least 2, got "
            f"{tuple(f.shape)} and {tuple(r.shape)}."
        )
    f, r = f.flatten(1), r.flatten(1)

    def slope(f: Tensor, r: Tensor) -> Tensor:
        product = f.mean(dim=0) @ r.mean(dim=0)
        if len(r) == 1:
            return product / r[0].square().sum()
        square = r.sum(dim=0).square().sum() - r.square().sum()
        return product / (square / (len(r) * (len(r) - 1)))

    def jackknife(values: list[Tensor]) -> Tensor:
        x = torch.stack(values)
        return (len(x) - 1) * (x - x.mean()).square().mean()

    def without(x: Tensor, i: int) -> Tensor:
        return torch.cat([x[:i], x[i + 1 :]])

    variance = jackknife([slope(without(f, g), r) for g in range(len(f))])
    variance = variance + jackknife([slope(f, without(r, i)) for i in range(len(r))])
    return Ratio(float(slope(f, r)), float(variance.sqrt()))
