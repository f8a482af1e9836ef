"""Random projections of gradients that keep their inner products, block by block."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bif.problem.literals import require_literal

ProjectionKind = Literal["rademacher", "gaussian"]

_BLOCK_WEIGHTS = 8192
"""Weights of a block of R."""
_MAX_KEPT_BYTES = 2**31
"""Bytes of R up to which its blocks are kept."""


class Projection:
    """`rows @ R`, R `[P, k]` of independent entries with mean 0 and variance `1/k`.

    `E[(R x)·(R y)] = x·y` with a standard deviation of about `|x| |y| / sqrt(k)`.  R is made in
    blocks of 8,192 weights from the seed, kept if it takes at most 2 GiB and made anew each time
    if not.  The numbers depend on the device.

    Args:
        num_weights: P.
        dimension: k.
        kind: "rademacher", `±1/sqrt(k)`, or "gaussian".
        seed: Seed of the projection.
        like: For device and dtype.

    Raises:
        ValueError: A dimension below 1; another kind.
    """

    def __init__(
        self, num_weights: int, dimension: int, *, kind: ProjectionKind, seed: int, like: Tensor
    ) -> None:
        if dimension < 1:
            raise ValueError(f"the dimension of a projection must be at least 1, got {dimension}.")
        require_literal("projection", kind, ProjectionKind)
        self._num_weights, self._dimension = num_weights, dimension
        self._kind, self._seed, self._like = kind, seed, like.new_empty(0)
        self._keep = num_weights * dimension * like.element_size() <= _MAX_KEPT_BYTES
        self._kept: dict[int, Tensor] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows `[B, P]` projected to `[B, k]`."""
        total = rows.new_zeros(len(rows), self._dimension)
        for start in range(0, self._num_weights, _BLOCK_WEIGHTS):
            total += rows[:, start : start + _BLOCK_WEIGHTS] @ self._block(start)
        return total

    def _block(self, start: int) -> Tensor:
        if start in self._kept:
            return self._kept[start]
        words = np.random.SeedSequence([self._seed, start]).generate_state(2)
        source = torch.Generator(self._like.device).manual_seed(int(words[0]))
        shape = (min(_BLOCK_WEIGHTS, self._num_weights - start), self._dimension)
        made = {"dtype": self._like.dtype, "device": self._like.device, "generator": source}
        if self._kind == "gaussian":
            block = torch.randn(shape, **made)
        else:
            block = torch.randint(0, 2, shape, **made).mul_(2).sub_(1)
        block /= self._dimension**0.5
        if self._keep:
            self._kept[start] = block
        return block
