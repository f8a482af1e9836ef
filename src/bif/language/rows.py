"""Passages as padded rows of tensors, with what their loss needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif.language.passages import Passage, Task, piece_reader
from bif.language.sequences import Sequences

MASKED_FRACTION = 0.15
"""Fraction of a passage's tokens that are masked; at least one is."""
_LABEL_WORDS = 8
"""Words of a text that stand for its label in tables."""


@dataclass(frozen=True)
class RowMaker:
    """A maker of items from passages.

    Right padding is never read by a causal model's counted tokens, so its rows go without an
    attention mask, which attention kernels take fastest.

    Args:
        tokenizer: The tokenizer of transformers.
        task: What is predicted: the next token, masked tokens, or the text's class.
        classes: The classifier's class numbers by name.
        seed: Seed of the masks: the same passage is masked in the same places at every draw,
            whatever else there is.

    Raises:
        ValueError: A masked language model whose tokenizer has no mask token.
    """

    tokenizer: Any
    task: Task
    classes: Mapping[str, int]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task == "masked" and self.tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which a masked language model reads in place of "
                "what it predicts: set tokenizer.mask_token."
            )

    def items(self, passages: Sequence[Passage]) -> Sequences:
        """Return items with ids, labels and tokens to show.

        `text` and `source` are kept with the scores.

        Raises:
            ValueError: A document without a label, or with one that the classifier does not know.
        """
        lengths = [len(passage.tokens) for passage in passages]
        piece = piece_reader(self.tokenizer)
        texts = [
            self.tokenizer.decode(p.tokens) if p.is_part else p.document.whole for p in passages
        ]
        pieces = [[*map(piece, passage.tokens)] for passage in passages]
        about = {
            "text": texts,
            "source": [p.document.source for p in passages],
        }
        numbers = [self._class(p) for p in passages] if self.task == "classification" else None
        if numbers is None:
            labels = [" ".join(text.split()[:_LABEL_WORDS]) for text in texts]
        else:
            names = {number: name for name, number in self.classes.items()}
            labels = [names.get(number, str(number)) for number in numbers]
        data = self._tensors(passages, max(lengths))
        if numbers is not None:
            data["label"] = torch.tensor(numbers)
        return Sequences(
            data,
            lengths=lengths,
            ids=[passage.id for passage in passages],
            labels=labels,
            about=about,
            tokens=pieces,
            token_mask=data["labels"] != -100 if "labels" in data else None,
        )

    def _tensors(self, passages: Sequence[Passage], longest: int) -> dict[str, Tensor]:
        pad = padding_token(self.tokenizer)
        tokens = torch.full((len(passages), longest), pad, dtype=torch.int64)
        labels = torch.full_like(tokens, -100)
        attention = torch.zeros_like(tokens)
        for row, passage in enumerate(passages):
            length = len(passage.tokens)
            tokens[row, :length] = torch.tensor(passage.tokens)
            attention[row, :length] = 1
            places = torch.from_numpy(self._predicted_positions(passage))
            labels[row, places] = tokens[row, places]
            if self.task == "masked":
                tokens[row, places] = self.tokenizer.mask_token_id
        if self.task == "causal":
            return {"input_ids": tokens, "labels": labels}
        if self.task == "masked":
            return {"input_ids": tokens, "labels": labels, "attention_mask": attention}
        return {"input_ids": tokens, "attention_mask": attention}

    def _predicted_positions(self, passage: Passage) -> np.ndarray:
        """Return positions of the tokens that are predicted."""
        counted = np.flatnonzero(passage.counted)
        if self.task != "masked":
            return counted
        digest = hashlib.sha256(f"{self.seed}|{passage.id}".encode()).digest()
        source = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        number = max(1, round(MASKED_FRACTION * len(counted)))
        return np.sort(source.choice(counted, size=number, replace=False))

    def _class(self, passage: Passage) -> int:
        document, label = passage.document, passage.document.label
        numbers = set(self.classes.values())
        if isinstance(label, int) and label in numbers:
            return label
        if str(label) in self.classes:
            return self.classes[str(label)]
        known = ", ".join(f"{name!r} ({number})" for name, number in self.classes.items())
        missing = "has no label" if label is None else f"has the label {label!r}"
        raise ValueError(
            f"{document.where} {missing}: the classifier knows {known}. Give one of these."
        )


def padding_token(tokenizer: Any) -> int:
    """Return the padding token, else the end-of-sequence token, else 0.

    No counted token reads it.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0
