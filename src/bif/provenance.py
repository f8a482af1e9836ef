"""Where numbers come from: fingerprints of tensors and functions, versions, the device in words."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bif.items import Items, batch_leaves
from bif.types import Batch, Params

_CODE_DEPTH = 4


def fingerprint(tensors: Params | Batch) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors of a batch or of weights."""
    digest = hashlib.sha256()
    for path, leaf in sorted(batch_leaves(tensors).items()):
        digest.update(f"{path}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        data = leaf.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()


def items_fingerprint(items: Items) -> str:
    """Of the data, ids and token mask of items, a few thousand at a time."""
    digest = hashlib.sha256("\x1f".join(items.ids.tolist()).encode())
    for _, batch in items.chunks(4096):
        digest.update(fingerprint(batch).encode())
    if items.token_mask is not None:
        digest.update(items.token_mask.tobytes())
    return digest.hexdigest()


def code_fingerprint(function: Any) -> str:
    """A function's name and the hash of what it does, as far as that can be read.

    Source, default arguments, values of the closure and arguments of `functools.partial` enter,
    followed into functions of the user's own; global variables do not.
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    text = _described(function, _CODE_DEPTH)
    return f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else name


def model_code(model: nn.Module) -> str:
    """Hash of a model's structure and of the source of its classes, torch's own by name alone."""
    classes = {type(module) for module in model.modules()}
    sources = sorted(
        f"{c.__module__}.{c.__qualname__}"
        + ("" if c.__module__.startswith("torch.") else _source(c))
        for c in classes
    )
    return hashlib.sha256("\n".join([repr(model), *sources]).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("bayesian-influence", "torch", "numpy", "xarray", "zarr", "arviz-stats"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, str]:
    """What the last bits of a run depend on besides its seed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "any",
        "torch": str(torch.__version__),
    }


def _described(value: Any, depth: int) -> str:
    """A function or a value in words that differ where it differs."""
    if isinstance(value, Tensor):
        return fingerprint(value)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest() + str((value.dtype, value.shape))
    if isinstance(value, np.generic):
        return f"{value.dtype}:{value.tobytes().hex()}"
    if isinstance(value, nn.Module):
        return model_code(value) + fingerprint(dict(value.state_dict()))
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        return repr(value)
    if isinstance(value, Mapping):
        return str([(str(k), _described(v, depth - 1)) for k, v in value.items()]) if depth else ""
    if isinstance(value, list | tuple):
        return str([_described(v, depth - 1) for v in value]) if depth else ""
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return str(sorted(_described(v, depth - 1) for v in value)) if depth else ""
    if not callable(value) or not depth:
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return str([_described(part, depth - 1) for part in parts])
    if inspect.ismethod(value):
        owner = value.__self__
        state = owner if isinstance(owner, type | nn.Module) else getattr(owner, "__dict__", {})
        return _described(value.__func__, depth) + _described(state, depth - 1)
    if not inspect.isroutine(value) and not inspect.isclass(value):  # an object with __call__
        state = vars(value) if hasattr(value, "__dict__") else {}
        return _source(type(value)) + _described(state, depth - 1)
    cells = [c.cell_contents for c in getattr(value, "__closure__", None) or () if _is_filled(c)]
    defaults = getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)
    inside = [_described(part, depth - 1) for part in (*cells, *defaults) if part is not None]
    source = _source(value)
    return source + str(inside) if source or inside else ""


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return "" if code is None else _bytecode(code)


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
