"""Next-token losses without the logits of the vocabulary: the head is applied to a few tokens.

`bif.losses.next_token` holds logits `[B, T, V]`, their float32 copy and their gradient: at 50,000
pieces far more than the model's own activations.  Here the last linear map and the cross-entropy
are one operation, some tokens at a time, and the backward pass computes their logits again.

Liger-Kernel and Apple's cut-cross-entropy fuse the same for training, in Triton kernels without a
rule for `torch.func.vmap` and without float64.  Samplers need both, and the CPU: chains are stacked
by vmap, every token's loss has a gradient factor of its own, and references are in float64.
`row_kernels` serves a live chain on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from bif.problem.losses import (
    at_least_float32,
    averages,
    counted_tokens,
    form_of,
    mean_over_counted,
    next_targets,
    next_token,
    next_token_mean,
    reads_masks,
    refuse_other_than_texts,
)
from bif.problem.packed_sequences import one_text_a_row
from bif.problem.positions import row_positions
from bif.types import Batch

LOGITS_AT_ONCE = 2**26
"""Number of logits that exist at a time: 256 MiB in float32."""
_IGNORED = -100
_TILE = 128
"""Rows that libraries multiply at a time."""
_checked_models: WeakSet[nn.Module] = WeakSet()
"""Models whose own logits have been found to be those of their `LinearHead`."""


class NoLinearHead(ValueError):
    """The model's logits are not those of a linear map."""


@form_of(next_token)
@reads_masks
def chunked_next_token(
    model: nn.Module, batch: Batch, *, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Return the cross-entropy of every next token, nats, `[B, T - 1]`; 0 where masked.

    The same batches and values as `bif.losses.next_token`, for causal language models of
    transformers whose head is a linear map, with a scale or a soft cap if need be.  The head and
    its gradient are computed for `logits_at_once / V` tokens at a time, in autocast's precision
    where that is on; losses are float32 or wider.

    Args:
        model: A causal language model of transformers, or one wrapped by PEFT.
        batch: `input_ids` `[B, T]`, and if need be `attention_mask` and `labels`, `[B, T]`.
        logits_at_once: Number of logits of a chunk.

    Raises:
        NoLinearHead: A model whose logits are not those of a linear map.
        TypeError: A batch without token ids.
    """
    refuse_other_than_texts(batch)
    inner = _base_model(model)
    head = linear_head(inner)
    if inner not in _checked_models and not _is_transformed():
        _refuse_another_head(inner, head, batch)
        _checked_models.add(inner)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    targets = next_targets(batch)
    hidden = head.hidden_states(ids, mask)[:, :-1]
    losses = linear_cross_entropy(
        hidden.flatten(0, 1), targets.flatten(), head, logits_at_once=logits_at_once
    )
    return losses.view(targets.shape)


@form_of(next_token_mean)
@reads_masks
@averages(counted_tokens)
def chunked_next_token_mean(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean over an item's counted tokens, `[B]`, in place of their sum."""
    return mean_over_counted(chunked_next_token(model, batch), batch)


@dataclass(frozen=True)
class LinearHead:
    """The last map of a causal language model: `cap · tanh(scale · (W h + b) / cap)`.

    Args:
        base: The model up to the head.
        linear: The map of W `[V, d]` and b `[V]` or None.
        scale: Factor on the logits.
        cap: Soft bound of the logits, or None.
    """

    base: nn.Module
    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def hidden_states(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the hidden states `[B, T, d]`, to which the head is applied."""
        # Nothing is generated: keys and values of the past would only take room.
        if mask is not None:
            return self.base(
                input_ids=ids, use_cache=False, attention_mask=mask,
                **row_positions(self.base, mask),
            ).last_hidden_state  # fmt: skip
        with one_text_a_row():
            return self.base(input_ids=ids, use_cache=False).last_hidden_state


def linear_head(model: nn.Module) -> LinearHead:
    """Return the head of a causal language model of transformers.

    Raises:
        NoLinearHead: It has none that is known to be a linear map.
    """
    linear = getattr(model, "get_output_embeddings", lambda: None)()
    base = getattr(model, "base_model", model)
    if type(linear) is not nn.Linear or base is model:
        raise NoLinearHead(
            f"{type(model).__name__} has no linear head of its own: expected a causal language "
            "model of transformers whose output embeddings are an nn.Linear that does not move "
            f"by adapters, got {type(linear).__name__}. Use bif.losses.next_token."
        )
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )
    return LinearHead(base, linear, float(scale), getattr(config, "final_logit_softcapping", None))


def linear_cross_entropy(
    hidden: Tensor, targets: Tensor, head: LinearHead, *, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Return `-log softmax(head(hidden))[target]`, nats, `[M]`; 0 where the target is -100.

    Args:
        hidden: `[M, d]`.
        targets: `[M]`.
        head: The head, whose base is not used.
        logits_at_once: Number of logits of a chunk.
    """
    linear, device = head.linear, hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    tokens = max(1, logits_at_once // linear.weight.shape[0])
    if tokens > _TILE:  # products of matrices come in tiles: the last is to be a whole one
        tokens -= tokens % _TILE
    form = _LogitMap(tokens, dtype, head.scale, head.cap)
    losses, _ = _LinearCrossEntropy.apply(hidden, linear.weight, linear.bias, targets, form)  # type: ignore[misc]
    return losses


@dataclass(frozen=True)
class _LogitMap:
    """The map from hidden states to logits: tokens at a time, type, scale and cap."""

    tokens: int
    dtype: torch.dtype
    scale: float
    cap: float | None

    def chunks(self, num_tokens: int) -> list[slice]:
        starts = range(0, num_tokens, self.tokens)
        return [slice(start, start + self.tokens) for start in starts]

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return logits `[m, V]`, float32 or wider."""
        logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
        if self.scale != 1:
            logits = logits * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return at_least_float32(logits)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of `logits` by `W h + b`."""
        if not self.cap:
            return self.scale
        return (1 - (logits / self.cap) ** 2).mul_(self.scale)


class _LinearCrossEntropy(torch.autograd.Function):
    """An operation from hidden states to losses `[M]` and log-sum-exps `[M]`; keeps no logits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: _LogitMap
    ) -> tuple[Tensor, Tensor]:
        losses, normalisers = [], []
        counted = targets != _IGNORED
        places = targets.clamp(min=0).unsqueeze(1)
        kernels = _kernels(hidden, bias, form)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, weight = hidden.to(form.dtype), weight.to(form.dtype)
            bias = None if bias is None else bias.to(form.dtype)
            for part in form.chunks(len(targets)):
                if kernels is not None:
                    loss, normaliser = kernels.row_losses(
                        hidden[part] @ weight.T, targets[part], scale=form.scale
                    )
                    losses.append(loss)
                    normalisers.append(normaliser)
                    continue
                logits = form.logits(hidden[part], weight, bias)
                normaliser = logits.logsumexp(dim=1)
                loss = normaliser - logits.gather(1, places[part]).squeeze(1)
                losses.append(loss * counted[part])
                normalisers.append(normaliser)
        return torch.cat(losses), torch.cat(normalisers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        hidden, weight, bias, targets, ctx.form = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(hidden, weight, bias, targets, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        form: _LogitMap = ctx.form
        to_hidden, to_weight, to_bias = [], None, None
        factors = (gradients[0] * (targets != _IGNORED)).unsqueeze(1)
        places = targets.clamp(min=0).unsqueeze(1)
        kernels = _kernels(hidden, bias, form)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = weight.to(form.dtype)
            shift = None if bias is None else bias.to(form.dtype)
            for part in form.chunks(len(targets)):
                inputs = hidden[part].to(form.dtype)
                if kernels is not None:
                    by_logits = by_map = kernels.logit_gradients_(
                        inputs @ narrow.T, targets[part], normaliser[part], gradients[0][part],
                        scale=form.scale,
                    )  # fmt: skip
                else:
                    logits = form.logits(inputs, narrow, shift)
                    derivative = form.derivative(logits)
                    by_logits = logits.sub_(normaliser[part].unsqueeze(1)).exp_()  # the softmax
                    by_logits.scatter_add_(1, places[part], -torch.ones_like(factors[part]))
                    by_map = by_logits.mul_(factors[part]).mul_(derivative).to(form.dtype)
                to_hidden.append((by_map @ narrow).to(hidden.dtype))
                # Sums over many chunks are taken in float32 or wider.
                if ctx.needs_input_grad[1]:
                    to_weight = _sum(to_weight, by_map.T @ inputs)
                if bias is not None and ctx.needs_input_grad[2]:
                    to_bias = _sum(to_bias, by_logits.sum(dim=0))
        return (
            torch.cat(to_hidden),
            None if to_weight is None else to_weight.to(weight.dtype),
            None if bias is None or to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
        )


def _kernels(hidden: Tensor, bias: Tensor | None, form: _LogitMap) -> Any:
    """Return kernels for rows of logits, where there are any for this device and head."""
    fits = bias is None and not form.cap and form.dtype.itemsize <= 4
    if not fits or hidden.device.type != "cuda" or _is_transformed():
        return None
    try:
        from bif.language import row_kernels
    except ImportError:  # torch without triton
        return None
    return row_kernels


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return at_least_float32(part) if total is None else total.add_(part)


def _base_model(model: nn.Module) -> nn.Module:
    """Return the model of transformers inside a PEFT model, its adapters in place."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def _is_transformed() -> bool:
    """Return whether values cannot be read: under vmap, grad or compile."""
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()


def _refuse_another_head(model: nn.Module, head: LinearHead, batch: Batch) -> None:
    """Raise unless the model's own logits are those of `head`, on the first tokens of an item."""
    ids = batch["input_ids"][:1, :8]
    linear = head.linear
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.double()
        hidden = head.hidden_states(ids, None)
        bias = None if linear.bias is None else linear.bias.to(hidden.dtype)
        form = _LogitMap(1, hidden.dtype, head.scale, head.cap)
        got = form.logits(hidden[0], linear.weight.to(hidden.dtype), bias).double()
    gap, size = float((got - expected[0]).abs().max()), float(expected.abs().max())
    if not gap <= 0.05 * size:
        raise NoLinearHead(
            f"the logits of {type(model).__name__} are not those of its linear head: they differ "
            f"by up to {gap:.3g}, where the largest is {size:.3g}. Something comes after the "
            "linear map besides a scale (logit_scale, logits_scaling) or a soft cap "
            "(final_logit_softcapping). Use bif.losses.next_token."
        )
