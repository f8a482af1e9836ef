"""A user's model before it is sampled: its copy, its float32 weights, and which of them train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = (torch.float16, torch.bfloat16)
"""Types too coarse to be sampled: a step is smaller than the distance between numbers."""
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def copy_module(model: nn.Module) -> nn.Module:
    """Return a deep copy, in which tensors with a graph are copied as values.

    Hooks of `weight_norm` and `spectral_norm`, kept activations and auxiliary losses are such
    tensors, which PyTorch refuses to copy.

    Raises:
        TypeError: Something in it cannot be copied, by name.
    """
    try:
        with _GraphsAsValues():
            return deepcopy(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an object's own __deepcopy__ or pickling says
        held = _uncopied(model)
        raise TypeError(
            f"the model cannot be copied, and the run works on a copy so that yours stays as it "
            f"is: {held or type(model).__name__} fails with {type(error).__name__}: {error}. "
            "Remove that attribute before the model is handed over, or give its class a "
            "__deepcopy__."
        ) from error


class _GraphsAsValues(TorchFunctionMode):
    """A context in which tensors with a graph are copied as their values."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _uncopied(model: nn.Module) -> str:
    """Return the first attribute that cannot be copied, "" if none is found."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with _GraphsAsValues():
                    deepcopy(value)
            except Exception:
                where = f"{path}.{name}" if path else name
                return f"the attribute {where!r} ({type(value).__name__})"
    return ""


def widen(leaf: Tensor) -> Tensor:
    """Return the leaf in float32 if it is float16 or bfloat16, else itself."""
    return leaf.float() if leaf.dtype in NARROW else leaf


def narrow_types(model: nn.Module) -> tuple[str, ...]:
    """Return names of the types too coarse to be sampled among the model's weights and buffers."""
    found = {leaf.dtype for leaf in (*model.parameters(), *model.buffers())} & {*NARROW}
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found))


def widen_(model: nn.Module, *, least_axes: int = 99) -> nn.Module:
    """Widen weights and buffers to float32 where they are narrower; ties stay.

    Args:
        model: The model, changed in place.
        least_axes: Tensors of so many axes stay as they are: 2 leaves matrices narrow.
    """
    return model._apply(lambda leaf: widen(leaf) if leaf.dim() < least_axes else leaf)


def densify_(model: nn.Module) -> nn.Module:
    """Give embeddings dense gradients, which samplers add to and stack."""
    for module in model.modules():
        if isinstance(module, _EMBEDDINGS):
            module.sparse = False
    return model


def trainable(model: nn.Module) -> tuple[str, ...]:
    """Return names of the parameters that require gradients.

    Where none does, as in a model loaded for inference: the adapter's of a model of peft, and of
    any other all that are floating point.
    """
    parameters = dict(model.named_parameters())
    found = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not found:
        found = [name for name, parameter in parameters.items() if parameter.is_floating_point()]
        prefix = getattr(getattr(model, "base_model", None), "prefix", "")
        if hasattr(model, "peft_config") and prefix:
            found = [name for name in found if prefix in name] or found
    return tuple(found)


def padding_rows(model: nn.Module) -> dict[str, int]:
    """Return the row of each embedding's weight whose gradient is zero by construction.

    That of a weight which something else uses too, such as an output layer, is not.
    """
    uses: dict[int, int] = {}
    rows: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                uses[id(parameter)] = uses.get(id(parameter), 0) + 1
        if isinstance(module, _EMBEDDINGS) and module.padding_idx is not None:
            rows[id(module.weight)] = module.padding_idx
    return {
        name: rows[id(parameter)]
        for name, parameter in model.named_parameters()
        if id(parameter) in rows and uses[id(parameter)] == 1
    }


def load_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write another checkpoint's weights into a model, in its own types and places.

    Args:
        model: Changed in place.
        weights: Every parameter, and the buffers that differ, by name.

    Raises:
        ValueError: A parameter is missing, a name is not the model's, or a shape is another.
    """
    own = require_weights(model, weights)
    with torch.no_grad():
        for name, leaf in weights.items():
            own[name].copy_(leaf)


def require_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's own parameters and buffers by name, if the weights are of such a model.

    Raises:
        ValueError: As `load_weights_`.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    missing = [name for name, _ in model.named_parameters() if name not in weights]
    unknown = [name for name in weights if name not in own]
    shapes = [
        f"{name} {list(leaf.shape)} instead of {list(own[name].shape)}"
        for name, leaf in weights.items()
        if name in own and leaf.shape != own[name].shape
    ]
    wrong = {"lacks": missing, "has unknown": unknown, "has other shapes:": shapes}
    for what, names in wrong.items():
        if names:
            raise ValueError(
                f"the checkpoint {what} {', '.join(names[:5])} ({len(names)} in all): expected the "
                f"weights of the same {type(model).__name__}."
            )
    return own
