"""Small language models of which tokens are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bif
from small_problems import filled, integers

VOCABULARY, WIDTH = 7, 6
TINY = bif.Settings(chains=4, draws=6, burn_in=4, thin=2, step_size=0.05, friction=2.0, gamma=5.0)


class Bigrams(nn.Module):
    """Logits of the next token from the last one, float64."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 3)
        self.head = nn.Linear(3, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(torch.tanh(self.embed(input_ids)))


def bigrams(*, seed: int = 0) -> nn.Module:
    """47 weights."""
    with torch.random.fork_rng(devices=[]):
        return filled(Bigrams(), seed=seed)


def texts(num_items: int, *, seed: int, **about: Any) -> bif.Items:
    """Texts of 2 to 6 tokens, padded on the right, whose tokens but the first count."""
    ids = integers(VOCABULARY, num_items, WIDTH, seed=seed)
    lengths = 2 + integers(WIDTH - 1, num_items, seed=seed + 1)
    real = torch.arange(WIDTH) < lengths[:, None]
    mask = real.numpy().copy()
    mask[:, 0] = False
    pieces = [[f"w{int(t)} " for t in row[:n]] for row, n in zip(ids, lengths, strict=True)]
    given = {"ids": [f"t{i}" for i in range(num_items)], "tokens": pieces, "token_mask": mask}
    return bif.Items({"input_ids": ids, "attention_mask": real.long()}, **{**given, **about})


def problem(tokens: Any = "both", **changed: Any) -> bif.Problem:
    """6 texts, 3 queries."""
    given: dict[str, Any] = {
        "train": texts(6, seed=1, labels=["a", "b", "a", "c", "b", "a"]),
        "queries": texts(3, seed=5),
        "tokens": tokens,
        **changed,
    }
    return bif.Problem(bigrams(), bif.losses.next_token, **given)


def sums_of(scores: np.ndarray, item: np.ndarray, axis: int) -> np.ndarray:
    """Sums along an axis over runs of the same item, in order of their first."""
    order = list(dict.fromkeys(item.tolist()))
    parts = [np.compress(item == i, scores, axis=axis).sum(axis=axis) for i in order]
    return np.stack(parts, axis=axis)
