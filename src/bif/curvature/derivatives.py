"""Derivatives of items' values at w* along given directions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from bif.curvature.passes import MOST_BYTES, AlongDirections, differentiable
from bif.curvature.rows import RowsTogether, padded
from bif.problem.cuda_graphs import Replayed, SharedMemory
from bif.problem.functional import ItemFunction
from bif.problem.problem import Problem
from bif.types import Batch, ItemLoss, Params


class Derivatives:
    """An oracle whose values are derivatives at w*: `d f(w* + t·params) / dt` at t = 0.

    What evaluates items by an oracle's values then yields, for a direction x, `∇f_i · x` of every
    item or token, at the price of a forward pass a direction and without any item's gradient.

    Args:
        problem: Whose model.
        num_together: Directions of a pass; fewer where memory does not hold them.
        compute_dtype: What matrices are multiplied in, such as bfloat16.
        model: A copy of the problem's model, which is shared; one of its own by default.
    """

    def __init__(
        self, problem: Problem, *, num_together: int = 64,
        compute_dtype: torch.dtype | None = None, model: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self._problem, self._compute = problem, compute_dtype
        self.model = problem.evaluation_copy(problem.device) if model is None else model
        self._leaves = {name: leaf.detach() for name, leaf in self.model.named_parameters()}
        on_gpu = problem.device.type == "cuda"  # where each size of a pass gets a graph
        self._together = RowsTogether(num_together, few_sizes=on_gpu)
        self._passes: dict[Hashable, Replayed] = {}
        self._memory = SharedMemory()

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        """Return derivatives along directions with leaves `[K, *shape]`, `[K, B]`."""
        center = {name: self._leaves[name] for name in params}
        key = function, tuple(params)
        if key not in self._passes:
            made = _AlongPass(self.model, function, center, self._compute)
            self._passes[key] = Replayed(made, self._memory, most_bytes=MOST_BYTES)
        if (scale := self._problem.metric_scale(center)) is not None:
            params = {name: leaf * scale[name] for name, leaf in params.items()}
        count = len(next(iter(params.values())))

        def some(part: slice) -> Tensor:
            leaves = {name: padded(leaf, part) for name, leaf in params.items()}
            return self._passes[key]({"directions": leaves, "items": batch})[0]

        return torch.cat(list(self._together.map(some, count)))[:count]

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        """Raise: an oracle of derivatives has no gradients."""
        raise NotImplementedError("derivatives along directions have no gradient here.")


class _AlongPass:
    """Derivatives of the values of some items along some directions."""

    def __init__(
        self,
        model: nn.Module,
        function: ItemLoss,
        center: Params,
        compute_dtype: torch.dtype | None,
    ) -> None:
        self._of_items, self._center = ItemFunction(model, function), center
        self._along, self._compute = AlongDirections(), compute_dtype

    def __call__(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        def values(params: Params) -> Tensor:
            return self._of_items.at(params, given["items"])

        device = next(iter(self._center.values())).device
        with differentiable(device, self._compute):
            return (self._along(values, self._center, given["directions"]),)
