"""Precision of matrix products, set for a piece of work and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
"""Of a computation; weights stay as they are."""
EXACTNESS: tuple[Precision, ...] = ("bfloat16", "tf32", "float32")
"""The least exact first."""

_COARSER: dict[Precision, float] = {"bfloat16": torch.finfo(torch.bfloat16).eps, "tf32": 2.0**-10}
"""Relative distance of numbers in precisions below float32."""

_LARGE = 10**8
"""Weights from which a few float32 passes over all items take as long as a solve."""


def rounding(dtype: torch.dtype, *precisions: Precision) -> float:
    """Relative distance of numbers, of a dtype whose products are in the coarsest of these.

    Double precision is computed as it is.
    """
    coarser = [_COARSER.get(p, 0.0) for p in precisions if dtype == torch.float32]
    return max([torch.finfo(dtype).eps, *coarser])


def precision_at_center(asked: Precision, num_weights: int) -> Precision:
    """Return the precision of a look at all items at w*: float32 unless the model is large.

    Args:
        asked: Of the losses that are recorded.
        num_weights: How many weights move.
    """
    return asked if num_weights >= _LARGE else "float32"


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """TF32 products where asked for, exact ones else; the caller's setting is put back."""
    # PyTorch has two sets of switches; the older one refuses to be read where the caller has used
    # the newer.  torch.compile reads the older, so that is the one to set here.
    b: Any = torch.backends
    newer = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul)
    before = [switch.fp32_precision for switch in newer]
    try:
        older = torch.get_float32_matmul_precision(), b.cudnn.allow_tf32
    except RuntimeError:
        older = None
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    b.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            b.cudnn.allow_tf32 = older[1]
        for switch, value in zip(newer, before, strict=True):
            switch.fp32_precision = value
