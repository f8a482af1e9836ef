"""The local learning coefficient of a run: how many weights the data constrain around w*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.cumulants import mean_of_groups
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import chain_groups
from bif.runs.run import Run
from bif.susceptibility.trained import Trained

_ERRORS = 3.0
"""Standard errors beyond which the draws lean downhill."""


@dataclass(frozen=True)
class LearningCoefficient:
    """`λ = nbeta·(E[L] - L(w*))`, with its interval.

    Attributes:
        value: λ.
        standard_error: By the spread over groups of chains.
        low: Lower end of the 95 % interval, by Student's t; high: upper end.
        mean_loss: E[L] over the draws; center_loss: L(w*).
        nbeta: Of the posterior; gamma: Precision of the Gaussian around w*.
        draws: Of all chains; effective_draws: of the mean loss, by its autocorrelation.
        num_groups: Groups of chains behind the error.
        trusted: Whether no gate of the run failed.
        downhill: `nbeta·E[(w - w*)·∇L(w*)]`, 0 at a minimum of L; NaN where it was not measured.
        downhill_error: Its standard error, by the last draw of each chain.
    """

    value: float
    standard_error: float
    low: float
    high: float
    mean_loss: float
    center_loss: float
    nbeta: float
    gamma: float
    draws: int
    effective_draws: float
    num_groups: int
    trusted: bool
    downhill: float = float("nan")
    downhill_error: float = float("nan")

    @property
    def leans_downhill(self) -> bool:
        """Return whether a gradient at w* lowers the value by more than its error.

        Where L is quadratic with gradient g at w*, it lowers it by `downhill` at large gamma and by
        half of that at small gamma.
        """
        clearly = self.downhill < -_ERRORS * self.downhill_error
        return clearly and self.downhill / 2 < -self.standard_error

    def as_dict(self) -> dict[str, float | int | bool]:
        """Return all figures by name."""
        return asdict(self) | {"leans_downhill": self.leans_downhill}

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g}) at nbeta {self.nbeta:g}, gamma "
            f"{self.gamma:g}{'' if self.trusted else ', NOT TRUSTED'}{self._warning()}"
        )

    def _warning(self) -> str:
        if not self.leans_downhill:
            return ""
        return (
            f", TOO LOW by {-self.downhill / 2:.2g} to {-self.downhill:.2g}: w* is no minimum of "
            "the mean loss, train further"
        )


def learning_coefficient(
    run: Run,
    *,
    train_weights: Sequence[float] | Tensor | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> LearningCoefficient:
    """Return the local learning coefficient by the draws of a run.

    `λ = nbeta·(E[L] - L(w*))`, half the number of weights where L is quadratic, nbeta large and
    gamma small, and less where it is flatter.  Of a run with `movable` it is that of a component.

    The Gaussian around w* biases it: where L is quadratic with curvatures h, it is
    `½ Σ nbeta·h / (nbeta·h + gamma)`, so that directions flatter than the damping gamma/nbeta do
    not count.  A gradient g of L at w* lowers it: to second order by between a half and all of
    `downhill = nbeta·E[(w - w*)·g]`, which is `-nbeta²·gᵀ(nbeta·H + gamma)⁻¹g` where nothing else
    pulls.  `leans_downhill` says that this is more than the error.

    Args:
        run: With the traces of its items.
        train_weights: As the problem's, where it has any.
        num_groups: Groups of chains behind the standard error.

    Raises:
        ValueError: A run without traces; columns that are tokens; nbeta = 0.

    Source: Lau et al. 2025, arXiv 2308.12108, eq. 5; Watanabe 2013.
    """
    trained = Trained.of(run, train_weights)
    if trained.nbeta == 0:
        raise ValueError(
            "nbeta is 0: without the loss there is no learning coefficient. Attribute with "
            "nbeta > 0."
        )
    dataset = run.influence.dataset
    losses = [trained.mean_loss(block.train) for block in run.traces.blocks]  # [C, D] each
    means, draws = [], []
    for group in chain_groups(run.traces, num_groups):
        part = torch.cat([losses[block][places].flatten() for block, places in group])
        means.append(part.mean())
        draws.append(len(part))
    mean, error = (float(x) for x in mean_of_groups(means, draws))
    center = float(trained.mean_loss(torch.as_tensor(dataset["train_center_loss"].values)))
    downhill, downhill_error = (
        float("nan") if (x := run.summary.others.get(name)) is None else float(x)
        for name in ("downhill", "downhill_error")
    )
    value, spread = trained.nbeta * (mean - center), trained.nbeta * error
    half = t_quantile(len(means)) * spread if len(means) > 1 else float("nan")
    return LearningCoefficient(
        value=value, standard_error=spread, low=value - half, high=value + half,
        mean_loss=mean, center_loss=center, nbeta=trained.nbeta,
        gamma=float(dataset.attrs["gamma"]), draws=run.traces.total_draws,
        effective_draws=_effective_draws(losses, run.traces.shortest), num_groups=len(means),
        trusted=bool(run.summary.trusted), downhill=downhill, downhill_error=downhill_error,
    )  # fmt: skip


def _effective_draws(losses: Sequence[Tensor], draws: int) -> float:
    """Return the effective sample size of the mean loss, by arviz-stats; NaN if it never moves."""
    from arviz_stats.base import array_stats

    x = torch.cat([part[:, :draws] for part in losses]).numpy()
    if draws < 4 or not np.ptp(x) > 0:
        return float("nan")
    return float(np.asarray(array_stats.ess(x, chain_axis=0, draw_axis=1)))
