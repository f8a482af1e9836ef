"""The identity of a run: what must be the same for two runs to be one."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from bif import store
from bif.items import Items
from bif.problem import Problem
from bif.settings import Settings


def identity(problem: Problem, settings: Settings) -> dict[str, Any]:
    """What makes two runs the same run: requested settings, weights, data and functions."""
    groups = {f"queries.{n}": _items_fingerprint(i) for n, i in problem.query_groups.items()}
    weights = problem.train_weights
    return {
        "identity": {
            "settings": settings.as_dict(),
            "model": store.fingerprint(dict(problem.model.state_dict())),
            "train": _items_fingerprint(problem.train),
            "train_weights": None if weights is None else store.fingerprint(weights),
            **groups,
            "loss": _code(problem.loss),
            **{f"observable.{o.name}": _code(o.function) for o in problem.observables},
        }
    }


def _items_fingerprint(items: Items) -> str:
    parts = [store.fingerprint(batch) for _, batch in items.chunks(4096)]
    return (
        parts[0]
        if len(parts) == 1
        else store.fingerprint(
            torch.frombuffer(bytearray("".join(parts).encode()), dtype=torch.uint8)
        )
    )


def _code(function: Any) -> str:
    """A function's name and the hash of its source, where it has one."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return name
    digest = store.fingerprint(torch.frombuffer(bytearray(source.encode()), dtype=torch.uint8))
    return f"{name}@{digest[:16]}"
