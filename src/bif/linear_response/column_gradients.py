"""Gradients of query or train columns at w*, of items or of their tokens, any range of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp

from bif.curvature.passes import map_rows
from bif.problem.columns import mask_of
from bif.problem.functional import ItemFunction
from bif.problem.items import Items, to_device
from bif.problem.problem import Observable, Problem
from bif.sampling.item_gradients import factors_of_rows, item_gradient_chunks, rows_that_fit
from bif.sampling.observe_tokens import ByToken
from bif.sampling.posterior import LocalPosterior
from bif.types import ItemLoss

_PART = 2**14
"""Weights of a row whose products are summed at a time."""


def query_gradients(
    problem: Problem, observable: Observable, columns: range, posterior: LocalPosterior
) -> Tensor:
    """Return the gradients of an observable of some query columns, rows `[K, P]`.

    Args:
        problem: Whose queries.
        observable: phi.
        columns: Positions among all queries, or their tokens.
        posterior: With the weights that move, in the order of a row, and masks.
    """
    groups, by_token = problem.query_groups.values(), problem.query_by_token
    shift = problem.query_shift if by_token else None
    return column_gradients(problem, observable.function, groups, columns, posterior, shift)


def train_gradients(problem: Problem, columns: range, posterior: LocalPosterior) -> Tensor:
    """Return the gradients of the losses of some scored columns, rows `[K, P]`.

    Args:
        problem: Whose train items and candidates.
        columns: Positions among all of them, or their tokens.
        posterior: With the weights that move, in the order of a row, and masks.
    """
    groups, by_token = problem.scored_groups.values(), problem.train_by_token
    shift = problem.train_shift if by_token else None
    return column_gradients(problem, problem.loss, groups, columns, posterior, shift)


def products_with_gradients(
    problem: Problem, rows: Sequence[Tensor], posterior: LocalPosterior, *, chunk_size: int,
    compute_dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Return the products of several rows `[K, P]` with the gradients of scored items, `[K, N]`.

    Args:
        problem: Whose train items and candidates.
        rows: On the problem's device.
        posterior: With the weights that move, in the order of a row, and masks.
        chunk_size: Items of a pass, at most.
        compute_dtype: What matrices are multiplied in, such as bfloat16.

    Raises:
        NotVmapped: Gradients of items come one by one only, which would take long.
    """
    movable = {name: posterior.masks.get(name, True) for name in posterior.center}
    size = min(chunk_size, rows_that_fit(posterior.center))
    parts: list[list[Tensor]] = [[] for _ in rows]
    for items in problem.scored_groups.values():
        for gradients in item_gradient_chunks(
            problem, problem.loss, items, movable=movable, chunk_size=size, one_by_one=False,
            compute_dtype=compute_dtype,
        ):  # fmt: skip
            for some, part in zip(rows, parts, strict=True):
                part.append(_inner_products(some, gradients))
    return [torch.cat(part, dim=1) for part in parts]


def _inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Return `a bᵀ` of rows `[K, P]` and `[B, P]`, float32 or wider.

    By parts of a row, whose products are summed in float32: rows may be of bfloat16, and a product
    of a few long rows leaves most of a GPU idle.
    """
    whole = a.shape[1] // _PART * _PART
    of_parts = torch.bmm(
        a[:, :whole].unflatten(1, (-1, _PART)).transpose(0, 1),
        b[:, :whole].to(a.dtype).unflatten(1, (-1, _PART)).permute(1, 2, 0),
    )
    wide = torch.promote_types(a.dtype, torch.float32)
    rest = a[:, whole:].to(wide) @ b[:, whole:].to(wide).T
    return of_parts.sum(dim=0, dtype=wide) + rest


def column_gradients(
    problem: Problem,
    function: ItemLoss,
    groups: Iterable[Items],
    columns: range,
    posterior: LocalPosterior,
    shift: int | None,
) -> Tensor:
    """Return the gradients of a function of some columns of groups, rows `[K, P]`.

    Args:
        problem: Whose model.
        function: Function of (model, batch), one number an item or a token.
        groups: The groups of items, in the order of their columns.
        columns: Positions among the columns of all groups.
        posterior: With the weights that move, in the order of a row, and masks.
        shift: Tokens at the start of a text without a value; None where columns are items.
    """
    movable = {name: posterior.masks.get(name, True) for name in posterior.center}
    parts, first = [], 0
    for items in groups:
        count = len(items) if shift is None else int(mask_of(items).sum())
        inside = range(max(columns.start - first, 0), min(columns.stop - first, count))
        if len(inside) and shift is not None:
            parts += _of_tokens(problem, function, items, inside, posterior, shift)
        elif len(inside):
            some = Items(items.take(torch.arange(inside.start, inside.stop)))
            parts += item_gradient_chunks(problem, function, some, movable=movable)
        first += count
    return torch.cat(parts)


def _of_tokens(
    problem: Problem,
    function: ItemLoss,
    items: Items,
    columns: range,
    posterior: LocalPosterior,
    shift: int,
) -> Iterator[Tensor]:
    """Yield the gradients of some tokens of a group, an item at a time."""
    row, token = np.nonzero(mask_of(items))
    model = problem.evaluation_copy(problem.device)
    of_tokens = ItemFunction(model, ByToken(function))
    factors = factors_of_rows(problem, posterior)
    wanted = np.arange(columns.start, columns.stop)
    for item in np.unique(row[wanted]):
        batch = to_device(items.take(torch.tensor([item])), problem.device)
        places = token[wanted][row[wanted] == item] - shift
        values, pull = vjp(
            lambda params, batch=batch: of_tokens.at(params, batch), posterior.center
        )[:2]
        unit = torch.zeros(len(places), len(values), dtype=values.dtype, device=values.device)
        unit[torch.arange(len(places)), torch.as_tensor(places, device=values.device)] = 1
        leaves = map_rows(lambda u, pull=pull: pull(u)[0], unit)
        moving = (leaves[n] * factors[n] if n in factors else leaves[n] for n in posterior.center)
        yield torch.cat([leaf.flatten(1) for leaf in moving], dim=1).detach()
