"""Rows that hold one text each, from position 0 on: transformers need not look for packed ones.

Where a batch comes without an attention mask, transformers (5.0 to 5.23 at least) asks the device
in every pass whether rows are several texts packed together, so the host waits for all that it has
queued; under `torch.compile` and while a CUDA graph is recorded, where it cannot ask, it attends by
a mask of its own in the place of the causal kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

_ONE_TEXT_A_ROW = [False]
_patched: list[object] = []


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Keep transformers from looking for packed rows inside the block."""
    if not torch.compiler.is_compiling():
        patch_mask_search()
    before = _ONE_TEXT_A_ROW[0]
    _ONE_TEXT_A_ROW[0] = True
    try:
        yield
    finally:
        _ONE_TEXT_A_ROW[0] = before


def patch_mask_search() -> None:
    """Make transformers' search heed `one_text_a_row`; once, before any compilation."""
    # Where transformers was not imported, no model is of it.
    if _patched or "transformers" not in sys.modules:
        return
    try:
        from transformers import masking_utils
    except ImportError:
        return
    module: Any = masking_utils
    search = getattr(module, "find_packed_sequence_indices", None)
    if search is None:  # a version that does not look
        return

    @wraps(search)
    def found(*arguments: Any, **named: Any) -> Any:
        return None if _ONE_TEXT_A_ROW[0] else search(*arguments, **named)

    module.find_packed_sequence_indices = found
    _patched.append(search)
    _let_recordings_pass(module)


def _let_recordings_pass(module: Any) -> None:
    """Allow a mask to be left out while a CUDA graph is recorded."""
    tracing = getattr(module, "is_tracing", None)
    if tracing is None:
        return

    @wraps(tracing)
    def traced(*arguments: Any, **named: Any) -> Any:
        eager = _ONE_TEXT_A_ROW[0] and not torch.compiler.is_compiling()
        return False if eager else tracing(*arguments, **named)

    module.is_tracing = traced
