"""How far the scores can be trusted: reliability, R-hat, effective sample size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bif.estimate.covariance import GroupSums
from bif.traces import LossTraces

if TYPE_CHECKING:
    import xarray as xr

_NUM_SPLITS = 20


def subsample(count: int, at_most: int, *, seed: int = 0) -> np.ndarray:
    """Sorted random positions among `count`, at most `at_most` of them."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))


def reliability(
    traces: LossTraces, *, num_queries: int = 64, num_train: int = 2048, seed: int = 0
) -> float:
    """How well two runs of this length would agree on their scores.

    Whole chains are split into random halves; for every query the Pearson correlation over train
    items of the two halves' scores, r, is stepped up to the full length by `2r / (1 + r)`; the
    median over queries, averaged over 20 splits.

    Drift shared by all chains raises it, so it counts only where R-hat passes; and a large gamma
    makes it perfect, so it decides the number of draws, never gamma or nbeta.

    Args:
        traces: Of at least two chains.
        num_queries: At most this many query columns are used, drawn at random.
        num_train: At most this many train items are used, drawn at random.
        seed: Of the subsets and splits.

    Returns:
        At most 1; NaN with fewer than two chains.
    """
    if traces.num_chains < 2:
        return float("nan")
    return _split_half(thinned(traces, num_queries, num_train, seed), seed)


def thinned(traces: LossTraces, num_queries: int, num_train: int, seed: int) -> LossTraces:
    """Random columns of the traces: at most so many queries and train items."""
    first = traces.blocks[0]
    return traces.selected(
        train=subsample(first.train.shape[2], num_train, seed=seed),
        query=subsample(first.query.shape[2], num_queries, seed=seed + 1),
    )


def _split_half(traces: LossTraces, seed: int) -> float:
    per_chain = []
    for _, train, query in traces.each_chain():
        sums = GroupSums()
        sums.update(train[None], query[None])
        group = sums.close()
        per_chain.append(group.covariance * group.freedom)
    shape = per_chain[0].shape
    stacked = torch.stack(per_chain).flatten(1).numpy()
    rng = np.random.default_rng(seed + 2)
    num_chains = len(stacked)
    in_half = np.zeros((_NUM_SPLITS, num_chains))
    for row in in_half:
        row[rng.permutation(num_chains)[: num_chains // 2]] = 1
    halves = in_half @ stacked
    others = stacked.sum(axis=0) - halves
    pairs = zip(halves.reshape(-1, *shape), others.reshape(-1, *shape), strict=True)
    return float(np.mean([_split_agreement(a, b) for a, b in pairs]))


def _split_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Median over rows of the correlation of two halves, stepped up to the full length."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    r = np.divide((a * b).sum(axis=1), scale, out=np.zeros_like(scale), where=scale > 0)
    stepped = 2 * r / np.maximum(1 + r, 1e-12)
    return float(np.median(stepped))


def reliability_by_draws(
    traces: LossTraces, *, num_points: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Reliability of growing prefixes of every chain: total draws `[P]` and reliability `[P]`."""
    longest = max(block.num_draws for block in traces.blocks)
    lengths = np.unique(np.geomspace(min(8, longest), longest, num_points).astype(int))
    few_columns = thinned(traces, num_queries=32, num_train=512, seed=0)
    parts = [few_columns.truncated(int(length)) for length in lengths]
    few = traces.num_chains < 2
    values = [float("nan") if few else _split_half(part, seed=0) for part in parts]
    return np.asarray([part.total_draws for part in parts]), np.asarray(values)


def convergence(traces: LossTraces, *, num_items: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Bulk effective sample size and rank-normalised split R-hat of item losses.

    Args:
        traces: Chains are cut to the shortest one.
        num_items: A random subset of at most this many train items.

    Returns:
        ESS `[I]` over all chains together and R-hat `[I]`, by arviz-stats (Vehtari et al. 2021);
        an item whose loss never moves has NaN for both.
    """
    from arviz_stats.base import array_stats

    chosen = subsample(traces.blocks[0].train.shape[2], num_items)
    draws = traces.shortest
    losses = torch.cat([b.train[:, :draws, chosen] for b in traces.blocks]).double().numpy()
    moving = losses.std(axis=(0, 1)) > 0
    ess, rhat = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
    if draws >= 4 and moving.any():
        ess[moving] = array_stats.ess(losses[..., moving], chain_axis=0, draw_axis=1)
        rhat[moving] = array_stats.rhat(losses[..., moving], chain_axis=0, draw_axis=1)
    return ess, rhat


def diagnose(
    traces: LossTraces, *, center_mean_loss: float, diverged: Sequence[int] = ()
) -> xr.Dataset:
    """Everything the report shows about the chains, as one dataset.

    Args:
        traces: Of the surviving chains.
        center_mean_loss: Mean loss of the train items at w*.
        diverged: Chains that were left out.
    """
    import xarray as xr

    draws = traces.shortest
    shown = np.linspace(0, draws - 1, min(draws, 2000)).astype(int)
    parts = [b.train[:, shown] if len(shown) < draws else b.train[:, :draws] for b in traces.blocks]
    means = torch.cat([part.mean(dim=2) for part in parts])
    totals, reliabilities = reliability_by_draws(traces)
    ess, rhat = convergence(traces)
    return xr.Dataset(
        {
            "mean_loss": (("chain", "draw"), means.float().numpy()),
            "center_mean_loss": ((), np.float64(center_mean_loss)),
            "reliability": (("prefix",), reliabilities),
            "reliability_draws": (("prefix",), totals),
            "ess": (("item",), ess),
            "rhat": (("item",), rhat),
        },
        coords={
            "draw": shown,
            "chain": [c for block in traces.blocks for c in block.chains],
        },
        attrs={"diverged_chains": list(diverged)},
    )
