"""Compare chains with each other, and a run with one without any influence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS, Covariance, estimate_covariance
from bif.estimate.diagnostics import thinned
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, TraceBlock


@dataclass(frozen=True)
class Independence:
    """Measures of how much chains have in common.

    Attributes:
        shared: Variance of the chains' mean trace over what independent chains would leave,
            `C · Var_t(mean_c x) / mean_c Var_t(x)`: 1 if they are independent, C if they are all
            the same.  A common line is taken off first.
        alike: The largest correlation between two chains' traces.
        twins: Those two chains.
    """

    shared: float
    alike: float
    twins: tuple[int, int]


def independence(traces: LossTraces, *, num_items: int = 64) -> Independence:
    """Compare chains with each other, draw by draw.

    Args:
        traces: Traces of at least two chains; cut to the shortest one.
        num_items: Train items that are compared, drawn at random.
    """
    draws = traces.shortest
    few = thinned(traces.truncated(draws), 1, num_items, seed=0)
    x = torch.cat([block.train for block in few.blocks]).double()
    x = x - x.mean(dim=1, keepdim=True)
    line = torch.linspace(-1, 1, draws, dtype=torch.float64)
    line = (line / line.norm()).view(1, -1, 1)
    common = x.mean(dim=0, keepdim=True)
    x = x - line * (line * common).sum(dim=1, keepdim=True)
    variance = x.square().mean(dim=1).mean(dim=0)
    moving = variance > 0
    ratio = len(x) * x.mean(dim=0).square().mean(dim=0)[moving] / variance[moving]
    standard = x / x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-300)
    flat = standard.flatten(1) / max(1.0, float(moving.sum())) ** 0.5
    correlation = (flat @ flat.T).fill_diagonal_(-1.0)
    place = int(correlation.argmax())
    names = [chain for block in traces.blocks for chain in block.chains]
    first, second = sorted(divmod(place, len(x)))
    shared = float(ratio.mean()) if moving.any() else 1.0
    return Independence(shared, float(correlation.max()), (names[first], names[second]))


def shuffled(traces: LossTraces) -> LossTraces:
    """Return the train losses of every chain beside the queries of another.

    Chains are independent, so all covariances are truly 0, with the errors of the run itself.

    Args:
        traces: Traces of at least two chains; with one in a block, all are cut to the shortest.
    """
    if any(len(block.chains) < 2 for block in traces.blocks):
        blocks = traces.truncated(traces.shortest).blocks
        chains = tuple(chain for block in blocks for chain in block.chains)
        train, query = (torch.cat([getattr(b, n) for b in blocks]) for n in ("train", "query"))
        traces = LossTraces((TraceBlock(chains, train, query),))
    return LossTraces(
        tuple(replace(block, query=block.query.roll(1, dims=0)) for block in traces.blocks)
    )


@dataclass(frozen=True)
class SignificantPairs:
    """Shares of pairs whose sign is resolved at 95 %: in the run, and with chains shuffled.

    Without any influence both are about .05; chains that are not independent raise both.
    """

    share: float
    null: float
    count: int


def significant_pairs(
    traces: LossTraces,
    *,
    num_queries: int = 64,
    num_train: int = 512,
    num_groups: int = DEFAULT_GROUPS,
) -> SignificantPairs:
    """Return how many scores stand out from their errors, and how many would by chance.

    Args:
        traces: Traces of at least two chains.
        num_queries: Query columns that are compared, drawn at random.
        num_train: Train items that are compared, drawn at random.
        num_groups: Groups of chains behind the errors.
    """
    few = thinned(traces, num_queries, num_train, seed=0)
    found, null = (
        _resolved(estimate_covariance(part, num_groups=num_groups)) for part in (few, shuffled(few))
    )
    return SignificantPairs(
        float(found.double().mean()), float(null.double().mean()), found.numel()
    )


def _resolved(covariance: Covariance) -> Tensor:
    return covariance.value.abs() > t_quantile(covariance.num_groups) * covariance.standard_error
