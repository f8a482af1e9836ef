"""Interactions of train items: third cumulants of pairs, and groups held against their members."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.cumulants import group_cumulants, mean_of_groups
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, chain_groups
from bif.runs.recorded import query_columns
from bif.runs.run import Run
from bif.susceptibility.expansion import chain_groups_of
from bif.susceptibility.shifts import group_shifts
from bif.susceptibility.trained import Trained

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_ELEMENTS = 4 * 2**20
"""Numbers of traces that are squared at a time."""


def third_cumulants(
    run: Run,
    pairs: Sequence[tuple[str | int, str | int]],
    *,
    observable: str | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> xr.Dataset:
    """Return `κ₃(phi, l_i, l_j)` of every query with chosen pairs of train items.

    `(nbeta/n)²·κ₃ = d²E[phi]/d rho_i d rho_j`: how far the influence of one item depends on the
    weight of the other.

    Args:
        run: With the traces of its items.
        pairs: Ids, or positions, of two train columns each; the same one twice is allowed.
        observable: The first one by default.
        num_groups: Groups of chains behind the standard errors.

    Returns:
        `third_cumulant`, `second_derivative` and their `…_error` on (`query`, `pair`).

    Raises:
        KeyError: No such item or observable.
        ValueError: No pairs; a run without traces.
    """
    trained = Trained.of(run, torch.ones(int(run.influence.dataset.attrs["num_train"])))
    if not len(pairs):
        raise ValueError("no pair was given: name at least one, such as ('item-3', 'item-7').")
    _, columns = query_columns(run, observable)
    places = [(_place(a, trained.ids), _place(b, trained.ids)) for a, b in pairs]
    used = sorted({place for pair in places for place in pair})
    traces = run.traces.selected(
        train=np.asarray(used), query=np.arange(columns.start, columns.stop)
    )
    at = [(used.index(a), used.index(b)) for a, b in places]
    found = list(group_cumulants(traces, at, num_groups=num_groups))
    value, error = mean_of_groups([g.third for g in found], [g.draws for g in found])
    scale = (trained.nbeta / trained.num_items) ** 2
    return _dataset(
        run,
        {
            "third_cumulant": value, "third_cumulant_error": error,
            "second_derivative": scale * value, "second_derivative_error": scale * error,
        },
        {axis: ("pair", [trained.ids[pair[k]] for pair in places])
         for k, axis in enumerate(("first", "second"))},
        ("query", "pair"), len(found),
    )  # fmt: skip


def group_additivity(
    run: Run,
    groups: str | Sequence[str] | Mapping[str, Sequence[int]] = "label",
    *,
    size: float = -1.0,
    observable: str | None = None,
    num_groups: int = DEFAULT_GROUPS,
) -> xr.Dataset:
    """Return what k items do together, to second order, and what they do one by one.

    With total weight "added" and `c = size·nbeta/n`: `sum_of_each = Σ_i (-c·Cov(phi, l_i) +
    ½c²·κ₃(phi, l_i, l_i))` and `together = sum_of_each + interaction` with
    `interaction = c²·Σ_{i<j} κ₃(phi, l_i, l_j)`.  To first order influences add up, so the
    interaction is what a sum of influences leaves out.

    Args:
        run: With the traces of its items.
        groups: Text of the items that names them, names of every column, or names to positions.
        size: Change of each item's weight; -1 removes it.
        observable: The first one by default.
        num_groups: Groups of chains behind the standard errors.

    Returns:
        `first`, `sum_of_each`, `together`, `interaction` and their `…_error` on (`query`, `group`).

    Raises:
        KeyError: No such observable, or text of the items.
        ValueError: Empty groups; a size that is not finite; a run without traces.
    """
    if not np.isfinite(size):
        raise ValueError(f"size is {size}: expected a finite number, such as -1, which removes.")
    count = int(run.influence.dataset.attrs["num_train"])
    shifts = group_shifts(run, groups, total_weight="added", train_weights=torch.ones(count))
    _, columns = query_columns(run, observable)
    scale = size * shifts.trained.nbeta / shifts.trained.num_items
    groups_of_chains = chain_groups_of(run.traces, columns, shifts.weights, num_groups)
    found = [group.cumulants for group in groups_of_chains]
    own = _squares(run.traces, columns, shifts.weights, num_groups)
    draws = [group.draws for group in found]
    parts: dict[str, list[Tensor]] = {
        "first": [-scale * g.covariance for g in found],
        "interaction": [
            0.5 * scale**2 * (g.third - squares) for g, squares in zip(found, own, strict=True)
        ],
    }
    parts["sum_of_each"] = [
        first + 0.5 * scale**2 * squares for first, squares in zip(parts["first"], own, strict=True)
    ]
    parts["together"] = [
        a + b for a, b in zip(parts["sum_of_each"], parts["interaction"], strict=True)
    ]
    values = {}
    for name, of_groups in parts.items():
        values[name], values[f"{name}_error"] = mean_of_groups(of_groups, draws)
    counts = shifts.weights.sum(dim=1).long().numpy()
    return _dataset(
        run, values, {"group": list(shifts.names), "count": ("group", counts)},
        ("query", "group"), len(found),
    ).assign_attrs(size=float(size))  # fmt: skip


def _squares(traces: LossTraces, rows: slice, members: Tensor, num_groups: int) -> list[Tensor]:
    """Return `Σ_{i in group} κ₃(phi, l_i, l_i)` of each group of chains, `[R, P]`.

    Args:
        traces: Of train columns and queries.
        rows: Query columns that are observables.
        members: 1 for the members of each group, `[P, N]`.
        num_groups: Groups of chains.
    """
    found = []
    for group in chain_groups(traces, num_groups):
        chains = [(traces.blocks[b], place) for b, positions in group for place in positions]
        draws = sum(block.num_draws for block, _ in chains)
        mean, level = (
            torch.stack([getattr(b, side)[at].double().sum(dim=0) for b, at in chains]).sum(dim=0)
            / draws
            for side in ("train", "query")
        )
        level = level[rows]
        total = torch.zeros(len(level), len(members), dtype=torch.float64)
        for block, at in chains:
            step = max(1, _CHUNK_ELEMENTS // max(1, len(mean)))
            parts = (block.train[at].split(step), block.query[at].split(step))
            for train, query in zip(*parts, strict=True):
                squares = (train.double() - mean).square() @ members.T
                total += (query[:, rows].double() - level).T @ squares
        found.append(total * (draws / ((draws - 1) * (draws - 2))))
    return found


def _place(item: str | int, ids: tuple[str, ...]) -> int:
    if isinstance(item, str):
        if item not in ids:
            raise KeyError(f"there is no train item {item!r}: ids are such as {list(ids[:3])}.")
        return ids.index(item)
    place = operator.index(item)
    if not 0 <= place < len(ids):
        raise KeyError(f"there is no train item at position {place}: there are {len(ids)}.")
    return place


def _dataset(
    run: Run,
    values: Mapping[str, Tensor],
    coords: Mapping[str, Any],
    axes: tuple[str, str],
    num_groups: int,
) -> xr.Dataset:
    import xarray as xr

    scores = run.influence.dataset
    return xr.Dataset(
        {name: (axes, x.numpy()) for name, x in values.items()},
        coords={"query": [str(name) for name in scores["query_id"].values], **coords},
        attrs={
            "nbeta": float(scores.attrs["nbeta"]), "error_quantile": t_quantile(num_groups),
            "trusted": int(bool(run.summary.trusted)),
        },
    )  # fmt: skip
