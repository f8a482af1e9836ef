"""Gradients of query columns at w*, of items or of their tokens, any range of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp

from bif.curvature.products import map_rows
from bif.problem.columns import mask_of
from bif.problem.functional import ItemFunction
from bif.problem.items import Items, to_device
from bif.problem.problem import Observable, Problem
from bif.sampling.item_gradients import factors_of_rows, item_gradient_chunks
from bif.sampling.observe_tokens import ByToken
from bif.sampling.posterior import LocalPosterior


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
    movable = {name: posterior.masks.get(name, True) for name in posterior.center}
    parts, first = [], 0
    for items in problem.query_groups.values():
        by_token = problem.query_by_token
        count = int(mask_of(items).sum()) if by_token else len(items)
        inside = range(max(columns.start - first, 0), min(columns.stop - first, count))
        if len(inside) and by_token:
            parts += _of_tokens(problem, observable, items, inside, posterior)
        elif len(inside):
            some = Items(items.take(torch.arange(inside.start, inside.stop)))
            parts += item_gradient_chunks(problem, observable.function, some, movable=movable)
        first += count
    return torch.cat(parts)


def _of_tokens(
    problem: Problem,
    observable: Observable,
    items: Items,
    columns: range,
    posterior: LocalPosterior,
) -> Iterator[Tensor]:
    """Yield the gradients of some tokens of a group, an item at a time."""
    row, token = np.nonzero(mask_of(items))
    model = problem.evaluation_copy(problem.device)
    of_tokens = ItemFunction(model, ByToken(observable.function))
    factors = factors_of_rows(problem, posterior)
    wanted = np.arange(columns.start, columns.stop)
    for item in np.unique(row[wanted]):
        batch = to_device(items.take(torch.tensor([item])), problem.device)
        places = token[wanted][row[wanted] == item] - problem.query_shift
        values, pull = vjp(
            lambda params, batch=batch: of_tokens.at(params, batch), posterior.center
        )[:2]
        unit = torch.zeros(len(places), len(values), dtype=values.dtype, device=values.device)
        unit[torch.arange(len(places)), torch.as_tensor(places, device=values.device)] = 1
        leaves = map_rows(lambda u, pull=pull: pull(u)[0], unit)
        moving = (leaves[n] * factors[n] if n in factors else leaves[n] for n in posterior.center)
        yield torch.cat([leaf.flatten(1) for leaf in moving], dim=1).detach()
