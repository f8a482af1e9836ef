"""The setting of text: characters of two domains, a third outside, a tiny transformer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shifts.setting import Setting
from bif import Items
from bif.evaluate import Recipe
from bif.losses import next_token_mean

FILES = {
    "stories": "tinystories/tinystories_sample.txt",
    "plays": "tinyshakespeare/input.txt",
    "wiki": "wikitext-2/valid.txt",
}
"""Domains; the last is outside of the training."""
LETTERS = "?abcdefghijklmnopqrstuvwxyz .,'\n"
"""Characters in lower case; the first stands for all others."""
LENGTH = 24
"""Characters of a window that are predicted."""
DECAY = 0.01


class Transformer(nn.Module):
    """A transformer of one block with causal attention of two heads, `[B, T]` to `[B, T, V]`.

    Args:
        width: Of the residual stream.
        length: Characters at most.
    """

    def __init__(self, width: int = 16, length: int = LENGTH + 1) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Embedding(length, width)
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, len(LETTERS), bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.letters(ids) + self.places.weight[: ids.shape[1]]
        x = x + self._attention(self.before(x))
        x = x + self.narrow(torch.tanh(self.wide(self.between(x))))
        return self.head(self.after(x))

    def _attention(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        q, k, v = (
            layer(x).reshape(count, length, 2, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.mT * (width // 2) ** -0.5).masked_fill(later, -1e9)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(count, length, width))


def text(data: Path | None, device: str, *, tiny: bool) -> Setting:
    """Return a transformer of 3,616 weights on 120 windows of stories and plays."""
    assert data is not None
    counts = (12, 6, 4) if tiny else (60, 40, 20)
    items, queries, tuning = _windows(data, counts, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = Transformer(8 if tiny else 16).to(device)
    steps, fine = (20, 5) if tiny else (500, 60)
    return Setting(
        "text", start, next_token_mean, items, queries, tuning,
        Recipe(steps, 0.5, momentum=0.9, weight_decay=DECAY, schedule="cosine"), False,
        {"checkpoint": Recipe(fine, 0.1, momentum=0.9, weight_decay=DECAY, batch_size=8 if tiny
                              else 40, schedule="cosine")},
        ("stories", "plays"), (), DECAY,
        ((24.0, 0.1),) if tiny else ((10.0, 0.03),),
        (0.1,) if tiny else (0.01, 0.1), 2 if tiny else 8, 40 if tiny else 100,
    )  # fmt: skip


def _windows(data: Path, counts: tuple[int, ...], device: str) -> list[Items]:
    """Return windows of each domain, one part of its text for each of these.

    No two windows share a character.
    """
    source = np.random.default_rng(0)
    windows: list[list[Tensor]] = [[] for _ in counts]
    for file in FILES.values():
        ids = _ids((data / file).read_text(encoding="utf-8"))
        whole = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
        chosen = source.permutation(len(whole))[: sum(counts)]
        for found, places in zip(windows, np.split(chosen, np.cumsum(counts)[:-1]), strict=True):
            found.append(torch.from_numpy(whole[places]).to(device))
    return [
        Items(
            {"input_ids": torch.cat(found)}, labels=[name for name in FILES for _ in range(count)]
        )
        for found, count in zip(windows, counts, strict=True)
    ]


def _ids(content: str) -> np.ndarray:
    """Return the number of every character."""
    number = {letter: place for place, letter in enumerate(LETTERS)}
    return np.array([number.get(letter, 0) for letter in content.lower()], dtype=np.int64)
