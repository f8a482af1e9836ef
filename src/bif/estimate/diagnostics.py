"""Measure how far the scores can be trusted: reliability, R-hat, effective sample size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bif.estimate.anchored import fit_anchors, remove_linear_part
from bif.estimate.correlation import correlation
from bif.estimate.covariance import DEFAULT_GROUPS, GroupSums
from bif.estimate.traces import LossTraces, TraceBlock

if TYPE_CHECKING:
    import xarray as xr

_NUM_SPLITS = 20
"""Random splits of the chains into halves, over which a reliability is averaged."""
_CHUNK_ELEMENTS = 8 * 2**20
"""Numbers whose R-hat is taken at a time, so that temporaries stay small."""


def subsample(count: int, at_most: int, *, seed: int = 0) -> np.ndarray:
    """Return sorted random positions among `count`, at most `at_most` of them."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))


def reliability(
    traces: LossTraces, *, num_queries: int = 64, num_train: int = 2048, seed: int = 0
) -> float:
    """Return how well two runs of this length would agree on their scores.

    Whole chains are split into random halves; for every query the Pearson correlation over train
    items of the two halves' scores, r, is stepped up to the full length by `2r / (1 + r)`; the
    median over queries, averaged over 20 splits.

    Drift shared by all chains raises it, so it counts only where R-hat passes; and a large gamma
    makes it perfect, so it decides the number of draws, never gamma or nbeta.

    Args:
        traces: Traces of at least two chains.
        num_queries: At most this many query columns are used, drawn at random.
        num_train: At most this many train items are used, drawn at random.
        seed: Seed of the subsets and splits.

    Returns:
        From -1 to 1; NaN with fewer than two chains, with fewer than three train items, between
        which any two rows agree or disagree, or where no loss moves.
    """
    if traces.num_chains < 2 or traces.blocks[0].train.shape[2] < 3:
        return float("nan")
    return _split_half(thinned(traces, num_queries, num_train, seed), seed)


def thinned(traces: LossTraces, num_queries: int, num_train: int, seed: int) -> LossTraces:
    """Return random columns of the traces: at most so many queries and train items."""
    first = traces.blocks[0]
    return traces.selected(
        train=subsample(first.train.shape[2], num_train, seed=seed),
        query=subsample(first.query.shape[2], num_queries, seed=seed + 1),
    )


def _split_half(traces: LossTraces, seed: int) -> float:
    if traces.anchored:
        traces = remove_linear_part(traces, fit_anchors(traces, DEFAULT_GROUPS))
    per_chain = [
        _of_chain(block, row) for block in traces.blocks for row in range(len(block.chains))
    ]
    shape = per_chain[0].shape
    stacked = torch.stack(per_chain).flatten(1).numpy()
    rng = np.random.default_rng(seed + 2)
    num_chains = len(stacked)
    in_half = np.zeros((_NUM_SPLITS, num_chains))
    for row in in_half:
        row[rng.permutation(num_chains)[: num_chains // 2]] = 1
    halves = in_half @ stacked
    total = stacked.sum(axis=0)
    agreements = [  # a split at a time: a correlation has several temporaries
        _split_agreements(half.reshape(1, *shape), (total - half).reshape(1, *shape))
        for half in halves
    ]
    return float(np.mean(agreements))


def _of_chain(block: TraceBlock, row: int) -> Tensor:
    """Return the covariance of one chain, times its degrees of freedom."""
    sums = GroupSums()
    sums.update(block.train[row, None], block.query[row, None])
    group = sums.close()
    found = group.covariance if block.slope is None else group.covariance + block.slope[row]
    return found * group.freedom


def _split_agreements(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the median over rows of two halves' correlation, stepped up to full length, `[S]`.

    Halves that disagree are not stepped up: the formula is for halves that measure the same.

    Args:
        a: One half of every split, `[S, Q, N]`.
        b: The other halves.
    """
    r = correlation(a, b)
    undefined = np.isnan(r).all(axis=1)
    if undefined.all():
        return np.full(len(r), np.nan)
    r = np.nan_to_num(r)
    agreements = np.median(np.where(r > 0, 2 * r / (1 + r.clip(min=0)), r), axis=1)
    return np.where(undefined, np.nan, agreements)


def reliability_by_draws(
    traces: LossTraces, *, num_points: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Return total draws `[P]` and reliability `[P]` of growing prefixes of every chain."""
    longest = max(block.num_draws for block in traces.blocks)
    lengths = np.unique(np.geomspace(min(8, longest), longest, num_points).astype(int))
    few_columns = thinned(traces, num_queries=32, num_train=512, seed=0)
    parts = [few_columns.truncated(int(length)) for length in lengths]
    few = traces.num_chains < 2
    values = [float("nan") if few else _split_half(part, seed=0) for part in parts]
    return np.asarray([part.total_draws for part in parts]), np.asarray(values)


def convergence(traces: LossTraces, *, num_items: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return bulk effective sample size and rank-normalised split R-hat of item losses.

    Args:
        traces: Chains are cut to the shortest one.
        num_items: A random subset of at most this many train items.

    Returns:
        ESS `[I]` over all chains together and R-hat `[I]`, by arviz-stats (Vehtari et al. 2021);
        an item whose loss never moves has NaN for both.
    """
    from arviz_stats.base import array_stats

    chosen = subsample(traces.blocks[0].train.shape[2], num_items)
    losses = _columns(traces, "train", chosen)
    moving = losses.std(axis=(0, 1)) > 0
    ess, rhat = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
    if losses.shape[1] >= 4 and moving.any():
        ess[moving] = array_stats.ess(losses[..., moving], chain_axis=0, draw_axis=1)
        rhat[moving] = array_stats.rhat(losses[..., moving], chain_axis=0, draw_axis=1)
    return ess, rhat


def worst_rhat(
    traces: LossTraces,
    side: Literal["train", "query"],
    *,
    count: int = 64,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rank-normalised split R-hat of the columns that have mixed least, `[K]`.

    All train columns, or all query columns, are judged by the plain split R-hat; the `count`
    worst of them get the rank-normalised one.  Columns that never move are left out.

    Args:
        traces: Chains are cut to the shortest one.
        side: Whose columns.
        count: At most so many.
        known: R-hat of all columns as far as it is known, NaN where it is not.
    """
    from arviz_stats.base import array_stats

    draws = traces.shortest
    num_columns = getattr(traces.blocks[0], side).shape[2]
    if draws < 4 or not num_columns:
        return np.full(0, np.nan)
    step = max(1, _CHUNK_ELEMENTS // (traces.num_chains * draws))
    parts = [
        _plain_rhat(_columns(traces, side, np.arange(a, min(a + step, num_columns))))
        for a in range(0, num_columns, step)
    ]
    plain = np.concatenate(parts)
    worst = np.argsort(-plain.astype(float), kind="stable")[:count]
    worst = np.sort(worst[np.isfinite(plain[worst])])
    found = np.full(len(worst), np.nan) if known is None else known[worst]
    asked = np.isnan(found)
    if asked.any():
        columns = _columns(traces, side, worst[asked])
        found[asked] = array_stats.rhat(columns, chain_axis=0, draw_axis=1)
    return found


def has_mixed(traces: LossTraces, *, limit: float = 1.05, num_columns: int = 64) -> bool:
    """Return whether a few random columns of either side have a plain split R-hat below a limit."""
    if traces.shortest < 4:
        return False
    found = [
        _plain_rhat(
            _columns(traces, side, subsample(getattr(traces.blocks[0], side).shape[2], num_columns))
        )
        for side in ("train", "query")
    ]
    moving = np.concatenate(found)
    moving = moving[np.isfinite(moving)]
    return bool(len(moving) and moving.max() < limit)


def _columns(traces: LossTraces, side: str, chosen: np.ndarray) -> np.ndarray:
    """Return some columns of all chains, cut to the shortest, float64 `[C, D, K]`."""
    draws = traces.shortest
    return torch.cat([getattr(b, side)[:, :draws, chosen] for b in traces.blocks]).double().numpy()


def _plain_rhat(x: np.ndarray) -> np.ndarray:
    """Return split R-hat of columns `[C, D, K]` (Gelman et al. 2013), NaN without movement."""
    half = x.shape[1] // 2
    halves = np.concatenate([x[:, :half], x[:, -half:]])
    halves = halves - halves[:1, :1]
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((half - 1) / half + between / within)


def diagnose(
    traces: LossTraces, *, center_mean_loss: float, diverged: Sequence[int] = ()
) -> xr.Dataset:
    """Return everything the report shows about the chains, as one dataset.

    Args:
        traces: Traces of the surviving chains.
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
    num_items = traces.blocks[0].train.shape[2]
    known = np.full(num_items, np.nan)
    known[subsample(num_items, len(rhat))] = rhat
    return xr.Dataset(
        {
            "mean_loss": (("chain", "draw"), means.float().numpy()),
            "center_mean_loss": ((), np.float64(center_mean_loss)),
            "reliability": (("prefix",), reliabilities),
            "reliability_draws": (("prefix",), totals),
            "ess": (("item",), ess),
            "rhat": (("item",), rhat),
            "train_rhat": (("worst_train",), worst_rhat(traces, "train", known=known)),
            "query_rhat": (("worst_query",), worst_rhat(traces, "query")),
        },
        coords={
            "draw": shown,
            "chain": [c for block in traces.blocks for c in block.chains],
        },
        attrs={"diverged_chains": list(diverged)},
    )
