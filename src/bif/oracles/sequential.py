"""One chain after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bif.compiling import compiled
from bif.items import map_batch
from bif.oracles.protocol import of_one_chain
from bif.precision import Precision, matmul_precision
from bif.types import Batch, ItemLoss, Params


class SequentialOracle:
    """One chain after another through the functional module; takes any model.

    Args: as for `StackedOracle`; what is compiled are the losses of one chain, with their backward
    pass, and its values.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ItemLoss,
        *,
        gradient_precision: Precision = "float32",
        value_precision: Precision = "float32",
        use_compile: bool = False,
    ) -> None:
        self._model = model
        self._precision: tuple[Precision, Precision] = (gradient_precision, value_precision)
        self._compiled = use_compile
        self._losses = self._made(loss, gradient_precision)
        self._values: dict[ItemLoss, Callable[[Params, Batch], Tensor]] = {}

    def _made(self, function: ItemLoss, precision: Precision) -> Callable[[Params, Batch], Tensor]:
        one_chain = of_one_chain(self._model, function, precision)
        return compiled(one_chain) if self._compiled else one_chain

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        precision = self._precision[1]
        if function not in self._values:
            self._values[function] = self._made(function, precision)
        with torch.no_grad(), matmul_precision(precision):
            return torch.stack([self._values[function](p, batch) for p in _each_chain(params)])

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        gradients: list[tuple[Tensor, ...]] = []
        losses: list[Tensor] = []
        for c, one in enumerate(_each_chain(params)):
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in one.items()}
            items = map_batch(lambda leaf, c=c: leaf[c], batch) if per_chain else batch
            weight = weights[c] if per_chain else weights
            with torch.enable_grad(), matmul_precision(self._precision[0]):
                values = self._losses(leaves, items)
                gradients.append(
                    torch.autograd.grad(
                        (weight * values).sum(), list(leaves.values()), materialize_grads=True
                    )
                )
            losses.append(values.detach())
        stacked = (torch.stack(leaf) for leaf in zip(*gradients, strict=True))
        return dict(zip(params, stacked, strict=True)), torch.stack(losses)


def _each_chain(params: Params) -> Iterator[Params]:
    num_chains = len(next(iter(params.values())))
    for c in range(num_chains):
        yield {name: leaf[c] for name, leaf in params.items()}
