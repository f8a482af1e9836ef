"""Derivatives of items' values at w* along given directions."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.curvature.attention import DifferentiableAttention
from bif.curvature.products import AlongDirections
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
    """

    def __init__(self, problem: Problem, *, num_together: int = 64) -> None:
        self._problem = problem
        self.model = problem.evaluation_copy(problem.device)
        self._leaves = {name: leaf.detach() for name, leaf in self.model.named_parameters()}
        self._together, self._along = num_together, AlongDirections()

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        """Return derivatives along directions with leaves `[K, *shape]`, `[K, B]`."""
        of_items = ItemFunction(self.model, function)
        center = {name: self._leaves[name] for name in params}
        count, parts, start = len(next(iter(params.values()))), [], 0

        def values(params: Params) -> Tensor:
            return of_items.at(params, batch)

        if (scale := self._problem.metric_scale(center)) is not None:
            params = {name: leaf * scale[name] for name, leaf in params.items()}
        with DifferentiableAttention():
            while start < count:
                part = slice(start, start + self._together)
                try:
                    some = {name: leaf[part] for name, leaf in params.items()}
                    parts.append(self._along(values, center, some))
                except torch.OutOfMemoryError:
                    if self._together == 1:
                        raise
                    self._together = max(1, self._together // 2)
                    torch.cuda.empty_cache()
                    continue
                start += self._together
        return torch.cat(parts)

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        """Raise: an oracle of derivatives has no gradients."""
        raise NotImplementedError("derivatives along directions have no gradient here.")
