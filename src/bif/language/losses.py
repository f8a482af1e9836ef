"""Losses of masked language models and of classifiers of texts; `bif.losses` has the next token's.

Batches are dicts; models are called with `input_ids` and `attention_mask` `[B, T]`.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bif.language.linear_loss import chunked_next_token, chunked_next_token_mean
from bif.language.passages import Task
from bif.problem.losses import (
    at_least_float32,
    averages,
    next_token,
    next_token_mean,
    reads_masks,
    refuse_other_than_texts,
    token_cross_entropy,
)
from bif.types import Batch, ItemLoss


@reads_masks
def masked_token(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of every masked token, nats, `[B, T]`; 0 elsewhere.

    `batch` has `input_ids`, `attention_mask` and `labels` `[B, T]`, -100 where nothing is masked.
    """
    return token_cross_entropy(_logits(model, batch), batch["labels"])


def masked_tokens(batch: Batch) -> Tensor:
    """Return the number of masked tokens of each item, `[B]`, at least 1."""
    return (batch["labels"] != -100).sum(dim=1).clamp(min=1)


@reads_masks
@averages(masked_tokens)
def masked_token_mean(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean over an item's masked tokens, `[B]`, in place of their sum."""
    return masked_token(model, batch).sum(dim=1) / masked_tokens(batch)


@reads_masks
def label_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of the text's class, nats, `[B]`.

    `batch` has `label` `[B]` besides `input_ids` and `attention_mask`.
    """
    logits = at_least_float32(_logits(model, batch))
    return F.cross_entropy(logits, batch["label"], reduction="none")


Reduction = Literal["sum", "mean"]
"""How an item's loss is made of its tokens': by their sum, or by their mean."""
SUMS: dict[Task, ItemLoss] = {
    "causal": next_token,
    "masked": masked_token,
    "classification": label_cross_entropy,
}
"""The loss of each task, summed over an item's tokens."""
MEANS: dict[Task, ItemLoss] = {
    "causal": next_token_mean,
    "masked": masked_token_mean,
    "classification": label_cross_entropy,
}
"""The loss of each task, averaged over an item's tokens: each item weighs the same at any
length."""
CHUNKED: dict[Reduction, ItemLoss] = {"sum": chunked_next_token, "mean": chunked_next_token_mean}
"""Next-token losses without the logits of the vocabulary."""


def default_loss(task: Task, reduction: Reduction) -> ItemLoss:
    """Return the cross-entropy of what is predicted, summed or averaged over an item's tokens."""
    return (SUMS if reduction == "sum" else MEANS)[task]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    refuse_other_than_texts(batch)
    output = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return output if isinstance(output, Tensor) else output.logits
