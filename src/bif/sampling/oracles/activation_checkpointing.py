"""What a live model keeps between its forward and backward pass: as little as it was asked to."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def keep_less_(model: nn.Module) -> None:
    """Honour `model.gradient_checkpointing_enable()` of transformers in evaluation mode too.

    transformers recomputes activations only in training mode, which would switch dropout on.  A
    model without such layers, or whose owner has not asked for it, is left as it is.
    """
    for module in model.modules():
        asked = getattr(module, "gradient_checkpointing", False)
        if asked and _is_layer(module):
            module.forward = partial(_recomputed, module)
        config: Any = getattr(module, "config", None)
        if asked and getattr(config, "use_cache", False):
            # A layer that runs twice would put its keys and values into the cache twice.
            config.use_cache = False


def _is_layer(module: nn.Module) -> bool:
    return any(c.__name__ == "GradientCheckpointingLayer" for c in type(module).__mro__)


def _recomputed(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    forward = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    # Not reentrant: each gradient must come in one piece.
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
