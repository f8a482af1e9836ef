"""Take gradients of single items at w*, in chunks that fit, and their products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from bif.problem.cuda_graphs import Replayed
from bif.problem.functional import ItemFunction
from bif.problem.items import Items, map_batch, to_device
from bif.problem.problem import Problem
from bif.sampling.posterior import LocalPosterior
from bif.types import Batch, ItemLoss, Params

_CHUNK_BYTES = 2**29
"""Bytes of train items' gradients that are taken at a time."""
_QUERY_BYTES = 2**31
"""Bytes of queries' gradients that are held at a time."""

_MANY_CHUNKS = 16
"""Chunks from which it pays to record the pass of one."""


class NotVmapped(RuntimeError):
    """Raised where a model or a function cannot be vmapped over items."""


def signed_products(
    problem: Problem,
    function: ItemLoss,
    *,
    movable: Sequence[str] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    prepare_train: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return `-prepare(g_phi) · prepare_train(g_i)`, `[Q, N]` float64 on the CPU.

    Neither all queries' gradients nor all train items' are held at once: where the queries'
    exceed 2 GiB they come in blocks, and the train items' gradients are taken once a block.

    Args:
        problem: Model, items, queries.
        function: The observable.
        movable: Globs of the parameters whose gradients count; by default all that the model does
            not freeze.
        prepare: Function of rows `[Q', P]`, such as a solve with a damped curvature.
        prepare_train: Function of rows `[B, P]`.
    """
    blocks = []
    for queries in query_gradient_blocks(problem, function, movable=movable):
        left = queries if prepare is None else prepare(queries)
        parts = []
        for rows in item_gradient_chunks(problem, problem.loss, problem.train, movable=movable):
            right = rows if prepare_train is None else prepare_train(rows)
            parts.append(-(left @ right.to(left.dtype).T).double().cpu())
        blocks.append(torch.cat(parts, dim=1))
    return torch.cat(blocks)


def query_gradient_blocks(
    problem: Problem,
    function: ItemLoss,
    *,
    movable: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> Iterator[Tensor]:
    """Yield gradients of all queries in order, in blocks `[Q', P]` of at most `max_rows`."""
    held: list[Tensor] = []
    for items in problem.query_groups.values():
        for rows in item_gradient_chunks(problem, function, items, movable=movable):
            limit = max_rows or _rows_in(rows[0], _QUERY_BYTES)
            for part in rows.split(limit):
                if held and sum(map(len, held)) + len(part) > limit:
                    yield torch.cat(held)
                    held = []
                held.append(part)
    yield torch.cat(held)


def item_gradients(
    problem: Problem,
    function: ItemLoss,
    items: Items,
    *,
    movable: Sequence[str] | Mapping[str, bool | Tensor] | None = None,
) -> Tensor:
    """Return the gradient of `function` of every item at w*, in the model's order, `[N, P]`."""
    return torch.cat(list(item_gradient_chunks(problem, function, items, movable=movable)))


def item_gradient_chunks(
    problem: Problem,
    function: ItemLoss,
    items: Items,
    *,
    movable: Sequence[str] | Mapping[str, bool | Tensor] | None = None,
    chunk_size: int | None = None,
    one_by_one: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield the rows of `item_gradients`, at most `chunk_size` at a time.

    Rows are divided by `M^(1/2)` of the problem's metric if it has one.  By `vmap`, or one item
    after another where the model or the function cannot be vmapped.

    Args:
        problem: Whose model.
        function: Function of (model, batch), one number an item or a token.
        items: Any items of the problem's structure.
        movable: Globs of the parameters whose gradients count, 0 outside of their slices, or names
            and masks; by default all that the model does not freeze.
        chunk_size: At most 256, and what takes half a GiB, by default.
        one_by_one: Whether to go on where `vmap` is refused.
        compute_dtype: What matrices are multiplied in, such as bfloat16.

    Raises:
        NotVmapped: It is refused, and the items are not to be taken one by one.
    """
    model = problem.evaluation_copy(problem.device)
    posterior = LocalPosterior(problem.center(), 1.0, 1.0, movable or trained(problem))
    params = posterior.center
    of_items = ItemFunction(model, function)
    factors = factors_of_rows(problem, posterior)

    def value(params: Params, item: Batch) -> Tensor:
        alone = map_batch(lambda leaf: leaf.unsqueeze(0), item)
        with torch.autocast(
            problem.device.type, compute_dtype, enabled=compute_dtype is not None,
            cache_enabled=False,  # its casts would be of weights that functorch has wrapped
        ):  # fmt: skip
            return of_items.at(params, alone).sum()

    of_all = vmap(grad(value), in_dims=(None, 0))

    def together(batch: Batch) -> tuple[Tensor, ...]:
        return tuple(of_all(params, batch).values())

    size, stacked = chunk_size or rows_that_fit(params), True
    if len(items) >= _MANY_CHUNKS * size:
        together = Replayed(together, lends=True)
    for _, batch in items.chunks(size):
        batch = to_device(batch, problem.device)
        if stacked:
            try:
                rows = dict(zip(params, together(batch), strict=True))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # as vmap says of a branch on values, .item() and so on
                if not one_by_one:
                    raise NotVmapped from error
                stacked = False
        if not stacked:
            rows = _one_by_one(grad(value), params, batch)
        moving = (rows[n] * factors[n] if n in factors else rows[n] for n in params)
        yield torch.cat([leaf.flatten(1) for leaf in moving], dim=1).detach()


def factors_of_rows(problem: Problem, posterior: LocalPosterior) -> Params:
    """Return what multiplies gradients: `M^(-1/2)` of a metric, 0 where nothing may move."""
    scale = problem.metric_scale(posterior.center)
    if scale is None:
        return posterior.masks
    return {n: s * posterior.masks[n] if n in posterior.masks else s for n, s in scale.items()}


def trained(problem: Problem) -> dict[str, bool]:
    """Return the parameters that the model does not freeze, as what is movable."""
    return dict.fromkeys(problem.trainable, True)


def rows_that_fit(params: Params) -> int:
    """Return how many items' gradients to take at a time: at most 256, and half a GiB."""
    num_bytes = sum(leaf.numel() * leaf.element_size() for leaf in params.values())
    return max(1, min(256, _CHUNK_BYTES // max(1, num_bytes)))


def _one_by_one(
    gradient: Callable[[Params, Batch], Params], params: Params, batch: Batch
) -> Params:
    count = len(next(_leaves(batch)))
    rows = [gradient(params, map_batch(lambda leaf, i=i: leaf[i], batch)) for i in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in params}


def _leaves(batch: Batch) -> Iterator[Tensor]:
    found: list[Tensor] = []
    map_batch(lambda leaf: found.append(leaf) or leaf, batch)
    return iter(found)


def _rows_in(row: Tensor, num_bytes: int) -> int:
    return max(1, num_bytes // max(1, row.numel() * row.element_size()))
