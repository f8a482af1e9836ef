"""The gradient product: the BIF's limit at large gamma, and the control for any claim there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from bif.functional import ItemFunction
from bif.items import Items, map_batch
from bif.posterior import LocalPosterior
from bif.problem import Problem
from bif.types import Batch, ItemLoss, Params


def gradient_product(
    problem: Problem, *, observable: str | None = None, movable: Sequence[str] = ("*",)
) -> Tensor:
    """`-g_i · g_phi` for all queries and train items.

    The limit of `gamma · BIF` as gamma → ∞ (`docs/scale-and-sign.md`), so signed like the BIF.

    Args:
        problem: Model, items, queries.
        observable: Of the problem's observables; the first by default.
        movable: Globs of the parameters whose gradients count.

    Returns:
        `[Q, N]` on the CPU.
    """
    function = named_observable(problem, observable)
    groups = problem.query_groups.values()
    queries = torch.cat([item_gradients(problem, function, g, movable=movable) for g in groups])
    parts = [
        -(queries @ rows.T)
        for rows in item_gradient_chunks(problem, problem.loss, problem.train, movable=movable)
    ]
    return torch.cat(parts, dim=1).cpu()


def item_gradients(
    problem: Problem, function: ItemLoss, items: Items, *, movable: Sequence[str] = ("*",)
) -> Tensor:
    """Gradient of `function` of every item at w*, flattened in the model's order, `[N, P]`."""
    return torch.cat(list(item_gradient_chunks(problem, function, items, movable=movable)))


def item_gradient_chunks(
    problem: Problem,
    function: ItemLoss,
    items: Items,
    *,
    movable: Sequence[str] = ("*",),
    chunk_size: int = 256,
) -> Iterator[Tensor]:
    """The rows of `item_gradients`, at most `chunk_size` at a time."""
    model = problem.evaluation_copy(problem.device)
    params = LocalPosterior(problem.center(), 1.0, 1.0, movable).center
    of_items = ItemFunction(model, function)

    def value(params: Params, item: Batch) -> Tensor:
        alone = map_batch(lambda leaf: leaf.unsqueeze(0), item)
        return of_items.at(params, alone).sum()

    gradients = vmap(grad(value), in_dims=(None, 0))
    for _, batch in items.chunks(chunk_size):
        batch = map_batch(lambda leaf: leaf.to(problem.device), batch)
        rows = gradients(params, batch)
        yield torch.cat([rows[name].flatten(1) for name in params], dim=1).detach()


def named_observable(problem: Problem, name: str | None) -> ItemLoss:
    """The function of one of the problem's observables.

    Raises:
        KeyError: There is none of that name.
    """
    functions = {observable.name: observable.function for observable in problem.observables}
    if name is None:
        return next(iter(functions.values()))
    if name not in functions:
        raise KeyError(f"no observable {name!r}; there are {list(functions)}.")
    return functions[name]
