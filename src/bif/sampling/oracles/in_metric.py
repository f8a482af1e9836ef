"""An oracle in the coordinates in which a metric's Gaussian is isotropic."""

from __future__ import annotations

from torch import Tensor

from bif.sampling.oracles.protocol import Oracle
from bif.types import Batch, ItemLoss, Params


class InMetric:
    """Answers at `w = w* + s (v - w*)` for chains' v, with gradients by v; `s = M^(-1/2)`.

    Args:
        inner: An oracle of weights.
        center: w*, leaves `[*shape]`.
        scale: s, leaves `[*shape]`.
    """

    def __init__(self, inner: Oracle, center: Params, scale: Params) -> None:
        self.model, self._inner, self._center, self._scale = inner.model, inner, center, scale

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        return self._inner.values(function, self._weights(params), batch)

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        found, losses = self._inner.gradient(
            self._weights(params), batch, weights, per_chain=per_chain
        )
        return {name: leaf.mul_(self._scale[name]) for name, leaf in found.items()}, losses

    def _weights(self, params: Params) -> Params:
        return {
            name: self._center[name] + self._scale[name] * (leaf - self._center[name])
            for name, leaf in params.items()
        }
