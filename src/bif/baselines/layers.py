"""The layers of a model whose curvature EK-FAC approximates, and why other layers are left out.

Weights outside of Linear and Conv2d layers have no Kronecker factors. They are named, never
dropped in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from bif.problem.functional import ItemFunction
from bif.problem.literals import require_literal
from bif.types import Batch, ItemLoss

OtherLayers = Literal["refuse", "leave_out", "diagonal"]
"""Treatment of weights without factors: an error, scores without them, or their own curvatures."""


def kronecker_layers(
    model: nn.Module,
    loss: ItemLoss,
    example: Batch,
    names: Collection[str],
    other_layers: OtherLayers = "refuse",
) -> dict[str, list[str]]:
    """Return the names of layers and of their weights, the weight before the bias.

    Weights that do not reach the loss have no gradient: they are left out without a word.

    Args:
        model: A model whose parameters require gradients.
        loss: A loss of (model, batch), which runs once.
        example: A few items.
        names: Parameters that count.
        other_layers: What becomes of weights outside of Linear and Conv2d layers.

    Raises:
        ValueError: Such weights and "refuse", naming each and why; no layer at all.
    """
    require_literal("other_layers", other_layers, OtherLayers)
    calls, reached = _trace_pass(model, loss, example)
    owners = _owners(model)
    found: dict[str, list[str]] = {}
    others: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if name not in names or name not in reached:
            continue
        places = owners[id(parameter)]
        reason = _reason_against(model, places, calls)
        if reason is None:
            found.setdefault(places[0], []).append(name)
        else:
            others[name] = reason
    if others and other_layers == "refuse":
        counts = {n: p.numel() for n, p in model.named_parameters()}
        listing = ", ".join(f"{n} ({why})" for n, why in list(others.items())[:8])
        raise ValueError(
            f"EK-FAC has no factors for {sum(counts[n] for n in others):,} of "
            f"{sum(counts[n] for n in names):,} weights: {listing}"
            f"{', …' if len(others) > 8 else ''}. It knows Linear and Conv2d layers that run once "
            "a pass. Pass other_layers='diagonal' to take each of these weights by "
            "itself, 'leave_out' to score without them, or use ConjugateGradients."
        )
    if not found:
        raise ValueError(
            "EK-FAC found no Linear or Conv2d layer among the weights that count: expected one "
            "at least. Use ConjugateGradients or TRAK."
        )
    return {layer: sorted(weights, key=_bias_last) for layer, weights in found.items()}


def _trace_pass(
    model: nn.Module, loss: ItemLoss, example: Batch
) -> tuple[dict[str, int], set[str]]:
    """Return how often each module ran, and which parameters reached the loss."""
    calls: dict[str, int] = defaultdict(int)

    def count(name: str) -> None:
        calls[name] += 1

    handles = [
        module.register_forward_hook(lambda *_, name=name: count(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.enable_grad():
            value = ItemFunction(model, loss)(example).sum()
    finally:
        for handle in handles:
            handle.remove()
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return calls, {n for n, slope in zip(named, slopes, strict=True) if slope is not None}


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return the modules that hold each parameter, by its id."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        own: dict[str, Tensor | None] = dict(module._parameters)
        for parameter in own.values():
            if parameter is not None:
                places[id(parameter)].append(name)
    return places


def _reason_against(model: nn.Module, places: list[str], calls: dict[str, int]) -> str | None:
    """Return why a parameter of these modules has no factors, or None if it has."""
    module = model.get_submodule(places[0])
    kind = type(module).__name__
    if len(places) > 1:
        return f"shared by {' and '.join(places)}"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return kind
    own = type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward)
    if own or "forward" in module.__dict__:
        return f"{kind} with a forward of its own"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"Conv2d with {module.groups} groups"
        if module.padding_mode != "zeros":
            return f"Conv2d padded by {module.padding_mode!r}"
    if calls[places[0]] != 1:
        return f"{kind} called {calls[places[0]]} times a pass"
    return None


def _bias_last(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
