"""One chain after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bif import tensors
from bif.problem.cuda_graphs import Replayed, SharedMemory
from bif.problem.items import map_batch
from bif.sampling.oracles.compilation import compiled
from bif.sampling.oracles.precision import Precision, matmul_precision
from bif.sampling.oracles.protocol import of_one_chain
from bif.types import Batch, ItemLoss, Params


class SequentialOracle:
    """One chain after another through the functional module; takes any model.

    On a GPU a chain's pass is replayed as a CUDA graph from its third call of a shape on.

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
        self.model = model
        self._precision: tuple[Precision, Precision] = (gradient_precision, value_precision)
        self._compiled = use_compile
        self._memory = SharedMemory()
        self._gradient = Replayed(
            _gradient_of_chain(self._made(loss, gradient_precision)), self._memory
        )
        self._values: dict[ItemLoss, Replayed] = {}

    def _made(self, function: ItemLoss, precision: Precision) -> Callable[[Params, Batch], Tensor]:
        one_chain = of_one_chain(self.model, function, precision)
        return compiled(one_chain) if self._compiled else one_chain

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        if function not in self._values:
            made = self._made(function, self._precision[1])
            self._values[function] = Replayed(_values_of_chain(made), self._memory)
        of_chain = self._values[function]
        with torch.no_grad(), matmul_precision(self._precision[1]):
            return torch.stack(
                [of_chain({"params": p, "items": batch})[0] for p in _each_chain(params)]
            )

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        gradients: list[list[Tensor]] = []
        losses: list[Tensor] = []
        for c, one in enumerate(_each_chain(params)):
            items = map_batch(lambda leaf, c=c: leaf[c], batch) if per_chain else batch
            inputs = {
                "params": one, "items": items, "weights": weights[c] if per_chain else weights,
            }  # fmt: skip
            with matmul_precision(self._precision[0]):
                values, *gradient = self._gradient(inputs)
            gradients.append(gradient)
            losses.append(values)
        stacked = (torch.stack(leaf) for leaf in zip(*gradients, strict=True))
        return dict(zip(params, stacked, strict=True)), torch.stack(losses)


# No method is recorded: a graph that holds its oracle would keep the device's memory until Python
# looks for cycles.


def _gradient_of_chain(
    losses: Callable[[Params, Batch], Tensor],
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Of params, items and weights of one chain: the losses `[B]`, and the leaves."""

    def gradient(inputs: Batch) -> tuple[Tensor, ...]:
        leaves = {n: leaf.detach().requires_grad_() for n, leaf in inputs["params"].items()}
        with torch.enable_grad():
            values = losses(leaves, inputs["items"])
            found = torch.autograd.grad(
                (inputs["weights"] * values).sum(), list(leaves.values()), materialize_grads=True
            )
        return values.detach(), *map(tensors.dense, found)

    return gradient


def _values_of_chain(
    one_chain: Callable[[Params, Batch], Tensor],
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Of params and items of one chain: `[B]`."""
    return lambda inputs: (one_chain(inputs["params"], inputs["items"]),)


def _each_chain(params: Params) -> Iterator[Params]:
    num_chains = len(next(iter(params.values())))
    for c in range(num_chains):
        yield {name: leaf[c] for name, leaf in params.items()}
