"""Save a sampler's state as named tensors, and restore it to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def state_tensors(state: object) -> dict[str, Tensor]:
    """Return a copy of every leaf, tensor and whole number of a sampler's state.

    On a device that lacks the room for copies they are made on the host.

    Args:
        state: A dataclass whose fields are `Params`, tensors or whole numbers.
    """
    found: dict[str, Tensor] = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            found |= {f"{field.name}/{name}": leaf.detach() for name, leaf in value.items()}
        elif isinstance(value, Tensor):
            found[field.name] = value.detach()
        elif isinstance(value, int):
            found[field.name] = torch.tensor(value, dtype=torch.int64)
        else:
            raise TypeError(
                f"{type(state).__name__}.{field.name} is {type(value).__name__}: a sampler's state "
                "holds parameters, tensors and whole numbers, so that it can be saved."
            )
    crowded = _crowded(found)
    return {
        name: (leaf.cpu() if crowded and leaf.is_cuda else leaf).clone(
            memory_format=torch.contiguous_format
        )
        for name, leaf in found.items()
    }


def on_host(tensors: Mapping[str, Tensor], ready: torch.cuda.Event | None) -> dict[str, Tensor]:
    """Copy to the host, beside the work that the device has been given since `ready`."""
    devices = {x.device for x in tensors.values() if x.is_cuda}
    if ready is None or not devices:
        return {name: x.cpu() for name, x in tensors.items()}
    aside = torch.cuda.Stream(devices.pop())
    with torch.cuda.stream(aside):
        aside.wait_event(ready)
        return {name: x.cpu() for name, x in tensors.items()}


def _crowded(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the device has less than twice the room that copies take."""
    on_device = [x for x in tensors.values() if x.is_cuda]
    if not on_device:
        return False
    size = sum(x.numel() * x.element_size() for x in on_device)
    return 2 * size > torch.cuda.mem_get_info(on_device[0].device)[0]


def restored(state: State, saved: Mapping[str, Tensor]) -> State:
    """Return `state` with the saved values, written into its own buffers.

    Args:
        state: A fresh state of the same sampler and model.
        saved: Tensors that `state_tensors` returned.

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


def _found(saved: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in saved:
        raise ValueError(
            f"the saved state lacks {name!r}: it is of another sampler or model. Pass "
            "the run's own."
        )
    return saved[name]


def _fill_(leaf: Tensor, saved: Mapping[str, Tensor], name: str) -> None:
    value = _found(saved, name)
    if value.shape != leaf.shape or value.dtype != leaf.dtype:
        raise ValueError(
            f"the saved state's {name!r} is {value.dtype} {tuple(value.shape)}, expected "
            f"{leaf.dtype} {tuple(leaf.shape)}: it is of another sampler or model."
        )
    leaf.copy_(value)
