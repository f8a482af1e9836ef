"""The problem of a language model and its documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from bif.language.documents import Documents, as_documents
from bif.language.linear_loss import LOGITS_AT_ONCE, NoLinearHead
from bif.language.losses import CHUNKED, Reduction, default_loss
from bif.language.models import context_length, task_of
from bif.language.passages import Long, Passage, Task, tokenize_documents
from bif.language.rows import RowMaker, padding_token
from bif.language.sequences import Sequences
from bif.problem.columns import Tokens
from bif.problem.literals import require_literal
from bif.problem.packed_sequences import patch_mask_search
from bif.problem.problem import Problem
from bif.problem.weights import trainable
from bif.types import ItemLoss

DEFAULT_LENGTH = 512
"""Tokens of a passage, unless the model's context is shorter."""
LARGE_VOCABULARY = 8192
"""Pieces of a vocabulary whose logits of next tokens are not held in full."""


def language_problem(
    model: nn.Module,
    tokenizer: Any,
    *,
    train: Documents,
    queries: Documents | Mapping[str, Documents],
    candidates: Documents | Mapping[str, Documents] | None = None,
    task: Task | None = None,
    max_length: int | None = None,
    long: Long = "truncate",
    append_eos: bool = False,
    loss: ItemLoss | None = None,
    reduction: Reduction = "sum",
    tokens: Tokens | None = None,
    seed: int = 0,
) -> Problem:
    """Return a problem of documents: each an item, never two in one attention window.

    Weights that the model has twice, such as embedding and output, are sampled as one.  What was
    cut, chosen or shared is in the problem's `notes`, which a run keeps in `run.json`.

    Args:
        model: A model of transformers, or of peft around one.
        tokenizer: The model's tokenizer.
        train: What the model was trained on: documents, texts, or records with the fields of a
            file's; what has no id is named after its place, "train-1".
        queries: Documents of the queries, or a mapping from group names to such.
        candidates: Documents that were not trained on, to be scored as well, or groups of such.
        task: What the model predicts: the next token ("causal"), masked tokens ("masked") or the
            text's class ("classification"); by the model's class by default.
        max_length: Tokens of a passage; by default 512, or the model's context if that is less.
        long: Documents of more are cut there ("truncate"), or become several items ("split").
        append_eos: Whether texts and completions of causal models end with the end-of-sequence
            token.
        loss: `loss(model, batch) -> [B]` or `[B, T]`; by default the cross-entropy of what is
            predicted.  Of a causal model of at least 8,192 pieces it is computed some tokens at a
            time, `bif.language.linear_loss.chunked_next_token`, where the head allows it.
        reduction: Reduction of the default loss: the "sum" over an item's tokens, or their "mean".
        tokens: "train", "query" or "both": on that side every token that counts has a column of its
            own, as in `bif.Problem`.
        seed: Seed of the masks of a masked language model.

    Raises:
        TypeError: The model is none of transformers; documents are something else.
        ValueError: Tokenizer and model of different vocabularies; a context shorter than
            `max_length`; documents without a token that counts or with an unknown label.
    """
    _refuse_foreign(model)
    for name, value, literal in (
        ("task", task or "causal", Task), ("long", long, Long), ("reduction", reduction, Reduction),
    ):  # fmt: skip
        require_literal(name, value, literal)
    chosen = task or task_of(model)
    limit = context_length(model, tokenizer)
    length = _passage_length(max_length, limit)
    classes = cast(Any, model).config.label2id if chosen == "classification" else {}
    patch_mask_search()
    maker = RowMaker(tokenizer, chosen, classes or {}, seed)
    _refuse_other_padding(model, tokenizer, chosen)
    notes = [*_note_length(max_length, length, limit), *_note_padding(tokenizer)]

    def items(given: Documents, name: str) -> Sequences:
        documents = as_documents(given, name)
        found, said = tokenize_documents(
            documents, tokenizer, task=chosen, max_length=length, long=long, append_eos=append_eos
        )
        _refuse_other_vocabulary(model, tokenizer, found)
        notes.extend(f"{name}: {line}" for line in said)
        return maker.items(found)

    groups, others = _named(queries, "query"), _named(candidates or {}, "candidate")
    data: dict[str, Any] = {
        "train": items(train, "train"),
        "queries": {name: items(documents, name) for name, documents in groups.items()},
        "candidates": {n: items(d, n) for n, d in others.items()} or None,
    }

    def make_problem(loss: ItemLoss) -> Problem:
        return Problem(model, loss, **data, tied_weights="share", tokens=tokens)

    pieces = cast(Any, model).get_input_embeddings().weight.shape[0]
    if loss is not None:
        problem = make_problem(loss)
    elif chosen == "causal" and pieces >= LARGE_VOCABULARY:
        problem, said = _chunked_problem(make_problem, pieces, reduction)
        notes.append(said)
    else:
        problem = make_problem(default_loss(chosen, reduction))
    problem.notes = (*notes, *_note_tied(model))
    return problem


def _named(given: Documents | Mapping[str, Documents], name: str) -> Mapping[str, Documents]:
    """Return groups by name; documents without one get `name`."""
    return given if isinstance(given, Mapping) else {name: given}


def _refuse_foreign(model: nn.Module) -> None:
    if not hasattr(model, "config"):
        raise TypeError(
            f"expected a model of transformers, got {type(model).__name__}: use bif.Problem with "
            "bif.language.Sequences."
        )


def _passage_length(max_length: int | None, limit: int | None) -> int:
    """Return the tokens of a passage.

    Args:
        max_length: The length that was asked for.
        limit: The model's context, if it has one.

    Raises:
        ValueError: More than the model reads.
    """
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(
            f"max_length is {max_length}, and the model reads at most {limit} tokens at once: "
            "lower max_length; long='split' keeps what is beyond it as further items."
        )
    return max_length or min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)


def _chunked_problem(
    make_problem: Callable[[ItemLoss], Problem], pieces: int, reduction: Reduction
) -> tuple[Problem, str]:
    """Return the problem, with the chunked loss if the head allows it, and a note."""
    try:
        problem = make_problem(CHUNKED[reduction])
    except ValueError as error:
        if not isinstance(error.__cause__, NoLinearHead):
            raise
        problem = make_problem(default_loss("causal", reduction))
        return problem, f"loss: all {pieces:,} logits of each token at once, for {error.__cause__}"
    tokens = max(1, LOGITS_AT_ONCE // pieces)
    return problem, (
        f"loss: logits of {pieces:,} pieces are computed {tokens:,} tokens at a time and never "
        "held in full; values are the same"
    )


def _note_length(asked: int | None, length: int, limit: int | None) -> list[str]:
    if asked is not None:
        return []
    why = "the model's context" if length == limit else "the default"
    return [f"max_length = {length} tokens: {why}"]


def _note_padding(tokenizer: Any) -> list[str]:
    if tokenizer.pad_token_id is not None:
        return []
    if tokenizer.eos_token_id is None:
        return ["the tokenizer has no padding token: token 0 pads, and no loss reads it"]
    return ["the tokenizer has no padding token: its end-of-sequence pads, and no loss reads it"]


def _note_tied(model: nn.Module) -> list[str]:
    names, moving = dict[int, list[str]](), trainable(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [
        f"tied weights: {', '.join(others)} and {owner} are one and are sampled as one"
        for owner, *others in names.values()
        if others and owner in moving
    ]


def _refuse_other_vocabulary(model: nn.Module, tokenizer: Any, found: list[Passage]) -> None:
    number = cast(Any, model).get_input_embeddings().weight.shape[0]
    special = [token for token in (tokenizer.mask_token_id,) if token is not None]
    for passage in found:
        largest = max(*passage.tokens, *special, 0)
        if largest >= number:
            raise ValueError(
                f"tokenizer and model have different vocabularies: {passage.document.where} has "
                f"token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and the model "
                f"has embeddings of tokens 0 to {number - 1}. Load the model's own tokenizer."
            )


def _refuse_other_padding(model: nn.Module, tokenizer: Any, task: Task) -> None:
    """Raise where a classifier, which looks for the last token, knows other padding."""
    got, expected = cast(Any, model).config.pad_token_id, padding_token(tokenizer)
    if task == "classification" and got != expected:
        raise ValueError(
            f"the classifier takes token {got} for padding, and the tokenizer pads with "
            f"{expected}: set model.config.pad_token_id = {expected}."
        )
