"""The anchored covariance: the linear part of a covariance without noise, the rest from draws.

For `p ∝ exp(-U)` and any vector v, integration by parts gives `Cov(l, v·∇U) = E[∇l]·v`.  So, for
any number b,

    Cov(l, phi) = b·E[∇l]·v + Cov(l, phi - b·v·∇U).

With v the solution of phi's linear system the first term is the influence function, known from few
draws, and what is left to the second is what is not linear and what the solver missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif.estimate.traces import LossTraces, chain_groups

_LARGEST_SHARE = 0.95
"""Share of an observable's variance above which its anchor is not used: it does not fit, and noise
in its coefficient would cost more than it saves."""


@dataclass(frozen=True)
class AnchorFit:
    """Coefficients of the anchors, and what they leave of the observables' variance.

    Attributes:
        coefficient: b of each group of chains, by least squares over the draws of all other groups,
            `[G, R]` float64; 0 where the anchor does not fit.
        variance: Variance of the observables within groups, `[R]`.
        variance_left: `Var(phi - b·v·∇U) / Var(phi)`, `[R]`; NaN where phi does not move.
    """

    coefficient: Tensor
    variance: Tensor
    variance_left: Tensor


def fit_anchors(traces: LossTraces, num_groups: int) -> AnchorFit:
    """Fit the coefficient of every query column's anchor, for each group on the other groups.

    A coefficient from the draws that it is applied to would be correlated with their noise.

    Args:
        traces: With anchors.
        num_groups: Groups of chains, as for the standard errors.
    """
    moments = torch.stack([_moments(traces, group) for group in chain_groups(traces, num_groups)])
    total = moments.sum(dim=0)
    others = total - moments if len(moments) > 1 else moments
    _, both, anchor, observable = others.unbind(dim=1)
    share = 1 - both.square() / (anchor * observable)
    fits = (share < _LARGEST_SHARE) & (anchor > 0)
    coefficient = (both / anchor).where(fits, 0.0)
    _, both, anchor, observable = moments.unbind(dim=1)
    left = (observable - 2 * coefficient * both + coefficient.square() * anchor).sum(dim=0)
    freedom, _, _, squares = total
    return AnchorFit(coefficient, squares / freedom, left / squares)


def remove_linear_part(traces: LossTraces, fit: AnchorFit) -> LossTraces:
    """Return traces of `phi - b·v·∇U`, with `b·∇l_i·v` as their slopes and without anchors.

    Args:
        traces: With anchors.
        fit: Of these traces.
    """
    blocks = []
    for index, block in enumerate(traces.blocks):
        assert block.anchor is not None and block.slope is not None
        factor = torch.zeros(len(block.chains), fit.coefficient.shape[1], dtype=torch.float64)
        for group, coefficient in zip(
            chain_groups(traces, len(fit.coefficient)), fit.coefficient, strict=True
        ):
            for place, rows in group:
                if place == index:
                    factor[rows] = coefficient.to(factor)
        factor = factor.to(block.query.device)
        rest = block.query.double() - factor[:, None] * block.anchor
        slope = factor[:, :, None].to(block.slope) * block.slope
        blocks.append(replace(block, query=rest, anchor=None, slope=slope))
    return LossTraces(tuple(blocks))


def slope_share(traces: LossTraces) -> float:
    """Return the variance of the slopes' means, in units of that of what is sampled.

    Args:
        traces: With anchors, of at least two chains.
    """
    fit = fit_anchors(traces, traces.num_chains)
    rest = remove_linear_part(traces, fit)
    slopes = torch.cat([block.slope for block in rest.blocks if block.slope is not None]).double()
    of_slopes = slopes.var(dim=0) / len(slopes)
    return float(of_slopes.mean() / _spread_of_covariances(rest).mean().clamp(min=1e-300))


def _spread_of_covariances(traces: LossTraces) -> Tensor:
    """Return the variance of the mean over chains of each chain's covariance, `[R, N]`."""
    found = []
    for block in traces.blocks:
        query, train = (x.double() for x in (block.query, block.train))
        query, train = (x - x.mean(dim=1, keepdim=True) for x in (query, train))
        found.append(query.transpose(1, 2) @ train / (block.num_draws - 1))
    of_chains = torch.cat(found)
    return of_chains.var(dim=0) / len(of_chains)


def _moments(traces: LossTraces, group: list[tuple[int, list[int]]]) -> Tensor:
    """Return degrees of freedom, and centred sums of phi·a, a² and phi² of a group, `[4, R]`."""
    total: Tensor | None = None
    for index, rows in group:
        block = traces.blocks[index]
        assert block.anchor is not None
        phi, anchor = (
            (x[rows].double() - x[rows[:1], :1].double()).flatten(0, 1)
            for x in (block.query, block.anchor)
        )
        phi, anchor = phi - phi.mean(dim=0), anchor - anchor.mean(dim=0)
        freedom = torch.full_like(phi[0], len(phi) - 1)
        sums = [(phi * anchor).sum(dim=0), anchor.square().sum(dim=0), phi.square().sum(dim=0)]
        found = torch.stack([freedom, *sums])
        total = found if total is None else total + found
    assert total is not None
    return total
