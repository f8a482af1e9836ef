"""Gradients of the mean loss: of all items, of mini-batches, and with a control variate at w*."""

from __future__ import annotations

import torch
from torch import Tensor

from bif import tensors
from bif.problem.items import Items
from bif.sampling.oracles import Oracle
from bif.sampling.pass_size import PassSize
from bif.sampling.rng import ShuffledOrder
from bif.types import GradientEstimate, Params


class FullGradient:
    """The exact gradient of the mean loss, chunk by chunk; the items' losses come for free.

    `∇L = Σ_i (rho_i / n) ∇l_i`.

    Args:
        oracle: Source of gradients.
        items: The train items, on the chains' device.
        chunk_size: Items per forward and backward pass.
        train_weights: rho `[N]`; 1 if None.
        halves: Whether passes get smaller where memory is short.

    Attributes:
        pass_size: Items of a pass.
    """

    def __init__(
        self,
        oracle: Oracle,
        items: Items,
        *,
        chunk_size: int,
        train_weights: Tensor,
        halves: bool = True,
    ) -> None:
        self._oracle, self._items = oracle, items
        self.pass_size = PassSize(min(chunk_size, len(items)), halves=halves)
        self._weights = train_weights / len(items)

    def __call__(self, params: Params, step: int) -> GradientEstimate:
        return self.pass_size.run(lambda size: self._in_passes(params, size))

    def _in_passes(self, params: Params, size: int) -> GradientEstimate:
        total: Params | None = None
        losses = []
        for part, batch in self._items.batches(size):
            gradient, values = self._oracle.gradient(
                params, batch, self._weights[part], per_chain=False
            )
            total = gradient if total is None else tensors.add_(total, gradient)
            losses.append(values)
        assert total is not None  # Items is never empty
        found = losses[0] if len(losses) == 1 else torch.cat(losses, dim=1)
        return GradientEstimate(total, self._items.in_order(found))


class MiniBatchGradient:
    """An unbiased gradient of the mean loss from mini-batches of each chain's own.

    `∇L ≈ (1/B) Σ_{b in batch} rho_b ∇l_b`, without replacement: the variance over single items
    falls by `(1 - B/n)·n/(n - 1)` below 1/B.

    Args:
        oracle: Source of gradients.
        items: The train items.
        order: Items that each chain sees at each step.
        train_weights: rho `[N]`.
    """

    def __init__(
        self, oracle: Oracle, items: Items, *, order: ShuffledOrder, train_weights: Tensor
    ) -> None:
        self._oracle, self._items, self._order = oracle, items, order
        self._weights = train_weights / order.batch_size

    def __call__(self, params: Params, step: int) -> GradientEstimate:
        indices = self._order.indices(step)
        gradient, _ = self._oracle.gradient(
            params, self._items.take(indices), self._weights[indices], per_chain=True
        )
        return GradientEstimate(gradient, None)


class ControlVariateGradient:
    """Mini-batch gradients whose noise vanishes at w*.

    `∇L ≈ g_batch(w) - g_batch(w*) + ∇L(w*)`: the same mini-batch at both points, so only the
    change of the gradient since w* is noisy.  Costs two mini-batch gradients a step.

    Args:
        oracle: Source of gradients.
        items: The train items.
        order: Items that each chain sees at each step.
        train_weights: rho `[N]`.
        center: w* as a stack, leaves `[C, *shape]`.
        center_gradient: `∇L(w*)` of all items, leaves `[1, *shape]`.
    """

    def __init__(
        self,
        oracle: Oracle,
        items: Items,
        *,
        order: ShuffledOrder,
        train_weights: Tensor,
        center: Params,
        center_gradient: Params,
    ) -> None:
        self._oracle, self._items, self._order = oracle, items, order
        self._weights = train_weights / order.batch_size
        self._center, self._center_gradient = center, center_gradient

    def __call__(self, params: Params, step: int) -> GradientEstimate:
        indices = self._order.indices(step)
        batch, weights = self._items.take(indices), self._weights[indices]
        gradient, _ = self._oracle.gradient(params, batch, weights, per_chain=True)
        at_center, _ = self._oracle.gradient(self._center, batch, weights, per_chain=True)
        tensors.add_(gradient, at_center, -1.0)
        return GradientEstimate(tensors.add_(gradient, self._center_gradient), None)
