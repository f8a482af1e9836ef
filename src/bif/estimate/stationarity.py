"""Test whether chains have levelled off: common drift, outlying chains, detrending."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bif.estimate.diagnostics import thinned
from bif.estimate.traces import LossTraces

_TAIL = 1e-4
"""Probability of calling any healthy chain an outlier."""


@dataclass(frozen=True)
class Drift:
    """The share of the traces that a straight line explains.

    Attributes:
        removed: Share of the covariances that goes when every chain loses its own line; in a
            stationary run about τ/D for autocorrelation time τ and D draws.
        common: Share of the losses' variance that lies in the line which all chains have in
            common, its sampling error taken off.
        common_t: Student's t of the mean loss's common slope, by the spread of the chains' slopes.
        outliers: Chains whose mean loss has another level or slope than those of the others.
    """

    removed: float
    common: float
    common_t: float
    outliers: tuple[int, ...]


def drift(traces: LossTraces, *, num_items: int = 256, num_queries: int = 32) -> Drift:
    """Return the drift of the chains, from a line fitted to every trace.

    A chain that has not levelled off adds `slope_i · slope_j · range² / 12` to every covariance.

    Args:
        traces: Chains are cut to the shortest one.
        num_items: Train items that are taken, drawn at random.
        num_queries: Query columns that are taken, drawn at random.
    """
    draws = traces.shortest
    few = thinned(traces.truncated(draws), num_queries, num_items, seed=0)
    time = torch.linspace(-1, 1, draws, dtype=torch.float64)
    line = time / time.norm()
    slopes, levels, covariance, trend = [], [], 0.0, 0.0
    square = torch.zeros(few.blocks[0].train.shape[2], dtype=torch.float64)
    means = []
    for _, train, query in few.each_chain():
        x, y = (_center(part) for part in (train, query))
        slope_x, slope_y = line @ x, line @ y
        covariance = covariance + y.T @ x
        trend = trend + torch.outer(slope_y, slope_x)
        square += x.square().sum(dim=0)
        slopes.append(slope_x)
        mean = train.double().mean(dim=1)
        levels.append(mean.mean())
        means.append(line @ (mean - mean.mean()))
    slope_CI = torch.stack(slopes)
    chains = len(slope_CI)
    assert isinstance(covariance, Tensor) and isinstance(trend, Tensor)
    projected = (covariance * trend).sum(dim=1) / covariance.square().sum(dim=1).clamp(min=1e-300)
    mean_I, spread_I = slope_CI.mean(dim=0), slope_CI.var(dim=0) / chains
    moving = square > 0
    common = (chains * (mean_I.square() - spread_I))[moving] / square[moving]
    mean_slope, level = torch.stack(means).numpy(), torch.stack(levels).numpy()
    outliers = sorted({*_outliers(mean_slope), *_outliers(level)})
    names = [chain for block in traces.blocks for chain in block.chains]
    return Drift(
        float(projected.nanmedian()),
        float(common.mean().clamp(min=0)) if moving.any() else 0.0,
        _student(mean_slope),
        tuple(names[i] for i in outliers),
    )


def _center(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(dim=0)


def _student(values: np.ndarray) -> float:
    """Return the mean over its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean() / error) if error > 0 else 0.0


def _outliers(values: np.ndarray) -> list[int]:
    """Return positions that lie apart from the rest, by median and median deviation.

    The limit is Student's, with half as many degrees of freedom as there are values for the
    deviation's own error, and leaves a healthy set of any size alone but once in 10,000.
    """
    from scipy.stats import t

    if len(values) < 4:
        return []
    away = np.abs(values - np.median(values))
    scale = 1.4826 * np.median(away)
    limit = t.isf(0.5 * _TAIL / len(values), df=len(values) // 2)
    return np.flatnonzero(away > limit * scale).tolist() if scale > 0 else []
