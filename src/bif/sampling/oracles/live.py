"""The module's own parameters as the one chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bif import tensors
from bif.problem.cuda_graphs import Replayed
from bif.problem.functional import ItemFunction
from bif.problem.items import batch_leaves, map_batch
from bif.sampling.oracles.compilation import compile_blocks_, compiled, repeated_blocks
from bif.sampling.oracles.precision import Precision, matmul_precision
from bif.sampling.oracles.protocol import autocast
from bif.sampling.whole_model import WHOLE
from bif.types import Batch, ItemLoss, Params, Shards

REPLAYED_BELOW = 5 * 10**8
"""Weights of a model whose passes are replayed: those of larger ones keep a device busy, and the
memory of their intermediate values is better shared."""


class LiveOracle:
    """The module's own parameters are the one chain: samplers update the module in place.

    Built for models too large to hold twice: nothing is copied, gradients come in micro-batches,
    under autocast if asked for.

    Args:
        model: The module that is sampled; `live_params` hands out its parameters.
        loss: The train items' loss.
        names: The movable parameters; the others are frozen.
        micro_batch: Items per forward and backward pass; gradients are accumulated over them.
        gradient_precision: As for `StackedOracle`.
        value_precision: As for `StackedOracle`.
        use_compile: Compile the module's repeated blocks, or where it has none the loss and what
            is observed, and replay the passes of small models as CUDA graphs.
        shards: The processes that hold a part of the module each; every one takes its part of the
            items of a pass, and gets the losses of all of them and its rows of their gradient.
        device: Of this process; the module's own by default.

    Attributes:
        replays: Whether passes are replayed, on a device that can.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ItemLoss,
        *,
        names: list[str],
        micro_batch: int,
        gradient_precision: Precision = "float32",
        value_precision: Precision = "float32",
        use_compile: bool = False,
        shards: Shards = WHOLE,
        device: torch.device | None = None,
    ) -> None:
        self.model, self._shards = model, shards
        self._compiled = use_compile and not compile_blocks_(model)
        self._loss = self._made(loss)
        self._values: dict[ItemLoss, Callable[[Batch], Tensor]] = {}
        self._replayed: dict[ItemLoss, Replayed] = {}
        small = sum(p.numel() for p in model.parameters()) < REPLAYED_BELOW
        self.replays = use_compile and small
        self._pass = Replayed(self._gradient_of_pass)
        self._micro_batch = micro_batch
        self._precision: tuple[Precision, Precision] = (gradient_precision, value_precision)
        if shards.count == 1:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
        self._call = shards.place(model, repeated_blocks(model), device)
        parameters = dict(model.named_parameters())
        self._parameters = {name: parameters[name] for name in names}

    def live_params(self) -> Params:
        """The movable parameters as views `[1, *shape]`: writing to them moves the module."""
        return {name: self._leaf(name).unsqueeze(0) for name in self._parameters}

    def _leaf(self, name: str) -> Tensor:
        """This process's rows of a parameter, as a view `[*shape]`."""
        # Not `p.data`: autograd is to notice a weight that moves while a graph still needs it.
        return self._shards.view(self._parameters[name].detach())

    def values(self, function: ItemLoss, params: Params, batch: Batch) -> Tensor:
        if self.replays and not self._elsewhere(params):
            if function not in self._replayed:
                self._replayed[function] = Replayed(
                    lambda items: (self._values_here(function, items),)
                )
            return self._replayed[function](batch)[0].unsqueeze(0)
        with self._at(params):
            return self._values_here(function, batch).unsqueeze(0)

    def _values_here(self, function: ItemLoss, batch: Batch) -> Tensor:
        """`[B]`, at the live weights."""
        precision = self._precision[1]
        if function not in self._values:
            self._values[function] = self._made(function)
        own, count = self._own(batch)
        with torch.no_grad(), matmul_precision(precision), autocast(batch, precision):
            values = self._call(self._values[function], own)
        return self._shards.joined(values, count)

    def _own(self, batch: Batch) -> tuple[Batch, int]:
        """This process's part of a batch, and the number of all its items.

        The last item stands where a part reaches beyond, for parts are of equal length.
        """
        leaf = next(iter(batch_leaves(batch).values()))
        rows, count = self._shards.rows(len(leaf)), len(leaf)
        if rows == range(count):
            return batch, count
        places = torch.arange(rows.start, rows.stop, device=leaf.device).clamp_(max=count - 1)
        return map_batch(lambda x: x[places.to(x.device)], batch), count

    def _made(self, function: ItemLoss) -> Callable[[Batch], Tensor]:
        of_items = ItemFunction(self.model, function)
        return compiled(of_items) if self._compiled else of_items

    def gradient(
        self, params: Params, batch: Batch, weights: Tensor, *, per_chain: bool
    ) -> tuple[Params, Tensor]:
        if per_chain:
            batch, weights = map_batch(lambda leaf: leaf[0], batch), weights[0]
        a_pass = self._pass if self.replays and not self._elsewhere(params) else (
            self._gradient_of_pass
        )  # fmt: skip
        total: Params = {}
        losses = []
        with self._at(params):
            for start in range(0, len(weights), self._micro_batch):
                part = slice(start, start + self._micro_batch)
                items = map_batch(lambda leaf, part=part: leaf[part], batch)
                values, *leaves = a_pass({"items": items, "weights": weights[part]})
                gradient = dict(zip(self._parameters, leaves, strict=True))
                total = tensors.add_(total, gradient) if total else gradient
                losses.append(values)
        return {n: g.unsqueeze(0) for n, g in total.items()}, torch.cat(losses).unsqueeze(0)

    def _gradient_of_pass(self, batch: Batch) -> tuple[Tensor, ...]:
        """Losses `[B]` of `items` at the live weights, and their weighted sum's gradient."""
        precision, parameters = self._precision[0], list(self._parameters.values())
        for parameter in parameters:
            parameter.grad = None
        own, count = self._own(batch)
        items, weights = own["items"], own["weights"]
        kept = max(0, count - self._shards.rows(count).start)  # others repeat the last item
        with torch.enable_grad(), matmul_precision(precision):
            with autocast(items, precision):
                values = self._call(self._loss, items)
            (weights[:kept] * values[:kept]).sum().backward()
        gradient = [
            torch.zeros_like(self._leaf(name))
            if p.grad is None
            else self._shards.view(tensors.dense(p.grad))
            for name, p in self._parameters.items()
        ]
        for parameter in parameters:
            parameter.grad = None
        losses = self._shards.joined(values.detach(), count)
        return losses, *tensors.apart(gradient)

    def stream(self, batch: Batch, weights: Tensor, take: Callable[[str, Tensor], None]) -> Tensor:
        """Hand out each leaf's gradient of `Σ_b weights[b] * loss_b` as soon as it is complete.

        The gradients never exist together, which takes one backward pass for the whole batch.

        Args:
            batch: `[B, …]`.
            weights: `[B]`.
            take: Gets a leaf's name and its gradient `[1, *shape]`, to be read only since another
                leaf's may be the same memory, and may move the leaf.  Leaves come in the order of
                the backward pass.

        Returns:
            The losses `[1, B]`, at the weights before any leaf moved.

        Raises:
            RuntimeError: A gradient that comes in several parts.
        """
        waiting, precision = dict(self._parameters), self._precision[0]

        def complete(name: str, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if waiting.pop(name, None) is None:
                raise RuntimeError(
                    f"the gradient of {name!r} came in several parts of one backward pass, as "
                    "reentrant checkpointing makes it: use use_reentrant=False, or memory='plain'."
                )
            assert gradient is not None
            take(name, tensors.dense(gradient).unsqueeze(0))

        hooks = []
        for name, parameter in self._parameters.items():
            parameter.grad = None
            hooks.append(parameter.register_post_accumulate_grad_hook(partial(complete, name)))
        try:
            with torch.enable_grad(), matmul_precision(precision):
                with autocast(batch, precision):
                    values = self._loss(batch)
                (weights * values).sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
        for name, parameter in list(waiting.items()):  # the loss does not depend on them
            take(name, torch.zeros_like(parameter).unsqueeze(0))
        return values.detach().unsqueeze(0)

    @contextmanager
    def _at(self, params: Params) -> Iterator[None]:
        """Evaluate at `params`: nothing to do where they are the live weights already."""
        elsewhere = self._elsewhere(params)
        if self._shards.count > 1:
            with self._copied(elsewhere):
                yield
            return
        kept = {name: self._parameters[name].data for name in elsewhere}
        for name, leaf in elsewhere.items():
            self._parameters[name].data = leaf[0]
        try:
            yield
        finally:
            for name, data in kept.items():
                self._parameters[name].data = data

    @contextmanager
    def _copied(self, elsewhere: Params) -> Iterator[None]:
        """Write other weights into the shards, whose memory is what is gathered."""
        kept = {name: self._leaf(name).clone() for name in elsewhere}
        for name, leaf in elsewhere.items():
            self._leaf(name).copy_(leaf[0])
        try:
            yield
        finally:
            for name, leaf in kept.items():
                self._leaf(name).copy_(leaf)

    def _elsewhere(self, params: Params) -> Params:
        """The leaves that are not the live weights themselves."""
        return {
            name: params[name]
            for name in self._parameters
            if params[name].data_ptr() != self._leaf(name).data_ptr()
        }
