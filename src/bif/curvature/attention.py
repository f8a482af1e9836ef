"""Attention whose derivatives along many directions hold few matrices of tokens by tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DifferentiableAttention(TorchFunctionMode):
    """Within the block, `F.scaled_dot_product_attention` has derivatives of any order and mode.

    Torch's fused kernels know no forward derivative and no second one.  Its plain implementation
    knows both, at many more passes over a matrix `[T, T]` a head, a direction and a layer than are
    needed; here what all directions share is multiplied for all of them at once.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Return `softmax(scale · query keyᵀ + mask) value`, `[..., T, d]`, as torch's function.

    Raises:
        ValueError: Dropout, whose derivative is random.
    """
    if dropout_p > 0:
        raise ValueError(f"attention drops out {dropout_p:g} of its weights, expected none here.")
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (key, value))
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as torch does for its own
        narrow = torch.get_autocast_dtype(kind)
        query, key, value = (x.to(narrow) for x in (query, key, value))
    shape = query.shape[-2], key.shape[-2]
    if is_causal:
        attn_mask = _only_earlier(attn_mask, torch.ones(shape, device=query.device).tril().bool())
    bias = query.new_zeros(()) if attn_mask is None else _as_bias(attn_mask, query)
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    found: Any = _Attention.apply(scaled, key, value, bias)
    return found


def _only_earlier(mask: Tensor | None, earlier: Tensor) -> Tensor:
    """Return a mask, or one of logits, that lets a token see earlier ones alone."""
    if mask is None:
        return earlier
    return mask & earlier if mask.dtype is torch.bool else mask.masked_fill(~earlier, -torch.inf)


def _as_bias(mask: Tensor, like: Tensor) -> Tensor:
    """Return what is added to the logits."""
    if mask.dtype is not torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)


class _Attention(torch.autograd.Function):
    """`softmax(q kᵀ + bias) v`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return _weights(q, k, bias) @ v

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *along_inputs: Any) -> Tensor:
        q, k, v, bias = ctx.saved_tensors
        dq, dk, dv = (
            torch.zeros_like(x) if dx is None else dx
            for x, dx in zip((q, k, v), along_inputs[:3], strict=True)
        )
        weights = _weights(q, k, bias)
        ends = _joined(dq, q) @ _joined(k, dk).mT  # dq kᵀ + q dkᵀ in one product
        if along_inputs[3] is not None:
            ends = ends + along_inputs[3]
        moved = (weights * ends) @ _joined(v, torch.ones_like(v[..., :1]))
        along, total = moved[..., :-1], moved[..., -1:]
        return along - total * (weights @ v) + _of_shared(weights, dv)

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        q, k, v, bias = ctx.saved_tensors
        weights = _weights(q, k, bias)
        total = (du * (weights @ v)).sum(dim=-1, keepdim=True)
        ends = _joined(du, -total) @ _joined(v, torch.ones_like(v[..., :1])).mT
        ends = weights * ends
        of_bias = ends.sum_to_size(bias.shape) if ctx.needs_input_grad[3] else None
        return ends @ k, ends.mT @ q, _of_shared(weights.mT, du), of_bias


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Return weights of the keys in the dtype of k, 0 for a query that sees none."""
    logits = q @ k.mT + bias
    if bias.dim():
        blind = (bias == -torch.inf).all(dim=-1, keepdim=True)
        logits = torch.where(blind, 0.0, logits)
        return logits.softmax(dim=-1).masked_fill(blind, 0.0).to(k.dtype)
    return logits.softmax(dim=-1).to(k.dtype)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([x.expand(*shape, x.shape[-1]) for x in (first, second)], dim=-1)


def _of_shared(weights: Tensor, x: Tensor) -> Tensor:
    found: Any = _OfShared.apply(weights, x)
    return found


class _OfShared(torch.autograd.Function):
    """`A x`: where many x share a matrix A, their columns lie side by side in one product."""

    @staticmethod
    def forward(a: Tensor, x: Tensor) -> Tensor:
        return a @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, da: Any, dx: Any) -> Tensor:
        a, x = ctx.saved_tensors
        parts = [] if da is None else [da @ x]
        return sum(parts if dx is None else [*parts, _of_shared(a, dx)], start=a.new_zeros(()))

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> Any:
        a, x = ctx.saved_tensors
        return du @ x.mT, _of_shared(a.mT, du)

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor, x: Tensor) -> Any:
        da, dx = in_dims
        if da is None and dx is not None:
            rows = x.movedim(dx, -2)  # [..., T, K, d]
            found = _of_shared(a, rows.flatten(-2)).unflatten(-1, rows.shape[-2:])
            return found.movedim(-2, 0), 0
        a = a if da is None else a.movedim(da, 0)
        return a @ (x if dx is None else x.movedim(dx, 0)), 0
