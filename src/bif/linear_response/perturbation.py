"""The pilot that chooses h: a ladder of sizes for a few queries, all in one stacked run."""

from __future__ import annotations

from math import ceil, sqrt

import torch
from torch import Tensor

from bif.estimate.response import Perturbation, choose_perturbation
from bif.linear_response.estimates import BlockResponse, Clock, relaxation_steps, sampled, settled
from bif.linear_response.pairs import Pairs
from bif.problem.items import Items
from bif.types import Params

SIZES = [4.0 ** (k - 5) for k in range(7)]
"""Sizes to try, of `h·|∇phi|/sqrt(k)`: about `h` times the standard deviation of phi."""

LARGEST_SHARE = 1 / 8
"""h is at most an eighth of nbeta: far above it `U - h·phi` is no well."""

TOLERANCE = {1.0: 1e-2, 0.0: 1e-4}
"""Bias that is always fine, relative to the scores, by temperature: without noise a smaller h costs
nothing, until rounding shows."""

NUM_PILOT_QUERIES = 4

# At the largest sizes a descent may have no end; those that are of use have settled by then.
_PILOT_RELAXATIONS = 30


def sizes_of_h(pairs: Pairs, groups: list[Items]) -> Tensor:
    """Each query's h at size 1, `[Q]`: `sqrt(k) / |∇phi|`.

    A perturbation moves the law by `h·sd(phi)` standard deviations, and its bias is quadratic in
    that; `sd(phi)` is about `|∇phi| / sqrt(k)`, with gradients at w* and one curvature k for all
    queries, between the largest and the smallest.
    """
    norms = torch.cat([pairs.gradient_norms(items) for items in groups])
    return sqrt(pairs.typical_curvature) / norms.clamp(min=1e-300)


def pilot(
    pairs: Pairs,
    groups: list[Items],
    values_Q: Tensor,
    unit_Q: Tensor,
    *,
    clock: Clock,
    start: Params | None,
    advice: str,
) -> Perturbation:
    """Choose the size of the perturbation by the bias and noise of a few queries at every size.

    Bias and noise are relative to each query's own scores.

    Args:
        groups: The groups of queries; the pilot takes some of the largest group.
        values_Q: The observable of all queries at w*.
        unit_Q: From `sizes_of_h`.
        clock: Of the final run, at temperature 1.
        start: Where descents start; None at temperature 1.
        advice: What to change where pairs diverge at every size.

    Raises:
        ValueError: Pairs that diverge at every size.
    """
    items, chosen, rows = pilot_queries(groups, values_Q)
    h_K = torch.cat([bounded(size * unit_Q[rows], pairs) for size in SIZES]).to(pairs.device)
    indices_K = chosen.repeat(len(SIZES))
    if start is not None:
        limit = ceil(_PILOT_RELAXATIONS * relaxation_steps(pairs))
        found = settled(
            pairs, items, indices_K, h_K, start=start, max_steps=limit, neighbours=len(chosen)
        )
        return _chosen(found, 1.0, TOLERANCE[0.0], advice)
    short = Clock(clock.burn_in, clock.stride, ceil(clock.batch / 4), clock.times)
    found = sampled(pairs, items, indices_K, h_K, clock=short, neighbours=len(chosen))
    return _chosen(found, sqrt(short.batch / clock.batch), TOLERANCE[1.0], advice)


def bounded(h_Q: Tensor, pairs: Pairs) -> Tensor:
    """The h that leave the potential a well; queries whose gradient vanishes ask for any size."""
    return h_Q.clamp(max=LARGEST_SHARE * (pairs.settings.nbeta or pairs.posterior.gamma))


def pilot_queries(groups: list[Items], values_Q: Tensor) -> tuple[Items, Tensor, Tensor]:
    """A few queries of the largest group, from the least to the largest observable at w*.

    Returns:
        The group, positions in it and rows of the result.
    """
    largest = max(range(len(groups)), key=lambda g: len(groups[g]))
    first = sum(len(items) for items in groups[:largest])
    items = groups[largest]
    order = values_Q[first : first + len(items)].argsort(stable=True)
    ranks = torch.linspace(0, len(items) - 1, min(NUM_PILOT_QUERIES, len(items)))
    chosen = order[ranks.round().long()]
    return items, chosen, first + chosen


def _chosen(
    found: BlockResponse, noise_factor: float, tolerance: float, advice: str
) -> Perturbation:
    assert found.change_error is not None
    num_items = found.response.shape[1]
    response = found.response.view(len(SIZES), -1, num_items)
    # One scale a query, from the middle of the ladder: the lowest rungs are noisy, the highest off.
    scale = response.square().mean(dim=2).nanmedian(dim=0).values.sqrt().clamp(min=1e-300)
    scale = scale.view(1, -1, 1)
    return choose_perturbation(
        SIZES,
        response / scale,
        error_HQN=found.standard_error.view_as(response) / scale,
        change_error_HQN=found.change_error.view(len(SIZES) - 1, -1, num_items) / scale,
        noise_factor=noise_factor,
        tolerance=tolerance,
        advice=advice,
    )
