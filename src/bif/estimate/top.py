"""The strongest train columns of every query, without ever holding all scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS, estimate_covariance
from bif.estimate.intervals import t_quantile
from bif.traces import LossTraces

_CHUNK_COLUMNS = 4096
_SIGNS = (1, -1)


@dataclass(frozen=True)
class Strongest:
    """Train columns with the largest scores of one sign, strongest first.

    Attributes:
        column: Positions among the N train columns, `[R, min(k, N)]`; -1 where a row has fewer.
        influence: `-Cov(l_i, phi)`, `[R, k]` float64; NaN where a row has fewer.
        standard_error: `[R, k]`.
    """

    column: Tensor
    influence: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class TopInfluences:
    """The strongest columns of every row on either side of zero.

    Attributes:
        positive: Those that raise the observable as they gain weight.
        negative: Those that lower it.
        left_out: How many of the strongest on either side are not listed because the sign of their
            score is not certain, `[R]`.
        weakest: The smallest |score| / error among these, `[R]`; NaN where none is left out.
        error_quantile: Half-width of a 95 % interval in standard errors.
    """

    positive: Strongest
    negative: Strongest
    left_out: Tensor
    weakest: Tensor
    error_quantile: float


def top_influences(
    traces: LossTraces,
    k: int,
    *,
    unresolved: bool = False,
    num_groups: int = DEFAULT_GROUPS,
    chunk_columns: int = _CHUNK_COLUMNS,
    device: torch.device | None = None,
) -> TopInfluences:
    """The k most positive and the k most negative scores of every query, with errors.

    The train columns, items or tokens, pass in chunks; of each only what is stronger than what was
    found before is kept.  The result is that of sorting all scores, with ties in the order of the
    columns; memory is O(R·(k + chunk)) besides the traces, for R rows.

    Args:
        traces: Query columns `[C, D, R]` are the rows.
        k: Columns on either side.
        unresolved: List scores whose sign is not certain at 95 %, too.
        num_groups: Groups of chains behind the standard errors.
        chunk_columns: Train columns at a time.
        device: Where to do the arithmetic.

    Raises:
        ValueError: k or chunk_columns below 1.
    """
    if k < 1 or chunk_columns < 1:
        raise ValueError(f"k is {k} and chunk_columns {chunk_columns}: expected at least 1 each.")
    num_rows, num_columns = (traces.blocks[0].query.shape[2], traces.blocks[0].train.shape[2])
    quantile = torch.inf
    listed, strongest = ([_nothing(num_rows) for _ in _SIGNS] for _ in range(2))
    for start in range(0, num_columns, chunk_columns):
        part = _columns(traces, slice(start, min(start + chunk_columns, num_columns)))
        covariance = estimate_covariance(part, num_groups=num_groups, device=device)
        quantile = t_quantile(covariance.num_groups)
        score, error = -covariance.value.cpu(), covariance.standard_error.cpu()
        column = torch.arange(start, start + score.shape[1]).expand(score.shape)
        for place, sign in enumerate(_SIGNS):
            fresh = Strongest(column, score.where(sign * score > 0, torch.nan), error)
            strongest[place] = _strongest(strongest[place], fresh, k, sign)
            certain = Strongest(column, fresh.influence.where(_certain(fresh, quantile), torch.nan),
                                error)  # fmt: skip
            listed[place] = _strongest(listed[place], certain, k, sign)
    shown = strongest if unresolved else listed
    left_out, weakest = _left_out(strongest, quantile)
    if unresolved:
        left_out, weakest = torch.zeros_like(left_out), torch.full_like(weakest, torch.nan)
    return TopInfluences(shown[0], shown[1], left_out, weakest, quantile)


def _certain(scores: Strongest, quantile: float) -> Tensor:
    """As in a ranking, a score without an error counts as certain."""
    return ~(scores.influence.abs() <= quantile * scores.standard_error)


def _nothing(num_rows: int) -> Strongest:
    empty = torch.empty(num_rows, 0, dtype=torch.float64)
    return Strongest(empty.long(), empty, empty)


def _columns(traces: LossTraces, part: slice) -> LossTraces:
    """Views of some train columns."""
    return LossTraces(tuple(replace(b, train=b.train[:, :, part]) for b in traces.blocks))


def _strongest(before: Strongest, fresh: Strongest, k: int, sign: int) -> Strongest:
    """The k strongest of both; those found before go first among equals."""
    column, score, error = (
        torch.cat([getattr(before, name), getattr(fresh, name)], dim=1)
        for name in ("column", "influence", "standard_error")
    )
    strength = (sign * score).nan_to_num(-torch.inf)
    order = strength.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = Strongest(*(x.gather(1, order) for x in (column, score, error)))
    missing = kept.influence.isnan()
    return Strongest(
        kept.column.masked_fill(missing, -1),
        kept.influence,
        kept.standard_error.masked_fill(missing, torch.nan),
    )


def _left_out(strongest: list[Strongest], quantile: float) -> tuple[Tensor, Tensor]:
    """How many of the strongest are not certain, and the weakest of these in errors."""
    ratio = torch.cat([s.influence.abs() / s.standard_error for s in strongest], dim=1)
    open_ = torch.cat([~_certain(s, quantile) for s in strongest], dim=1)
    weakest = ratio.where(open_, torch.inf).amin(dim=1)
    return open_.sum(dim=1), weakest.masked_fill(~open_.any(dim=1), torch.nan)
