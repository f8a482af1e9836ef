"""Losses replaced by their Bregman divergence at w*: the Gauss-Newton sibling of the response."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from bif.problem import losses
from bif.problem.losses import at_least_float32
from bif.types import Batch, ItemLoss


def bregman_divergence(loss: ItemLoss, center: nn.Module) -> ItemLoss:
    """The divergence of a loss, in the space of the model's outputs, from the trained model.

    `D(f, f*) = l(f) - l(f*) - ∇_f l(f*) · (f - f*)`: 0 and flat at w* for every item, whatever its
    residual, with the Gauss-Newton matrix as its curvature there.  For cross-entropy it is
    `KL(softmax(f*) ‖ softmax(f))`, for squared error `½ |f - f*|²`; targets only say which tokens
    count.

    Args:
        loss: One of `bif.losses`: cross_entropy, squared_error, next_token, next_token_mean.
        center: The trained model in evaluation mode; evaluated, never changed.

    Returns:
        `divergence(model, batch) -> [B]`, or one a token `[B, T]`.

    Raises:
        ValueError: A loss whose form in output space is not known.

    Source: Bae et al. 2022 (arXiv 2209.05364), the proximal Bregman objective.
    """
    known: dict[ItemLoss, Callable[[nn.Module, nn.Module, Batch], Tensor]] = {
        losses.cross_entropy: _cross_entropy,
        losses.squared_error: _squared_error,
        losses.next_token: _next_token,
        losses.next_token_mean: _next_token_mean,
    }
    if loss not in known:
        names = ", ".join(f"bif.losses.{getattr(f, '__name__', f)}" for f in known)
        raise ValueError(
            f"the Bregman divergence of {getattr(loss, '__name__', loss)!r} is not known, for a "
            f"loss of (model, batch) does not show its outputs: expected one of {names}. Use "
            "curvature='hessian', which takes any loss."
        )
    divergence = known[loss]

    def of_items(model: nn.Module, batch: Batch) -> Tensor:
        return divergence(model, center, batch)

    return of_items


def _cross_entropy(model: nn.Module, center: nn.Module, batch: Batch) -> Tensor:
    inputs, _ = batch
    return _relative_entropy(center(inputs), model(inputs))


def _squared_error(model: nn.Module, center: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    away = model(inputs).reshape(targets.shape) - center(inputs).reshape(targets.shape)
    return 0.5 * (away**2).flatten(1).sum(dim=1) if away.dim() > 1 else 0.5 * away**2


def _next_token(model: nn.Module, center: nn.Module, batch: Batch) -> Tensor:
    divergences = _relative_entropy(_next_logits(center, batch), _next_logits(model, batch))
    return divergences.masked_fill(~losses.counted(batch), 0.0)


def _next_token_mean(model: nn.Module, center: nn.Module, batch: Batch) -> Tensor:
    return losses.mean_over_counted(_next_token(model, center, batch), batch)


def _relative_entropy(center: Tensor, logits: Tensor) -> Tensor:
    """`KL(softmax(center) ‖ softmax(logits))` over the last axis."""
    log_center = F.log_softmax(at_least_float32(center), dim=-1)
    log_model = F.log_softmax(at_least_float32(logits), dim=-1)
    return (log_center.exp() * (log_center - log_model)).sum(dim=-1)


def _next_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of every next token, `[B, T - 1, V]`, called as `bif.losses.next_token` calls."""
    mask = batch.get("attention_mask")
    output = (
        model(batch["input_ids"])
        if mask is None
        else model(batch["input_ids"], attention_mask=mask)
    )
    return (output if isinstance(output, Tensor) else output.logits)[:, :-1]
