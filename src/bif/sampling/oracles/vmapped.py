"""All chains of a block as one operation, and why a model refuses that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from bif import tensors
from bif.problem.cuda_graphs import Replayed, SharedMemory
from bif.problem.items import batch_leaves, map_batch
from bif.problem.weights import copy_module
from bif.sampling.oracles.compilation import compiled
from bif.sampling.oracles.precision import Precision, matmul_precision
from bif.sampling.oracles.protocol import of_one_chain
from bif.types import Batch, ItemLoss, Params


class StackedOracle:
    """All chains of a block in one vectorised operation, by `torch.func.vmap`.

    On a GPU the operation is replayed as a CUDA graph from its third call of a shape on: stacks of
    small models are many short kernels.

    Args:
        model: An evaluation-mode copy; its movable parameters are replaced at every call.
        loss: The train items' loss.
        gradient_precision: Compute precision of gradients, and of the losses they bring along.
        value_precision: Compute precision of `values`.
        use_compile: Compile the vectorised functions with `torch.compile`.
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
        losses = of_one_chain(model, loss, gradient_precision)
        self._gradients = {
            per_chain: Replayed(
                _gradient_of_stack(losses, in_dims, use_compile=use_compile), self._memory
            )
            for per_chain, in_dims in ((False, (0, None, None)), (True, (0, 0, 0)))
        }
        self._values: dict[ItemLoss, Replayed] = {}

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        if function not in self._values:
            one_chain = of_one_chain(self.model, function, self._precision[1])
            made = _values_of_stack(one_chain, use_compile=self._compiled)
            self._values[function] = Replayed(made, self._memory)
        with torch.no_grad(), matmul_precision(self._precision[1]):
            return self._values[function]({"params": params, "items": batch})[0]

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        inputs = {"params": params, "items": batch, "weights": weights}
        with matmul_precision(self._precision[0]):
            losses, *leaves = self._gradients[per_chain](inputs)
        return dict(zip(params, leaves, strict=True)), losses


# No method is recorded: a graph that holds its oracle would keep the device's memory until Python
# looks for cycles.


def _gradient_of_stack(
    losses: Callable[[Params, Batch], Tensor], in_dims: tuple[int | None, ...], *, use_compile: bool
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Of params, items and weights: the losses `[C, B]`, and the leaves of the gradient."""

    def weighted(params: Params, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = losses(params, batch)
        return (weights * found).sum(), found

    stacked = vmap(grad(weighted, has_aux=True), in_dims=in_dims)
    made = compiled(stacked) if use_compile else stacked

    def gradient(inputs: Batch) -> tuple[Tensor, ...]:
        found, values = made(inputs["params"], inputs["items"], inputs["weights"])
        leaves = [found[name].detach() for name in inputs["params"]]
        return values.detach(), *tensors.apart(leaves)

    return gradient


def _values_of_stack(
    one_chain: Callable[[Params, Batch], Tensor], *, use_compile: bool
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Of params and items: `[C, B]`."""
    stacked = vmap(one_chain, in_dims=(0, None))
    made = compiled(stacked) if use_compile else stacked
    return lambda inputs: (made(inputs["params"], inputs["items"]),)


def vmap_refusal(
    model: nn.Module,
    loss: ItemLoss,
    *,
    params: Params,
    batch: Batch,
    per_chain: bool,
    observables: Sequence[ItemLoss] = (),
) -> str | None:
    """Why the model cannot be stacked: vmap's own words, or None if it can.

    Args:
        params: Two chains, leaves `[2, *shape]`.
        batch: A few items, `[B, …]`.
        per_chain: Whether chains will see mini-batches of their own.
        observables: What else will be evaluated.
    """
    oracle = StackedOracle(copy_module(model), loss)
    first = next(iter(batch_leaves(batch).values()))
    weights = torch.ones(len(first), device=first.device)
    own = map_batch(lambda leaf: torch.stack([leaf, leaf]), batch)
    try:
        oracle.gradient(params, batch, weights, per_chain=False)
        if per_chain:
            oracle.gradient(params, own, torch.stack([weights, weights]), per_chain=True)
        for function in dict.fromkeys((loss, *observables)):
            oracle.values(function, params, batch)
    except Exception as error:  # whatever vmap meets inside the user's model
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {shorten(lines[0], 200, placeholder=' …')}"
    return None
