"""Positions of tokens in rows that may be padded on the left."""

from __future__ import annotations

import inspect
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_taking: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def row_positions(model: nn.Module, mask: Tensor | None) -> dict[str, Tensor]:
    """Return `position_ids` `[B, T]` from 0 at each row's first token, if the model takes them.

    Most models count from the first column, padding included.  Empty without a mask, and for a
    model that has no such argument or counts from the mask or the tokens by itself.
    """
    if mask is None or not takes_positions(model):
        return {}
    return {"position_ids": (mask.long().cumsum(dim=-1) - 1).clamp(min=0)}


def takes_positions(model: nn.Module) -> bool:
    """Return whether a model is to be told the positions; a constant to `torch.compile`."""
    if model not in _taking:
        base = getattr(model, "get_base_model", lambda: model)()
        _taking[model] = "position_ids" in inspect.signature(
            base.forward
        ).parameters and not _counts_itself(base)
    return _taking[model]


def _counts_itself(model: nn.Module) -> bool:
    """Return whether a model counts on from the padding token, as RoBERTa does."""
    return any(
        name.endswith("position_embeddings")
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
        for name, module in model.named_modules()
    )
