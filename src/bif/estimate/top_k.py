"""Find the top k train columns of every query, without ever holding all scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS, Covariance, estimate_covariance
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces

_CHUNK_COLUMNS = 4096
"""Train columns whose scores are held at a time."""
_CHUNK_ROWS = 1024
"""Query columns whose scores are held at a time."""
_SIGNS = (1, -1)
"""Signs of the lists, in their order."""


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
        left_out: Number of the strongest on either side are not listed because the sign of their
            score is not certain, `[R]`.
        weakest: The smallest |score| / error among these, `[R]`; NaN where none is left out.
        error_quantile: Half-width of a 95 % interval in standard errors.
    """

    positive: Strongest
    negative: Strongest
    left_out: Tensor
    weakest: Tensor
    error_quantile: float


@dataclass(frozen=True)
class StrongestInfluences:
    """The strongest columns of every row either way, and what is known of rows and columns alone.

    Attributes:
        certain: The k most positive and the k most negative of those whose sign is certain at 95 %.
        strongest: The strongest of all, whether their sign is certain or not.
        row_variance: `[R]`; row_mean: `[R]`.
        column_variance: `[N]`; column_variance_error: `[N]`; column_mean: `[N]`.
        error_quantile: Half-width of a 95 % interval in standard errors.
    """

    certain: tuple[Strongest, Strongest]
    strongest: tuple[Strongest, Strongest]
    row_variance: Tensor
    row_mean: Tensor
    column_variance: Tensor
    column_variance_error: Tensor
    column_mean: Tensor
    error_quantile: float


def top_influences(
    traces: LossTraces,
    k: int,
    *,
    unresolved: bool = False,
    num_groups: int = DEFAULT_GROUPS,
    chunk_columns: int = _CHUNK_COLUMNS,
    chunk_rows: int = _CHUNK_ROWS,
    device: torch.device | None = None,
) -> TopInfluences:
    """Return the k most positive and the k most negative scores of every query, with errors.

    Args: as for `strongest_influences`.
        unresolved: List scores whose sign is not certain at 95 %, too.

    Raises:
        ValueError: k or the size of a chunk below 1.
    """
    found = strongest_influences(
        traces, k, num_groups=num_groups, chunk_columns=chunk_columns, chunk_rows=chunk_rows,
        device=device,
    )  # fmt: skip
    quantile = found.error_quantile
    shown = found.strongest if unresolved else found.certain
    left_out, weakest = _count_uncertain(found.strongest, quantile)
    if unresolved:
        left_out, weakest = torch.zeros_like(left_out), torch.full_like(weakest, torch.nan)
    return TopInfluences(shown[0], shown[1], left_out, weakest, quantile)


def strongest_influences(
    traces: LossTraces,
    k: int,
    *,
    num_groups: int = DEFAULT_GROUPS,
    chunk_columns: int = _CHUNK_COLUMNS,
    chunk_rows: int = _CHUNK_ROWS,
    device: torch.device | None = None,
) -> StrongestInfluences:
    """Return the k strongest scores of every query either way, certain ones and all.

    The train columns, items or tokens, pass in chunks; of each only what is stronger than what was
    found before is kept.  The result is that of sorting all scores, with ties in the order of the
    columns; memory is O(R·k + N + chunk_rows·chunk_columns) besides the traces, for R rows and N
    columns.

    Args:
        traces: Query columns `[C, D, R]` are the rows.
        k: Columns on either side.
        num_groups: Groups of chains behind the standard errors.
        chunk_columns: Train columns at a time.
        chunk_rows: Rows at a time.
        device: Device of the arithmetic.

    Raises:
        ValueError: k or the size of a chunk below 1.
    """
    if min(k, chunk_columns, chunk_rows) < 1:
        raise ValueError(
            f"k is {k}, chunk_columns {chunk_columns} and chunk_rows {chunk_rows}: expected at "
            "least 1 each."
        )
    num_rows, num_columns = (traces.blocks[0].query.shape[2], traces.blocks[0].train.shape[2])
    quantile = torch.inf
    sides: list[tuple[Strongest, ...]] = []  # of each chunk of rows: certain, then all
    about_rows, about_columns = [], []
    for row in range(0, num_rows, chunk_rows):
        rows = slice(row, min(row + chunk_rows, num_rows))
        found = [_nothing(rows.stop - row, device)] * 4
        covariance = None
        for start in range(0, num_columns, chunk_columns):
            columns = slice(start, min(start + chunk_columns, num_columns))
            part = _view(traces, rows, columns)
            covariance = estimate_covariance(part, num_groups=num_groups, device=device)
            quantile = t_quantile(covariance.num_groups)
            found = _merge(found, covariance, start, k, quantile)
            if row == 0:
                about_columns.append(
                    (covariance.column_variance, covariance.column_variance_error,
                     covariance.column_mean)
                )  # fmt: skip
        assert covariance is not None
        sides.append(tuple(found))
        about_rows.append((covariance.row_variance, covariance.row_mean))
    up, down, any_up, any_down = (_concatenate(parts) for parts in zip(*sides, strict=True))
    variance, mean = (torch.cat(x).cpu() for x in zip(*about_rows, strict=True))
    column_variance, error, column_mean = (
        torch.cat(x).cpu() for x in zip(*about_columns, strict=True)
    )
    return StrongestInfluences(
        (up, down), (any_up, any_down), variance, mean, column_variance, error, column_mean,
        quantile,
    )  # fmt: skip


def _merge(
    before: list[Strongest], covariance: Covariance, start: int, k: int, quantile: float
) -> list[Strongest]:
    """Merge those found before with those of a chunk: certain ones, then all, each + and -."""
    score, error = -covariance.value, covariance.standard_error
    column = torch.arange(start, start + score.shape[1], device=score.device).expand(score.shape)
    certain, strongest = [], []
    for place, sign in enumerate(_SIGNS):
        fresh = Strongest(column, score.where(sign * score > 0, torch.nan), error)
        strongest.append(_strongest(before[2 + place], fresh, k, sign))
        listed = fresh.influence.where(_is_certain(fresh, quantile), torch.nan)
        certain.append(_strongest(before[place], Strongest(column, listed, error), k, sign))
    return certain + strongest


def _concatenate(parts: Sequence[Strongest]) -> Strongest:
    """Concatenate chunks of rows on the host."""
    return Strongest(
        *(
            torch.cat([getattr(part, name) for part in parts]).cpu()
            for name in ("column", "influence", "standard_error")
        )
    )


def _is_certain(scores: Strongest, quantile: float) -> Tensor:
    """Return which scores have a certain sign; a score without an error counts as certain."""
    return ~(scores.influence.abs() <= quantile * scores.standard_error)


def _nothing(num_rows: int, device: torch.device | None) -> Strongest:
    empty = torch.empty(num_rows, 0, dtype=torch.float64, device=device)
    return Strongest(empty.long(), empty, empty)


def _view(traces: LossTraces, rows: slice, columns: slice) -> LossTraces:
    """Return views of some rows and train columns."""
    return LossTraces(
        tuple(
            replace(b, train=b.train[:, :, columns], query=b.query[:, :, rows])
            for b in traces.blocks
        )
    )


def _strongest(before: Strongest, fresh: Strongest, k: int, sign: int) -> Strongest:
    """Return the k strongest of both; those found before go first among equals."""
    column, score, error = (
        torch.cat([getattr(before, name), getattr(fresh, name)], dim=1)
        for name in ("column", "influence", "standard_error")
    )
    # As results hold them: scores that rounding alone tells apart are equal.
    strength = (sign * score).float().nan_to_num(-torch.inf)
    order = strength.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = Strongest(*(x.gather(1, order) for x in (column, score, error)))
    missing = kept.influence.isnan()
    return Strongest(
        kept.column.masked_fill(missing, -1),
        kept.influence,
        kept.standard_error.masked_fill(missing, torch.nan),
    )


def _count_uncertain(strongest: Sequence[Strongest], quantile: float) -> tuple[Tensor, Tensor]:
    """Return how many of the strongest are not certain, and the weakest of these in errors."""
    ratio = torch.cat([s.influence.abs() / s.standard_error for s in strongest], dim=1)
    open_ = torch.cat([~_is_certain(s, quantile) for s in strongest], dim=1)
    weakest = ratio.where(open_, torch.inf).amin(dim=1)
    return open_.sum(dim=1), weakest.masked_fill(~open_.any(dim=1), torch.nan)
