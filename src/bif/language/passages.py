"""Passages: documents as tokens, cut to the length that a model reads at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bif.language.documents import Document

Task = Literal["causal", "masked", "classification"]
Long = Literal["truncate", "split"]


@dataclass(frozen=True)
class Passage:
    """Tokens of one document, or of a part of it, alone in their attention window.

    Attributes:
        id: The document's id; "ID/0", "ID/1", … for parts of a document.
        document: The document that the tokens are of.
        tokens: T token ids, those that the tokenizer adds included.
        counted: T flags: which tokens' losses count.
        is_part: Whether the document is longer.
    """

    id: str
    document: Document
    tokens: tuple[int, ...]
    counted: tuple[bool, ...]
    is_part: bool = False


def tokenize_documents(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    task: Task = "causal",
    max_length: int,
    long: Long = "truncate",
    append_eos: bool = False,
) -> tuple[list[Passage], list[str]]:
    """Return passages of at most `max_length` tokens, each of one document.

    Of a text every token counts that follows another, of prompt and completion those of the
    completion, of a conversation those that the assistant says, in the tokenizer's chat template.
    A token on the border counts.

    Args:
        documents: One or more.
        tokenizer: The tokenizer of transformers.
        task: In a causal model the first token is not predicted and cannot count.
        max_length: Tokens of a passage, those that the tokenizer adds included.
        long: What becomes of longer documents: "truncate" drops the rest; "split" makes several
            passages, in which every token counts as often as in the whole: once.
        append_eos: Whether texts and completions of causal models end with the end-of-sequence
            token.

    Returns:
        The passages, and what is to be said of documents that were cut.

    Raises:
        ValueError: A document without a token that counts; messages without a chat template, or
            with one that renders the beginning of a conversation otherwise as it goes on; a
            max_length without room; append_eos without such a token.
    """
    window = _Window.of(tokenizer, task=task, max_length=max_length, append_eos=append_eos)
    found: list[Passage] = []
    num_cut = num_lost = num_tokens = num_doubled = 0
    for document, body, counts, has_prefix in _tokenize(documents, tokenizer, window):
        num_doubled += has_prefix
        num_tokens += len(body)
        if long == "truncate":
            num_cut += len(body) > window.capacity(document)
            num_lost += max(0, len(body) - window.capacity(document))
        parts = window.parts(document, body, counts, long=long)
        whole = len(parts) == 1
        kept = [
            Passage(
                document.id if whole else f"{document.id}/{i}",
                document,
                tokens,
                counted,
                is_part=not whole or len(body) > window.capacity(document),
            )
            for i, (tokens, counted) in enumerate(parts)
            if any(counted)
        ]
        if not kept:
            raise ValueError(
                f"{document.where} has no token whose loss counts among its first {max_length}: "
                "it is too short, or its prompt fills max_length. Lengthen max_length, or leave "
                "the document out."
            )
        num_cut += long == "split" and not whole
        found += kept
    notes = _describe_cuts(
        long, documents=len(documents), cut=num_cut, lost=num_lost, tokens=num_tokens,
        passages=len(found), max_length=max_length,
    )  # fmt: skip
    if num_doubled:
        pieces = "".join(tokenizer.convert_ids_to_tokens(list(window.prefix)))
        notes.append(
            f"{num_doubled:,} of {len(documents):,} documents begin with {pieces}, which the "
            "tokenizer puts before a text: it stands there once"
        )
    return found, notes


def _describe_cuts(
    long: Long, *, documents: int, cut: int, lost: int, tokens: int, passages: int, max_length: int
) -> list[str]:
    if not cut:
        return []
    start = f"{cut:,} of {documents:,} documents are longer than {max_length} tokens and were"
    if long == "split":
        return [f"{start} split: {passages:,} passages in all"]
    return [f"{start} cut there: {lost:,} of {tokens:,} tokens are left out"]


@dataclass(frozen=True)
class _Window:
    """The capacity of a passage, and the tokens that the tokenizer puts around a text."""

    max_length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    is_causal: bool

    @classmethod
    def of(cls, tokenizer: Any, *, task: Task, max_length: int, append_eos: bool) -> _Window:
        prefix, suffix = _special_tokens(tokenizer)
        if append_eos and task == "causal" and not suffix:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "append_eos needs an end-of-sequence token, and the tokenizer has none: leave "
                    "it out, or set tokenizer.eos_token."
                )
            suffix = (tokenizer.eos_token_id,)
        window = cls(max_length, prefix, suffix, task == "causal")
        least = len(prefix) + (1 if task == "causal" and prefix else 2) + len(suffix)
        if max_length < least:
            raise ValueError(
                f"max_length is {max_length}: expected at least {least}, with the tokens that the "
                "tokenizer adds."
            )
        return window

    def num_special(self, body: list[int]) -> tuple[int, int]:
        """Return how many tokens before and behind a text the tokenizer has added.

        A rendered chat template has its beginning of sequence already, and is given no other.
        """
        before, after = len(self.prefix), len(self.suffix)
        holds_prefix = before and tuple(body[:before]) == self.prefix
        before = before if holds_prefix and len(body) > before else 0
        holds_suffix = after and tuple(body[-after:]) == self.suffix
        return before, after if holds_suffix and len(body) - before > after else 0

    def capacity(self, document: Document) -> int:
        """Return how many tokens of a document's own fit in one passage."""
        if document.messages:  # the chat template adds its own
            return self.max_length
        return self.max_length - len(self.prefix) - (0 if self.is_causal else len(self.suffix))

    def parts(
        self, document: Document, body: list[int], counts: list[bool], *, long: Long
    ) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
        """Return the tokens and flags of each passage."""
        around = ((), ()) if document.messages else (self.prefix, self.suffix)
        before, after = around[0], () if self.is_causal else around[1]
        capacity = self.capacity(document)
        # Without a token in front the first of each part cannot be predicted: parts share one.
        shared = 1 if self.is_causal and not before else 0
        starts = range(0, max(1, len(body) - shared), capacity - shared) if long == "split" else [0]
        found = []
        for start in starts:
            part = slice(start, start + capacity)
            flags = counts[part]
            if shared:
                flags = [False] * len(flags[:1]) + flags[1:]
            tokens = (*before, *body[part], *after)
            found.append((tokens, (*(False for _ in before), *flags, *(False for _ in after))))
        return found


def _tokenize(
    documents: Sequence[Document], tokenizer: Any, window: _Window
) -> Iterator[tuple[Document, list[int], list[bool], bool]]:
    """Yield each document, its own tokens, which of them count, and whether a prefix was cut.

    Last: whether it begins with what the tokenizer adds, which is taken off.
    """
    spans = [_spans(document, tokenizer) for document in documents]
    texts = list(dict.fromkeys(text for whole, parts in spans for pair in [(whole,), *parts]
                               for text in pair))  # fmt: skip
    ids = dict(zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"],
                   strict=True))  # fmt: skip
    for document, (whole, parts) in zip(documents, spans, strict=True):
        body = list(ids[whole])
        counts = [not parts] * len(body)
        for before, upto in parts:
            start, stop = _num_shared(ids[before], body), _num_shared(ids[upto], body)
            counts[start:stop] = [True] * (stop - start)
        num_before = 0
        if not document.messages:
            num_before, num_after = window.num_special(body)
            body = body[num_before : len(body) - num_after]
            counts = counts[num_before : len(counts) - num_after]
            if window.is_causal:
                body += window.suffix
                counts += [True] * len(window.suffix)
        yield document, body, counts, bool(num_before)


def _spans(document: Document, tokenizer: Any) -> tuple[str, list[tuple[str, str]]]:
    """Return the whole text, and what goes before and up to the end of each part that counts."""
    if not document.messages:
        whole = document.prompt + document.text
        return whole, [(document.prompt, whole)] if document.prompt else []
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{document.where} has messages, and the tokenizer has no chat template to render "
            "them: set tokenizer.chat_template, or give 'prompt' and 'completion'."
        )
    turns = [dict(turn) for turn in document.messages]
    whole, parts = _render(tokenizer, turns, document), []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(tokenizer, turns[:i], document, begins_answer=True) if i else ""
        upto = _render(tokenizer, turns[: i + 1], document)
        if not (upto.startswith(before) and whole.startswith(upto)):
            raise ValueError(
                f"{document.where}: the chat template renders turn {i} otherwise as the "
                "conversation goes on, so its tokens cannot be told from the others. End the "
                "conversation there, or give 'prompt' and 'completion'."
            )
        parts.append((before, upto))
    return whole, parts


def _render(
    tokenizer: Any, turns: list[dict[str, str]], document: Document, *, begins_answer: bool = False
) -> str:
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=begins_answer
        )
    except Exception as error:  # whatever a template says of roles that it does not expect
        raise ValueError(
            f"{document.where}: the chat template refuses the messages: {error}"
        ) from error


def _special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that the tokenizer puts before and behind a text."""
    alone = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return tuple(whole[:start]), tuple(whole[start + len(alone) :])
    return (), ()


def _num_shared(these: Sequence[int], those: Sequence[int]) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = zip(these, those, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(these), len(those)))


def piece_reader(tokenizer: Any) -> Callable[[int], str]:
    """Return a function from tokens to their texts, with the space in front of a word."""
    known: dict[int, str] = {}

    def piece(token: int) -> str:
        if token not in known:
            text = tokenizer.decode([token])
            # Decoders of sentencepiece drop the space in front of what begins a text.
            begins_word = str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
            known[token] = f" {text}" if begins_word and not text.startswith(" ") else text
        return known[token]

    return piece
