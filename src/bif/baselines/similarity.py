"""Rivals without gradients: similarity of representations, and random scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bif.problem.functional import ItemFunction
from bif.problem.items import Items, to_device
from bif.problem.literals import require_literal
from bif.problem.problem import Problem, find_observable

Kind = Literal["cosine", "dot"]
Labels = Literal["ignore", "match"]


def representation_similarity(
    problem: Problem,
    *,
    observable: str | None = None,
    kind: Kind = "cosine",
    layer: str | None = None,
    labels: Labels = "ignore",
) -> Tensor:
    """Return the similarity of hidden representations, signed for the observable.

    An item like the query is called helpful: `-similarity` for an observable that should be low,
    `+similarity` for one that should be high.

    Args:
        problem: Model, items, queries.
        observable: Name of one of the problem's observables; decides the sign only.
        kind: "cosine", or "dot" for the inner product.
        layer: Name of the module whose *input* is the representation; by default the Linear layer
            that runs last, so the last hidden layer.  Inputs `[B, T, d]` are averaged over T,
            others flattened.
        labels: "match" turns the sign where the classes differ: such an item is called harmful.
            Batches must then be `(inputs, classes)`.

    Returns:
        `[Q, N]` on the CPU, in float64.

    Raises:
        KeyError: No such observable.
        ValueError: An observable of which neither lower nor higher is better; no such layer, no
            Linear layer; another `kind` or `labels`; no classes to match.
    """
    require_literal("kind", kind, Kind)
    require_literal("labels", labels, Labels)
    sign = _sign(problem, observable)
    groups = list(problem.query_groups.values())
    train, *of_groups = representations(problem, [problem.train, *groups], layer=layer)
    queries = torch.cat(of_groups)
    if kind == "cosine":
        train, queries = (nn.functional.normalize(rows, dim=1) for rows in (train, queries))
    similarity = queries @ train.T
    if labels == "match":
        same = torch.cat([_classes(g) for g in groups])[:, None] == _classes(problem.train)
        similarity = similarity * (2.0 * same.to(similarity) - 1)
    return (sign * similarity).cpu()


def representations(
    problem: Problem, groups: Sequence[Items], *, layer: str | None = None
) -> list[Tensor]:
    """Return hidden representations of groups of items, `[N, d]` float64 each.

    Args:
        problem: For model and loss, whose forward pass it is.
        groups: Items of the problem's structure.
        layer: As for `representation_similarity`.

    Raises:
        ValueError: No such layer, no Linear layer, or one that does not run in the loss.
    """
    model = problem.evaluation_copy(problem.device)
    module = _last_linear(problem, model) if layer is None else _submodule(model, layer)
    return [_inputs_of(problem, model, module, items) for items in groups]


def random_scores(problem: Problem, *, seed: int = 0, observable: str | None = None) -> Tensor:
    """Return independent N(0, 1): the scores of a method that knows nothing.

    Args:
        problem: For the numbers of queries and train items.
        seed: Seed of the numbers.
        observable: The observable, which is checked and otherwise ignored.

    Returns:
        `[Q, N]` on the CPU, in float64.

    Raises:
        KeyError: No such observable.
    """
    find_observable(problem, observable)
    source = torch.Generator().manual_seed(seed)
    shape = (problem.num_queries, problem.num_train)
    return torch.randn(shape, generator=source, dtype=torch.float64)


def _sign(problem: Problem, name: str | None) -> float:
    observable = find_observable(problem, name)
    if observable.better is None:
        raise ValueError(
            f"observable {observable.name!r} calls neither lower nor higher better, so a "
            "similarity has no sign for it: make it Observable(name, function, 'lower' or "
            "'higher')."
        )
    return -1.0 if observable.better == "lower" else 1.0


def _submodule(model: nn.Module, name: str) -> nn.Module:
    named = dict(model.named_modules())
    if name not in named:
        raise ValueError(
            f"no layer {name!r}; the model has {[n for n in named if n]}: name one of these."
        )
    return named[name]


def _last_linear(problem: Problem, model: nn.Module) -> nn.Module:
    """Return the Linear layer that runs last."""
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        _run(problem, model, problem.train.first(1))
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise ValueError(
            "the model runs no Linear layer: name the module whose input is the representation, "
            "layer='…'."
        )
    return ran[-1]


def _inputs_of(problem: Problem, model: nn.Module, module: nn.Module, items: Items) -> Tensor:
    """Return the inputs of `module`, a row an item, `[N, d]` float64."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = []
    try:
        for _, batch in items.chunks(256):
            seen.clear()
            _run(problem, model, batch)
            if not seen:
                raise ValueError("the chosen layer does not run in the loss: choose another.")
            last = seen[-1].double()
            rows.append(last.mean(dim=1) if last.dim() == 3 else last.flatten(1))
    finally:
        handle.remove()
    return torch.cat(rows)


def _run(problem: Problem, model: nn.Module, batch: Any) -> None:
    with torch.no_grad():
        ItemFunction(model, problem.loss)(to_device(batch, problem.device))


def _classes(items: Items) -> Tensor:
    classes = []
    for _, batch in items.chunks(256):
        pair = isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[1], Tensor)
        if not pair or batch[1].dim() != 1 or batch[1].is_floating_point():
            raise ValueError("labels='match' needs batches (inputs, classes [B] of integers).")
        classes.append(batch[1])
    return torch.cat(classes)
