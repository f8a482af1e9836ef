"""A sampler's state as named tensors, and back into a state of the same kind, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def state_tensors(state: object) -> dict[str, Tensor]:
    """Every leaf, tensor and whole number of a sampler's state, copied to the host.

    Args:
        state: A dataclass whose fields are `Params`, tensors or whole numbers.
    """
    found: dict[str, Tensor] = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            found |= {f"{field.name}/{name}": _copied(leaf) for name, leaf in value.items()}
        elif isinstance(value, Tensor):
            found[field.name] = _copied(value)
        elif isinstance(value, int):
            found[field.name] = torch.tensor(value, dtype=torch.int64)
        else:
            raise TypeError(
                f"{type(state).__name__}.{field.name} is {type(value).__name__}: a sampler's state "
                "holds parameters, tensors and whole numbers, so that it can be saved."
            )
    return found


def restored(state: State, saved: Mapping[str, Tensor]) -> State:
    """`state` with the saved values, written into its own buffers.

    Args:
        state: A fresh state of the same sampler and model.
        saved: What `state_tensors` returned.

    Raises:
        ValueError: A leaf is missing or of another shape.
    """
    numbers = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            for name, leaf in value.items():
                _fill_(leaf, saved, f"{field.name}/{name}")
        elif isinstance(value, Tensor):
            _fill_(value, saved, field.name)
        else:
            numbers[field.name] = int(_found(saved, field.name))
    return replace(state, **numbers) if numbers else state  # type: ignore[type-var]


def _copied(leaf: Tensor) -> Tensor:
    return leaf.detach().cpu().clone(memory_format=torch.contiguous_format)


def _found(saved: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in saved:
        raise ValueError(f"the saved state lacks {name!r}: it is of another sampler or model.")
    return saved[name]


def _fill_(leaf: Tensor, saved: Mapping[str, Tensor], name: str) -> None:
    value = _found(saved, name)
    if value.shape != leaf.shape or value.dtype != leaf.dtype:
        raise ValueError(
            f"the saved state's {name!r} is {value.dtype} {tuple(value.shape)}, expected "
            f"{leaf.dtype} {tuple(leaf.shape)}: it is of another sampler or model."
        )
    leaf.copy_(value)
