"""A loss taken apart: the model's outputs, and the curvature of the loss in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

from bif.problem import losses
from bif.problem.items import map_batch
from bif.problem.literals import require_literal
from bif.problem.losses import at_least_float32, per_item
from bif.types import Batch, ItemLoss

Criterion = Literal["cross_entropy", "squared_error"]
"""How the loss curves in the outputs: as a softmax over the last axis, or output by output."""

_MAX_DENSE_OUTPUTS = 64
"""Outputs of an item up to which a loss is differentiated twice."""


class _Answered(Exception):
    """Raised with the model's output, to leave the loss there."""


class SplitLoss:
    """A loss `(model, batch) -> [B]` as a function of the model's outputs.

    The loss is run as it is, once with the real model, whose output is caught, and once with a
    model that answers with given outputs. So any loss can be split that calls the model exactly
    once and depends on the weights through that call alone; both are checked on three items.

    Args:
        model: A model whose parameters require gradients.
        loss: A loss of (model, batch).
        example: A few items, for the check.
        criterion: How the loss curves in the outputs.  By default known for the losses of
            `bif.losses`, and for others found by differentiating twice if an item has at most 64
            outputs.

    Raises:
        ValueError: The loss cannot be split, or does not curve as `criterion` says.
    """

    def __init__(
        self, model: nn.Module, loss: ItemLoss, example: Batch, criterion: Criterion | None = None
    ) -> None:
        if criterion is not None:
            require_literal("criterion", criterion, Criterion)
        self._model, self._loss, self._wrapped = model, loss, False
        outputs = self._check(example)
        self.kind = criterion or _known_criterion(loss) or self._require_few_outputs(outputs)
        self.num_outputs = outputs[0].numel()

    def outputs(self, batch: Batch) -> Tensor:
        """Return the model's outputs `[B, …]` where the loss calls it, float32 or wider."""

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            raise _Answered(output)  # what the loss does with it is not needed

        handle = self._model.register_forward_hook(stop)
        try:
            self._loss(self._model, batch)
        except _Answered as answered:
            output = answered.args[0]
            return at_least_float32(output.logits if self._wrapped else output)
        finally:
            handle.remove()
        raise ValueError("the loss did not call the model, which it did on other items.")

    def at_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return item losses `[B]` as if the model had answered with `outputs`."""
        answer = SimpleNamespace(logits=outputs) if self._wrapped else outputs
        with _answer_with(self._model, answer):
            return at_least_float32(per_item(self._loss(self._model, batch)))

    def root(self, batch: Batch) -> Tensor:
        """Return the detached factor that `apply_root` needs besides the outputs.

        "cross_entropy": `sqrt(weight)` of every position `[B, …, 1]`, where the Hessian of a
        position is `weight · (diag p - p pᵀ)`.  "squared_error": the root of the diagonal.
        "dense": S `[B, K, K]` with `S Sᵀ` the Hessian.
        """
        with torch.no_grad():
            outputs = self.outputs(batch).detach()
        if self.kind == "cross_entropy":
            return self._softmax_root(outputs, batch)
        if self.kind == "squared_error":
            return self._diagonal_root(outputs, batch)
        return self._dense_root(outputs, batch)

    def apply_root(self, outputs: Tensor, root: Tensor) -> Tensor:
        """Return `Sᵀ f`, `[B, K]`, with S constant: its squared error curves in f as the loss does.

        The Hessian of the loss in the outputs is `S Sᵀ`, so the Gauss-Newton matrix of the loss is
        that of `½ ‖Sᵀ f‖²`, `Jᵀ S Sᵀ J`, for any loss.
        """
        if self.kind == "cross_entropy":
            p = outputs.detach().softmax(dim=-1)
            centred = outputs - (p * outputs).sum(dim=-1, keepdim=True)
            return (root * p.sqrt() * centred).flatten(1)
        if self.kind == "squared_error":
            return (root * outputs).flatten(1)
        return torch.einsum("bij,bi->bj", root, outputs.flatten(1))

    def _catch_outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs and the item losses."""
        seen: list[Any] = []
        handle = self._model.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            values = at_least_float32(per_item(self._loss(self._model, batch)))
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ValueError(
                f"the loss cannot be split into outputs and criterion: it called the model "
                f"{len(seen)} times, expected once. Use curvature='hessian', which needs no "
                "split, or write the loss as a function of one model(…)."
            )
        output = getattr(seen[0], "logits", seen[0])
        self._wrapped = output is not seen[0]
        if not isinstance(output, Tensor):
            raise ValueError(
                "the loss cannot be split into outputs and criterion: the model returned "
                f"{type(output).__name__}, expected a tensor or an object with .logits."
            )
        return at_least_float32(output), values

    def _check(self, example: Batch) -> Tensor:
        """Raise unless the gradient through the outputs is the gradient."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        with torch.enable_grad():
            outputs, values = self._catch_outputs(example)
            whole = torch.autograd.grad(
                values.sum(), parameters, retain_graph=True, allow_unused=True
            )
            slope = grad(lambda f: self.at_outputs(f, example).sum())(outputs.detach())
            through = torch.autograd.grad(outputs, parameters, slope, allow_unused=True)
        zero = torch.zeros((), device=outputs.device)
        pairs = [(zero if a is None else a, zero if b is None else b)
                 for a, b in zip(whole, through, strict=True)]  # fmt: skip
        gap = sum(float((a - b).double().square().sum()) for a, b in pairs) ** 0.5
        size = sum(float(a.double().square().sum()) for a, _ in pairs) ** 0.5
        if gap > 1e-3 * size:
            raise ValueError(
                "the loss cannot be split into outputs and criterion: it depends on the weights "
                f"not only through model(…); its gradient differs by {gap / size:.2g} of itself. "
                "Leave penalties on weights out of the loss, or use curvature='hessian'."
            )
        return outputs.detach()

    def _require_few_outputs(self, outputs: Tensor) -> str:
        count = outputs[0].numel()
        if count > _MAX_DENSE_OUTPUTS:
            raise ValueError(
                f"it is unknown how this loss curves in its {count:,} outputs an item: say "
                "criterion='cross_entropy' (a softmax over the last axis) or "
                "criterion='squared_error' (output by output), or use a loss of bif.losses."
            )
        return "dense"

    def _hessian_product(self, outputs: Tensor, batch: Batch, probe: Tensor) -> Tensor:
        slope = grad(lambda f: self.at_outputs(f, batch).sum())
        return jvp(slope, (outputs,), (probe,))[1].detach()

    def _softmax_root(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self._loss is losses.cross_entropy:
            return torch.ones_like(outputs[..., :1])
        p = outputs.softmax(dim=-1)

        def of_softmax(probe: Tensor) -> Tensor:
            return p * probe - p * (p * probe).sum(dim=-1, keepdim=True)

        first, second = _probe(outputs, 0), _probe(outputs, 1)
        unit = (first * of_softmax(first)).sum(dim=-1, keepdim=True)
        product = self._hessian_product(outputs, batch, first)
        along = (first * product).sum(dim=-1, keepdim=True)
        seen = unit > 1e3 * torch.finfo(unit.dtype).tiny
        weight = torch.where(seen, along / torch.where(seen, unit, 1), 0).clamp(min=0)
        self._require_close(outputs, batch, second, weight * of_softmax(second))
        return weight.sqrt()

    def _diagonal_root(self, outputs: Tensor, batch: Batch) -> Tensor:
        diagonal = self._hessian_product(outputs, batch, torch.ones_like(outputs))
        probe = _probe(outputs, 1)
        self._require_close(outputs, batch, probe, diagonal * probe)
        return _nonnegative(diagonal).sqrt()

    def _dense_root(self, outputs: Tensor, batch: Batch) -> Tensor:
        def one(outputs: Tensor, item: Batch) -> Tensor:
            alone = map_batch(lambda leaf: leaf.unsqueeze(0), item)
            return self.at_outputs(outputs.unsqueeze(0), alone).sum()

        count = outputs[0].numel()
        blocks = vmap(hessian(one))(outputs, batch).reshape(len(outputs), count, count)
        values, vectors = torch.linalg.eigh((blocks + blocks.mT).detach() / 2)
        return vectors * _nonnegative(values).sqrt().unsqueeze(1)

    def _require_close(
        self, outputs: Tensor, batch: Batch, probe: Tensor, expected: Tensor
    ) -> None:
        got = self._hessian_product(outputs, batch, probe)
        if float((got - expected).norm()) > 1e-2 * float(got.norm()) + 1e-6 * got.numel() ** 0.5:
            raise ValueError(
                f"criterion={self.kind!r} does not fit the loss: its Hessian in the outputs, "
                f"shape {tuple(outputs.shape)}, is another. 'cross_entropy' is a softmax over the "
                "last axis, 'squared_error' curves output by output; leave criterion out to have "
                "it found."
            )


def _known_criterion(loss: ItemLoss) -> str | None:
    if loss in (losses.cross_entropy, losses.next_token, losses.next_token_mean):
        return "cross_entropy"
    return "squared_error" if loss is losses.squared_error else None


def _probe(like: Tensor, seed: int) -> Tensor:
    """Return a random direction: one draw of the last axis, with a random sign at each position."""
    source = torch.Generator().manual_seed(seed)
    last = torch.randn(like.shape[-1:], generator=source, dtype=torch.float64)
    signs = 2 * torch.randint(2, (*like.shape[:-1], 1), generator=source) - 1
    return last.to(like) * signs.to(like)


def _nonnegative(curvatures: Tensor) -> Tensor:
    """Return curvatures with rounding below 0 removed.

    Raises:
        ValueError: Truly negative ones.
    """
    lowest, highest = float(curvatures.min()), float(curvatures.abs().max())
    if lowest < -1e-4 * highest:
        raise ValueError(
            "the loss is not convex in the model's outputs, so it has no Gauss-Newton matrix: "
            f"curvatures from {lowest:.3g} to {highest:.3g}. Use curvature='hessian'."
        )
    return curvatures.clamp(min=0)


@contextmanager
def _answer_with(model: nn.Module, answer: Any) -> Iterator[None]:
    """Let `model(…)` return `answer` inside the block, whatever its input."""
    there = "forward" in model.__dict__
    before = model.__dict__.get("forward")
    model.forward = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        del model.forward
        if there:
            model.forward = before  # type: ignore[assignment]
