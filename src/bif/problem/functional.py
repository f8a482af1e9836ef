"""A user's function of (model, batch) as a function of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call

from bif.problem.losses import at_least_float32, per_item
from bif.types import Batch, ItemLoss, Params

_OF_TORCH = (".*batching rule for", "RNN module weights are not part of single contiguous chunk")
"""Beginnings of torch's warnings that a stack of chains is slow, about which a user can do nothing.

Of attention on a CPU it is wrong: the loop over chains is faster than attention written out.
"""


class ItemFunction(nn.Module):
    """`function(model, batch)` with weights that can be swapped.

    The function is handed the real module, attributes and all, with the weights of the moment in
    place; token values are summed to the item's.

    Args:
        model: The model, in the mode in which it is to be evaluated.
        function: `function(model, batch) -> [B]` or `[B, T]`.
    """

    def __init__(self, model: nn.Module, function: ItemLoss) -> None:
        super().__init__()
        for message in _OF_TORCH:
            warnings.filterwarnings("ignore", message=message)
        self.model = model
        # In a closure, so that a function that is itself a module is not registered as a part.
        self.raw: Callable[[Batch], Tensor] = lambda batch: function(model, batch)
        # To look for tied weights at every call takes a twentieth of a small model's gradient.
        self._has_ties = _has_ties(model)

    def forward(self, batch: Batch) -> Tensor:
        """Return values `[B]` at the model's own weights, float32 or wider."""
        return at_least_float32(per_item(self.raw(batch)))

    def at(self, params: Params, batch: Batch) -> Tensor:
        """Return values `[B]` at `params`, leaves `[*shape]`; other weights are the model's own."""
        named = {f"model.{name}": leaf for name, leaf in params.items()}
        return functional_call(self, named, (batch,), tie_weights=self._has_ties)


def _has_ties(model: nn.Module) -> bool:
    """Return whether a weight or buffer of a model has two names."""
    kinds = model.named_parameters, model.named_buffers
    found = [id(x) for named in kinds for _, x in named(remove_duplicate=False)]
    return len(set(found)) < len(found)
