"""`torch.compile` for functions of which a run has several."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the shapes that come, each in its own right.

    torch counts recompilations by code object, and closures share theirs: after a few runs in one
    process it would give up and fall back to eager without a word that the caller hears.  So every
    function compiled here gets a code object of its own.
    """

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    own = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
    return torch.compile(own, dynamic=False)
