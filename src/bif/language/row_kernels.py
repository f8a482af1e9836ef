"""Rows of logits on a GPU, read and written once: losses, and what the backward pass multiplies.

In operations of torch the same takes a float32 copy of the logits and eight passes over it, which
for small models is most of a draw.  Each row has one program with a fixed block, so results do not
depend on how rows are grouped and are the same bits in every run.
"""

# ruff: noqa: ANN001, ANN202 (triton has types of its own)
from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

_BLOCK, _WARPS = 4096, 8
"""Logits that a program reads at a time, and its warps."""


def row_losses(logits: Tensor, targets: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Return losses and log-sum-exps of rows of logits, float32 `[M]` each.

    `logsumexp(scale · logits) - scale · logits[target]`, and its first term.

    Args:
        logits: `[M, V]`, contiguous, float32 or narrower.
        targets: `[M]`; the loss is 0 where they are negative.
        scale: Factor on the logits.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    normalisers = torch.empty_like(losses)
    _launch(_losses_of_row, logits, targets, losses, normalisers, scale)
    return losses, normalisers


def logit_gradients_(
    logits: Tensor, targets: Tensor, normalisers: Tensor, factors: Tensor, *, scale: float
) -> Tensor:
    """Write `factor · scale · (softmax - [target])` over the logits.

    Args:
        logits: As for `row_losses`.
        targets: As for `row_losses`; the row is 0 where they are negative.
        normalisers: The log-sum-exps that `row_losses` returned, `[M]`.
        factors: Gradients with respect to the losses, `[M]`.
        scale: Factor on the logits.
    """
    _launch(_gradients_of_row, logits, targets, normalisers, factors.float().contiguous(), scale)
    return logits


def _launch(kernel: Any, logits: Tensor, *arguments: Any) -> None:
    assert logits.is_contiguous()
    if len(logits):
        rows, width = logits.shape
        kernel[(rows,)](logits, *arguments, WIDTH=width, BLOCK=_BLOCK, num_warps=_WARPS)


@triton.jit
def _losses_of_row(
    logits,
    targets,
    losses,
    normalisers,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * WIDTH
    top = float("-inf")
    total = 0.0
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        x = tl.load(start + place, mask=place < WIDTH, other=float("-inf")).to(tl.float32) * scale
        high = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - high) + tl.sum(tl.exp(x - high), axis=0)
        top = high
    normaliser = top + tl.log(total)
    target = tl.load(targets + row)
    x = tl.load(start + tl.maximum(target, 0)).to(tl.float32) * scale
    tl.store(losses + row, tl.where(target >= 0, normaliser - x, 0.0))
    tl.store(normalisers + row, normaliser)


@triton.jit
def _gradients_of_row(
    logits,
    targets,
    normalisers,
    factors,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * WIDTH
    target = tl.load(targets + row)
    factor = tl.where(target >= 0, tl.load(factors + row) * scale, 0.0)
    normaliser = tl.load(normalisers + row)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        here = place < WIDTH
        x = tl.load(start + place, mask=here, other=0.0).to(tl.float32) * scale
        slope = (tl.exp(x - normaliser) - tl.where(place == target, 1.0, 0.0)) * factor
        tl.store(start + place, slope.to(logits.dtype.element_ty), mask=here)
