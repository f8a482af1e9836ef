"""`torch.compile` for functions and models of which a run has several."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from bif.problem.items import shape_of
from bif.problem.positions import takes_positions


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the shapes that come, each in its own right.

    torch counts recompilations by code object, and closures share theirs: after eight shapes, or a
    few runs in one process, it would give up and fall back to eager without a word that the caller
    hears.  So every function compiled here gets a code object of its own for each of its shapes.
    """
    by_shape: dict[Hashable, Callable[..., Any]] = {}

    def call(*arguments: Any, **named: Any) -> Any:
        shape = (torch.is_grad_enabled(), shape_of(arguments), shape_of(named))
        if shape not in by_shape:
            by_shape[shape] = _compiled_alone(function)
        return by_shape[shape](*arguments, **named)

    return call


def _compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    # Marked here and not where it is defined: the mark imports the compiler, which takes seconds.
    torch.compiler.assume_constant_result(takes_positions)
    own = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
    return torch.compile(own, dynamic=False)


def compile_blocks_(model: nn.Module) -> bool:
    """Compile the model's repeated blocks in place; returns whether it has any.

    All share what is compiled.  What lies between them stays eager, and each block's gradients
    come together, so that a step may still be fused into the backward pass.
    """
    blocks = repeated_blocks(model)

    def forward(block: nn.Module, *arguments: Any, **named: Any) -> Any:
        return type(block).forward(block, *arguments, **named)

    shared = compiled(forward)
    for block in blocks:
        block.forward = partial(shared, block)
    return bool(blocks)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost list of modules of one class, such as a transformer's layers."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            if len({type(block) for block in module}) == 1:
                return list(module)
    return []
