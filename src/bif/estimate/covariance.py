"""Estimate covariances of loss traces with standard errors, in O(N·Q) memory.

Chains are taken in groups, one group open at a time.  An open group gathers centred sums; when it
is closed its covariance matrix enters two compensated totals, weighted by degrees of freedom, and
is forgotten.  The spread of the closed groups is the standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bif.estimate.anchored import fit_anchors, remove_linear_part
from bif.estimate.traces import LossTraces, chain_groups

_CHUNK_ELEMENTS = 8 * 2**20
"""Numbers that are summed at a time, so that temporaries stay small."""
_ADDED_ELEMENTS = 2**20
"""Numbers of a total that are added at a time: an addition has half a dozen temporaries."""
DEFAULT_GROUPS = 16
"""Groups of chains whose spread gives the standard errors."""


@dataclass(frozen=True)
class Covariance:
    """Covariances of row variables (queries) with column variables (train items).

    Attributes:
        value: `[Q, N]` float64.
        standard_error: `[Q, N]`; NaN with fewer than two groups.
        row_variance: `[Q]`; row_mean: `[Q]`.
        column_variance: `[N]`; column_variance_error: `[N]`; column_mean: `[N]`.
        num_groups: Groups of chains behind the standard error.
    """

    value: Tensor
    standard_error: Tensor
    row_variance: Tensor
    row_mean: Tensor
    column_variance: Tensor
    column_variance_error: Tensor
    column_mean: Tensor
    num_groups: int


class GroupSums:
    """Sums of one open group of chains; `update` as often as one likes, then `close`.

    Losses are shifted by the group's first draw, so that large offsets cost no digits, and centred
    over the group.  What its chains differ in is then part of the covariance, and of its spread
    over groups: slow directions widen the errors instead of being left out of both.
    """

    def __init__(self) -> None:
        self._cross: Tensor | None = None
        self._count = 0

    def update(self, columns: Tensor, rows: Tensor) -> None:
        """Add draws: `columns` `[C, d, N]`, `rows` `[C, d, Q]`, the same chains each time."""
        if self._cross is None:
            num_chains, num_columns, num_rows = len(columns), columns.shape[2], rows.shape[2]
            device = columns.device
            self._reference = columns[:1, :1].double().clone(), rows[:1, :1].double().clone()
            self._cross = torch.zeros(num_rows, num_columns, dtype=torch.float64, device=device)
            self._sums = (
                torch.zeros(num_chains, num_columns, dtype=torch.float64, device=device),
                torch.zeros(num_chains, num_rows, dtype=torch.float64, device=device),
            )
            self._squares = (
                torch.zeros(num_columns, dtype=torch.float64, device=device),
                torch.zeros(num_rows, dtype=torch.float64, device=device),
            )
        step = max(1, _CHUNK_ELEMENTS // max(1, columns.shape[0] * columns.shape[2]))
        for start in range(0, columns.shape[1], step):
            part = slice(start, start + step)
            shifted = (
                columns[:, part] - self._reference[0],  # float64, and the caller's traces intact
                rows[:, part] - self._reference[1],
            )
            flat_columns, flat_rows = (x.flatten(0, 1) for x in shifted)
            self._cross.addmm_(flat_rows.T, flat_columns)
            for total, squares, x in zip(self._sums, self._squares, shifted, strict=True):
                total.add_(x.sum(dim=1))
                squares.add_(x.flatten(0, 1).square().sum(dim=0))
        self._count += columns.shape[1]

    def close(self) -> ClosedGroup:
        """Return the group's covariance; the sums are used up.

        Raises:
            ValueError: Fewer than two draws.
        """
        if self._cross is None or self._count < 2:
            raise ValueError(
                f"a chain needs at least 2 draws for a covariance, got {self._count}: record more."
            )
        draws = len(self._sums[0]) * self._count
        columns, rows = (total.sum(dim=0) for total in self._sums)
        freedom = draws - 1
        self._cross.addr_(rows, columns, alpha=-1 / draws).div_(freedom)
        variances = [
            (squares - total.square() / draws).clamp_(min=0) / freedom
            for squares, total in zip(self._squares, (columns, rows), strict=True)
        ]
        means = [
            total / draws + reference[0, 0]
            for total, reference in zip((columns, rows), self._reference, strict=True)
        ]
        covariance, self._cross = self._cross, None
        return ClosedGroup(freedom, covariance, *variances, *means)

    def state(self) -> dict[str, Tensor]:
        """Return all sums, by name; nothing before the first draws."""
        if self._cross is None:
            return {}
        return {
            "cross": self._cross,
            "count": torch.tensor(self._count),
            **{
                f"{name}.{side}": x
                for name in ("reference", "sums", "squares")
                for side, x in zip(("columns", "rows"), getattr(self, f"_{name}"), strict=True)
            },
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, to the last bit."""
        if not saved:
            return
        self._cross, self._count = saved["cross"], int(saved["count"])
        self._reference, self._sums, self._squares = (
            (saved[f"{name}.columns"], saved[f"{name}.rows"])
            for name in ("reference", "sums", "squares")
        )
        if len(self._reference[0]) != 1:
            raise ValueError(
                "the saved sums are of a version of bif that centred chain by chain: go on with "
                "that version, or begin the run anew."
            )


@dataclass(frozen=True)
class ClosedGroup:
    """Degrees of freedom, covariance `[Q, N]`, variances and means `[N]`, `[Q]` of a group."""

    freedom: int
    covariance: Tensor
    column_variance: Tensor
    row_variance: Tensor
    column_mean: Tensor
    row_mean: Tensor


class _Compensated:
    """A float64 total with its rounding error kept beside it (Knuth's two-sum).

    Addition is exact to about 1e-32, so totals merged in any order round to the same bits.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.high = torch.zeros(shape, dtype=torch.float64, device=device)
        self.low = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, x: Tensor, *, factor: float = 1.0, power: Literal[1, 2] = 1) -> None:
        """Add `factor * x**power`, a block of rows at a time to keep temporaries small."""
        rows = max(1, _ADDED_ELEMENTS // max(1, x[0].numel()))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            term = x[part].pow(power).mul_(factor)
            high = self.high[part]
            total = high + term
            back = total - high
            self.low[part] += (high - (total - back)) + (term - back)
            self.high[part] = total

    def merge(self, other: _Compensated) -> None:
        self.add(other.high)
        self.low += other.low

    def use_up(self) -> Tensor:
        """Return the total as one float64; the parts are gone."""
        return self.high.add_(self.low)


class CovarianceSums:
    """Totals over closed groups; partial totals of different workers merge exactly.

    `merge` is commutative and associative to the last bit of the finished result, but for
    coincidences of probability about 1e-15 an entry.
    """

    def __init__(self) -> None:
        self._freedom = 0
        self._num_groups = 0
        self._totals: dict[str, _Compensated] = {}

    def add(self, group: ClosedGroup) -> None:
        """Take in a closed group."""
        self._freedom += group.freedom
        self._num_groups += 1
        for name in ("column_mean", "row_mean", "row_variance", "column_variance", "covariance"):
            x = getattr(group, name)
            self._total(name, x).add(x, factor=group.freedom)
            if name in ("column_variance", "covariance"):
                self._total(name + "_squared", x).add(x, factor=group.freedom, power=2)

    def merge(self, other: CovarianceSums) -> None:
        """Take in another worker's totals, over other groups."""
        self._freedom += other._freedom
        self._num_groups += other._num_groups
        for name, total in other._totals.items():
            self._total(name, total.high).merge(total)

    def finish(self) -> Covariance:
        """Return the weighted mean over groups and its error; the totals are used up.

        `value = Σ n_g x_g / Σ n_g`; `standard_error² = (Σ n_g x_g² / Σ n_g - value²) / (G - 1)`,
        unbiased where the variance of x_g goes as 1/n_g.

        Raises:
            ValueError: No group was added.
        """
        if not self._num_groups:
            raise ValueError("no group of chains was closed: there is nothing to estimate.")
        value, error = self._mean_and_error("covariance")
        variance, variance_error = self._mean_and_error("column_variance")
        mean = {
            name: self._totals.pop(name).use_up() / self._freedom
            for name in ("row_variance", "row_mean", "column_mean")
        }
        return Covariance(
            value,
            error,
            column_variance=variance,
            column_variance_error=variance_error,
            num_groups=self._num_groups,
            **mean,
        )

    def _mean_and_error(self, name: str) -> tuple[Tensor, Tensor]:
        value = self._totals.pop(name).use_up().div_(self._freedom)
        error = self._totals.pop(name + "_squared").use_up().div_(self._freedom)
        if self._num_groups < 2:
            return value, error.fill_(float("nan"))
        rows = max(1, _ADDED_ELEMENTS // max(1, error[0].numel()))
        for start in range(0, len(error), rows):  # some at a time: no temporary of the full size
            part = slice(start, start + rows)
            spread = error[part] - value[part].square()
            error[part] = (spread.clamp_(min=0) / (self._num_groups - 1)).sqrt_()
        return value, error

    def _total(self, name: str, like: Tensor) -> _Compensated:
        if name not in self._totals:
            self._totals[name] = _Compensated(like.shape, like.device)
        return self._totals[name]


def estimate_covariance(
    traces: LossTraces,
    *,
    rows: Literal["query", "train"] = "query",
    num_groups: int = DEFAULT_GROUPS,
    device: torch.device | None = None,
) -> Covariance:
    """Estimate the covariance of the rows (queries, or the train items again) with the train items.

    Centred within groups of chains and divided by draws - 1, which biases covariances down by about
    τ/D for autocorrelation time τ and D draws a group.

    Queries with anchors have the anchored covariance (`bif.estimate.anchored`), of which the
    sampled part alone has this bias.

    Args:
        traces: Traces of at least two draws a chain.
        rows: "query" for the rectangle, "train" for the square of the train items.
        num_groups: Groups of chains for the standard error; at most the number of chains.
        device: Device of the arithmetic; the traces' by default.
    """
    fit = None
    if rows == "query" and traces.anchored:
        fit = fit_anchors(traces, num_groups)
        traces = remove_linear_part(traces, fit)
    sums = CovarianceSums()
    for group in chain_groups(traces, num_groups):
        for closed in _close(traces, group, rows, device):
            sums.add(closed)
            del closed
    found = sums.finish()
    return found if fit is None else replace(found, row_variance=fit.variance.to(found.value))


def _close(
    traces: LossTraces,
    group: list[tuple[int, list[int]]],
    rows: Literal["query", "train"],
    device: torch.device | None,
) -> Iterator[ClosedGroup]:
    """Yield one closed group, or parts of one that straddles blocks of unequal draws."""
    for block_index, positions in group:
        block, sums = traces.blocks[block_index], GroupSums()
        selection = slice(positions[0], positions[-1] + 1)
        num_items = block.train.shape[2]
        step = max(1, _CHUNK_ELEMENTS // (len(positions) * num_items))
        for start in range(0, block.num_draws, step):
            part = (selection, slice(start, start + step))
            columns = block.train[part].to(device)
            sums.update(columns, block.query[part].to(device) if rows == "query" else columns)
        closed = sums.close()
        if rows == "query" and block.slope is not None:
            closed.covariance.add_(block.slope[selection].to(device).mean(dim=0))
        yield closed
