"""Derivatives of items' values at w* along given directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bif.curvature.products import AlongDirections, differentiable
from bif.curvature.rows import RowsTogether
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
        self._together, self._along = RowsTogether(num_together), AlongDirections()

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        """Return derivatives along directions with leaves `[K, *shape]`, `[K, B]`."""
        of_items = ItemFunction(self.model, function)
        center = {name: self._leaves[name] for name in params}
        count = len(next(iter(params.values())))

        def values(params: Params) -> Tensor:
            return of_items.at(params, batch)

        if (scale := self._problem.metric_scale(center)) is not None:
            params = {name: leaf * scale[name] for name, leaf in params.items()}

        def some(part: slice) -> Tensor:
            return self._along(values, center, {n: leaf[part] for n, leaf in params.items()})

        with differentiable(self._problem.device, self._compute):
            return torch.cat(list(self._together.map(some, count)))

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        """Raise: an oracle of derivatives has no gradients."""
        raise NotImplementedError("derivatives along directions have no gradient here.")
