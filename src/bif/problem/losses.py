"""Per-item losses and observables.

Every function here takes `(model, batch)` and returns one number an item `[B]`, or one a token
`[B, T]`; token losses are *summed* to the item's loss by the library.  `batch` is `(inputs,
targets)` for the first three and a dict with `input_ids` for language models; another is a
TypeError that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif.problem.packed_sequences import one_text_a_row
from bif.problem.positions import row_positions
from bif.types import Batch, ItemLoss

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def averages(count: Callable[[Batch], Tensor]) -> Callable[[ItemLoss], ItemLoss]:
    """Mark a loss as the mean of several log-likelihoods of an item, as per-token losses are.

    `nbeta · mean loss` is the negative log-likelihood of all train items where nbeta is their
    number, if an item's loss is its own negative log-likelihood; where it is a mean of T of them,
    nbeta is T times as large.  The default of nbeta follows the mark, and nothing else does.

    Args:
        count: `count(batch) -> [B]`, how many log-likelihoods each item's loss is the mean of.

    Returns:
        A decorator; the loss stays what it is.
    """

    def mark(loss: ItemLoss) -> ItemLoss:
        loss.averages = count  # type: ignore[attr-defined]
        return loss

    return mark


def plain_form(loss: ItemLoss) -> ItemLoss:
    """Return the loss that a loss is another form of, or the loss itself."""
    return getattr(loss, "form_of", loss)


def form_of(plain: ItemLoss) -> Callable[[_Loss], _Loss]:
    """Mark a loss as having the values of another, which torch differentiates in every way.

    A response by solving takes the other: it needs derivatives in both modes.

    Args:
        plain: The other loss.

    Returns:
        A decorator; the loss stays what it is.
    """

    def mark(loss: _Loss) -> _Loss:
        loss.form_of = plain  # type: ignore[attr-defined]
        return loss

    return mark


def reads_masks(loss: _Loss) -> _Loss:
    """Mark a loss of texts that is to be the same wherever a row's `attention_mask` pads it."""
    loss.reads_masks = True  # type: ignore[attr-defined]
    return loss


def counted_tokens(batch: Batch) -> Tensor:
    """Return the number of next tokens of each item that count, `[B]`, at least 1."""
    return counted(batch).sum(dim=1).clamp(min=1)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return `-log softmax(model(x))[y]`, nats, `[B]`; batch `(x [B, …], y [B])`."""
    inputs, targets = _pair(batch)
    return F.cross_entropy(at_least_float32(_output(model, inputs)), targets, reduction="none")


def margin(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-odds of the label, `log(p / (1 - p))`, `[B]`.

    It is the label's logit minus the log-sum-exp of the others.

    Higher is better.  Source: TRAK (arXiv 2303.14186), eq. 6.
    """
    inputs, targets = _pair(batch)
    logits = at_least_float32(_output(model, inputs))
    # Not F.one_hot: it looks at the targets' values, which vmap cannot take.
    label = targets.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    others = logits.masked_fill(label, float("-inf")).logsumexp(dim=-1)
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - others


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Return `½ (y - f(x))²`, summed over outputs, `[B]`; batch `(x [B, …], y [B] or [B, K])`."""
    inputs, targets = _pair(batch)
    residual = targets - _output(model, inputs).reshape(targets.shape)
    return 0.5 * (residual**2).flatten(1).sum(dim=1) if residual.dim() > 1 else 0.5 * residual**2


@reads_masks
def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of every next token, nats, `[B, T - 1]`; 0 where masked.

    `batch` has `input_ids` `[B, T]`, and may have `attention_mask` `[B, T]` (0 on padding) and
    `labels` `[B, T]` (-100 on tokens that do not count; `input_ids` by default).  The model is
    called with `input_ids` and `attention_mask` and returns logits `[B, T, V]` or an object with
    `.logits`.  With a mask rows may be padded on either side: the model gets `position_ids` too
    where it takes them, and no token counts that follows padding.  Without a mask every row is one
    text, padded on the right if at all.
    """
    refuse_other_than_texts(batch)
    mask = batch.get("attention_mask")
    if mask is None:
        with one_text_a_row():
            output = model(batch["input_ids"])
    else:
        output = model(batch["input_ids"], attention_mask=mask, **row_positions(model, mask))
    logits = output if isinstance(output, Tensor) else output.logits
    return token_cross_entropy(logits[:, :-1], next_targets(batch))


@reads_masks
@averages(counted_tokens)
def next_token_mean(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean over an item's counted tokens, `[B]`, in place of their sum.

    Influences of means carry a factor `1/(T_i T_j)` against those of sums.
    """
    return mean_over_counted(next_token(model, batch), batch)


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of tokens `[B, T]` under logits `[B, T, V]`; 0 where -100 is asked.

    Tokens are rows: with the vocabulary as the second of three axes a GPU's softmax runs through it
    one number after another, and takes longer than the layers of the model do.
    """
    rows = at_least_float32(logits).flatten(0, 1)
    losses = F.cross_entropy(rows, targets.flatten(), ignore_index=-100, reduction="none")
    return losses.view(targets.shape)


def refuse_other_than_texts(batch: Batch) -> None:
    """Raise unless a batch is a dict with token ids.

    Raises:
        TypeError: It is not.
    """
    if isinstance(batch, Mapping) and "input_ids" in batch:
        return
    names = f" of {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
    raise TypeError(
        f"losses of texts read token ids, and a batch is a {type(batch).__name__}{names}: pass "
        "{'input_ids': int64 [N, T]}, with 'attention_mask' [N, T] where rows are padded; texts of "
        "different lengths as bif.language.Sequences; documents by bif.language.language_problem"
    )


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a batch.

    Raises:
        TypeError: The batch is something else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping | tuple | list):
        what += f" of {', '.join(map(repr, batch)) if isinstance(batch, Mapping) else len(batch)}"
    raise TypeError(
        f"the loss reads (inputs, targets), and a batch is {what}: pass a tuple of two tensors, or "
        "a loss of your own, loss(model, batch) -> [B]; bif.losses.next_token reads token ids"
    )


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's output for the inputs.

    Raises:
        TypeError: It is no tensor.
    """
    output = model(inputs)
    if isinstance(output, Tensor):
        return output
    fields = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the loss reads a tensor, and the model returns a {type(output).__name__}{fields}: wrap "
        "the model, or write a loss of your own, loss(model, batch) -> [B], that takes what it "
        "needs, such as model(x).logits"
    )


def mean_over_counted(losses: Tensor, batch: Batch) -> Tensor:
    """Return the mean of next tokens' losses `[B, T - 1]` over those that count, `[B]`."""
    return losses.sum(dim=1) / counted_tokens(batch)


def counted(batch: Batch) -> Tensor:
    """Return which next tokens count, bool `[B, T - 1]`."""
    return next_targets(batch) != -100


def next_targets(batch: Batch) -> Tensor:
    """Return what each token but the last is to predict, `[B, T - 1]`; -100 where none counts.

    Padding does not, nor does the token after it, which nothing predicts.
    """
    targets, mask = batch.get("labels", batch["input_ids"])[:, 1:], batch.get("attention_mask")
    if mask is None:
        return targets
    return targets.masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), -100)


def per_item(losses: Tensor) -> Tensor:
    """Return item losses `[B]` from `[B]` or token losses `[B, T]`, which are summed."""
    return losses if losses.dim() == 1 else losses.sum(dim=1)


def at_least_float32(losses: Tensor) -> Tensor:
    """Return losses in float32, or wider if they already are."""
    return losses.to(torch.promote_types(losses.dtype, torch.float32))
