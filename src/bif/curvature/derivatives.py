"""Derivatives of items' values at w* along given directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif.curvature.products import map_rows
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
        self.model = problem.evaluation_copy(problem.device)
        self._leaves = {name: leaf.detach() for name, leaf in self.model.named_parameters()}
        self._together, self._pushes_forward = num_together, True

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        """Return derivatives along directions with leaves `[K, *shape]`, `[K, B]`."""
        of_items = ItemFunction(self.model, function)
        center = {name: self._leaves[name] for name in params}
        count, parts, start = len(next(iter(params.values()))), [], 0
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no forward derivatives
            while start < count:
                part = slice(start, start + self._together)
                try:
                    some = {name: leaf[part] for name, leaf in params.items()}
                    parts.append(self._along(of_items, center, some, batch))
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

    def _along(
        self, of_items: ItemFunction, center: Params, directions: Params, batch: Batch
    ) -> Tensor:
        def values(params: Params) -> Tensor:
            return of_items.at(params, batch)

        if self._pushes_forward:
            try:
                return map_rows(lambda v: jvp(values, (center,), (v,))[1], directions)
            except (NotImplementedError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "forward" not in str(error):
                    raise
                self._pushes_forward = False
        out, pull = vjp(values, center)[:2]
        push = vjp(lambda u: pull(u)[0], torch.zeros_like(out))[1]
        return map_rows(lambda v: push(v)[0], directions)
