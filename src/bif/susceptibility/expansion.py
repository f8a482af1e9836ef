"""Responses to shifts of the data: first and second order, and the draws themselves re-weighted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.cumulants import GroupCumulants, ThirdCumulantSums, mean_of_groups
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, TraceBlock, chain_groups
from bif.results.group_sums import members_of
from bif.runs.run import Run
from bif.susceptibility.shifts import Shifts

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_ELEMENTS = 8 * 2**20
"""Numbers of traces that are multiplied at a time."""
Queries = Sequence[str] | Mapping[str, Sequence[int]]
"""A name of a group for every query, or names to positions: an observable is a group's mean."""


@dataclass(frozen=True)
class ChainGroup:
    """What one group of chains says: its cumulants, and its traces.

    Attributes:
        cumulants: Of observables with the changes of the loss, each with itself as the pair.
        rows: Observables, `[D, R]`, less those of the first draw.
        columns: Changes of the summed loss, `[D, P]`, less those of the first draw.
    """

    cumulants: GroupCumulants
    rows: Tensor
    columns: Tensor


def susceptibilities(
    run: Run,
    shifts: Shifts,
    *,
    queries: Queries | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> xr.Dataset:
    """Return how every observable responds to shifts of the data, to first and second order.

    `susceptibility = -Cov(phi, Δ)` with `Δ = Σ_i d_i l_i` (see `Shifts`), which for one item with
    total weight "added" is the influence and with total weight "preserved" `-Cov(phi, l_i - L)`;
    `derivative = (nbeta/n)·susceptibility = dE[phi]/dt` and
    `second_derivative = (nbeta/n)²·κ₃(phi, Δ, Δ) + 2 (W/S)·(nbeta/n)·Cov(phi, Δ) = d²E[phi]/dt²` at
    t = 0, with nbeta, gamma and w* as they are.  The last term is that of the normalisation.

    Args:
        run: With the traces of its items.
        shifts: Of its data.
        queries: Groups of queries, whose means are the observables; every query by default.
        num_groups: Groups of chains behind the standard errors.

    Returns:
        These with `…_error`, and `mean = E[phi]`, on (`observable`, `query`, `shift`).

    Raises:
        ValueError: Shifts of another run; groups of queries that are empty, or not of the run.
    """
    groups = _groups_of(run, shifts, queries, num_groups)
    found = [group.cumulants for group in groups]  # without their traces
    scale, gained = shifts.trained.nbeta / shifts.trained.num_items, shifts.weight_gained
    values: dict[str, list[Tensor]] = {
        "susceptibility": [-group.covariance for group in found],
        "derivative": [-scale * group.covariance for group in found],
        "second_derivative": [
            scale**2 * g.third + 2 * gained * scale * g.covariance for g in found
        ],
    }
    dataset = _axes(run, shifts, queries, num_groups=len(found))
    return _filled(dataset, values, [group.draws for group in found], ("shift",))


def predicted_change(
    run: Run,
    shifts: Shifts,
    sizes: Sequence[float],
    *,
    queries: Queries | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> xr.Dataset:
    """Predict how far every observable moves when the data shift by each size, without retraining.

    With s of `Shifts`, which takes the normalisation into account to all orders:
    `first = -s·(nbeta/n)·Cov(phi, Δ)`, `second = first + ½ s²·(nbeta/n)²·κ₃(phi, Δ, Δ)`, and
    `reweighted = Σ p_d phi_d / Σ p_d - mean` with `p_d = exp(-s·(nbeta/n)·Δ_d)`, all orders at once
    from the same draws.  That one holds while `effective_draws`, `(Σ p)² / Σ p²` of all groups of
    chains together, is a large number; with few it says little.

    A prediction, unverified: it is of the posterior around the trained weights, at its nbeta and
    gamma, and of an observable through a proxy as it was recorded, linear in the proxy.

    Args:
        run: With the traces of its items.
        shifts: Of its data.
        sizes: t of each change, Z of them: with weights of 1, -1 removes a group, 1 doubles it.
        queries: Groups of queries, whose means are the observables; every query by default.
        num_groups: Groups of chains behind the standard errors.

    Returns:
        `first`, `second`, `reweighted` with `…_error` on (`observable`, `query`, `shift`, `size`),
        `effective_draws` (`shift`, `size`), and `mean` (`observable`, `query`).

    Raises:
        ValueError: Sizes that give a weight below 0, or NaN; as `susceptibilities`.
    """
    t = torch.as_tensor(np.asarray(sizes), dtype=torch.float64)
    if t.dim() != 1 or not len(t) or not bool(t.isfinite().all()):
        raise ValueError(f"sizes must be finite numbers, at least one, got {sizes!r}.")
    steps = shifts.steps(t)
    scaled = steps * (shifts.trained.nbeta / shifts.trained.num_items)
    values: dict[str, list[Tensor]] = {"first": [], "second": [], "reweighted": []}
    draws, effective = [], torch.zeros_like(steps)
    for group in _groups_of(run, shifts, queries, num_groups):
        cumulants = group.cumulants
        first = -scaled * cumulants.covariance[..., None]
        moved, left = _reweighted(group, scaled)
        values["first"].append(first)
        values["second"].append(first + 0.5 * scaled.square() * cumulants.third[..., None])
        values["reweighted"].append(moved)
        draws.append(cumulants.draws)
        effective += left
    dataset = _axes(run, shifts, queries, num_groups=len(draws)).assign_coords(size=t.numpy())
    dataset = _filled(dataset, values, draws, ("shift", "size"))
    return dataset.assign(effective_draws=(("shift", "size"), effective.numpy()))


def chain_groups_of(
    traces: LossTraces, rows: Tensor | slice, columns: Tensor, num_groups: int
) -> Iterator[ChainGroup]:
    """Yield the cumulants and traces of groups of chains, one after another.

    Args:
        traces: Of train columns and queries.
        rows: The observables: query columns, or combinations of them, `[R, A·Q]`.
        columns: What the changes of the loss are of the train columns, `[P, N]`.
        num_groups: Groups of chains, at most as many as chains.
    """
    pairs = [(place, place) for place in range(len(columns))]
    for group in chain_groups(traces, num_groups):
        block = traces.blocks[group[0][0]]
        start = block.train[group[0][1][0], 0].double(), block.query[group[0][1][0], 0].double()
        parts = [
            (traces.blocks[index], position) for index, positions in group for position in positions
        ]
        x = torch.cat([_combined(b, "query", i, rows, start[1]) for b, i in parts])
        y = torch.cat([_combined(b, "train", i, columns, start[0]) for b, i in parts])
        sums = ThirdCumulantSums(pairs)
        sums.update(x, y)
        yield ChainGroup(sums.close(), x, y)


def _combined(
    block: TraceBlock, side: str, chain: int, combinations: Tensor | slice, start: Tensor
) -> Tensor:
    """Return linear combinations of a chain's traces less `start`, `[D, R]`, float64."""
    traces: Tensor = getattr(block, side)[chain]
    if isinstance(combinations, slice):
        return traces[:, combinations].double() - start[combinations]
    step = max(1, _CHUNK_ELEMENTS // max(1, traces.shape[1]))
    parts = [(part.double() - start) @ combinations.T for part in traces.split(step)]
    return torch.cat(parts)


def _groups_of(
    run: Run, shifts: Shifts, queries: Queries | None, num_groups: int
) -> Iterator[ChainGroup]:
    dataset = run.influence.dataset
    if shifts.trained.ids != tuple(str(name) for name in dataset["train_id"].values):
        raise ValueError(
            f"the shifts are of {len(shifts.trained.ids)} other train columns than the run's "
            f"{dataset.sizes['train']}: make them of this run."
        )
    rows = slice(None)
    if queries is not None:
        each = torch.eye(dataset.sizes["observable"], dtype=torch.float64)
        rows = torch.kron(each, means_of_queries(run, queries))
    return chain_groups_of(run.traces, rows, shifts.directions, num_groups)


def means_of_queries(run: Run, queries: Queries) -> Tensor:
    """Return the observables as means over queries, `[Q', Q]`."""
    count = run.influence.dataset.sizes["query"]
    members = members_of(queries, count, "query")
    means = torch.zeros(len(members), count, dtype=torch.float64)
    for row, (name, places) in zip(means, members.items(), strict=True):
        if not len(places) or not all(0 <= place < count for place in places):
            raise ValueError(
                f"the group of queries {name!r} has positions {list(places)[:5]}: expected some "
                f"from 0 to {count - 1}."
            )
        row[list(places)] = 1 / len(places)
    return means


def _axes(run: Run, shifts: Shifts, queries: Queries | None, *, num_groups: int) -> xr.Dataset:
    """Return the names of the results' axes, and the means of the observables."""
    import xarray as xr

    scores = run.influence.dataset
    names = [str(name) for name in scores["query_id"].values]
    means = torch.as_tensor(scores["query_mean"].values).double()
    if queries is not None:
        names = list(members_of(queries, len(names), "query"))
        means = means @ means_of_queries(run, queries).T
    found = xr.Dataset(
        coords={
            "observable": scores["observable"].values,
            "query": names,
            "shift": list(shifts.names),
            "weight_gained": ("shift", shifts.weight_gained.numpy()),
        },
        attrs={
            "nbeta": shifts.trained.nbeta, "num_train": shifts.trained.num_items,
            "total_weight": shifts.total_weight, "error_quantile": t_quantile(num_groups),
            "trusted": int(bool(run.summary.trusted)),
        },
    )  # fmt: skip
    if "through" in scores.coords:
        found = found.assign_coords(through=("observable", scores["through"].values))
    return found.assign(mean=(("observable", "query"), means.numpy()))


def _filled(
    dataset: xr.Dataset,
    values: Mapping[str, Sequence[Tensor]],
    draws: Sequence[int],
    axes: tuple[str, ...],
) -> xr.Dataset:
    """Return the dataset with means over groups of chains, `[A·Q, …]` each, and their errors."""
    shape = (dataset.sizes["observable"], dataset.sizes["query"])
    for name, groups in values.items():
        for suffix, x in zip(("", "_error"), mean_of_groups(groups, draws), strict=True):
            whole = x.unflatten(0, shape).numpy()
            dataset[f"{name}{suffix}"] = (("observable", "query", *axes), whole)
    return dataset


def _reweighted(group: ChainGroup, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changes of the means of re-weighted draws, `[R, P, Z]`, and effective draws.

    Args:
        group: Traces of a group of chains.
        steps: `s·nbeta/n`, `[P, Z]`.
    """
    rows = group.rows - group.rows.mean(dim=0)
    changes, effective = [], []
    for column, step in zip(group.columns.T, steps, strict=True):
        p = torch.softmax(-column[:, None] * step, dim=0)  # [D, Z]
        changes.append(rows.T @ p)
        effective.append(1 / p.square().sum(dim=0))
    return torch.stack(changes, dim=1), torch.stack(effective)
