"""Sequences of characters in three groups: repeated segments, paired delimiters, plain text."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALPHABET = string.ascii_letters + string.digits + " .,;:!?'\"()[]-"
GROUPS = ("induction", "delimiters", "words")
LENGTH = 48
PERIODS = (12, 20)
"""Shortest and longest segment, so that no head finds the first copy by position alone."""
_CLOSES = {'"': '"', ")": "(", "]": "["}
"""What closes a pair, and what opens it."""


@dataclass(frozen=True)
class Group:
    """Sequences of one group.

    Attributes:
        ids: Characters as positions in `ALPHABET`, `[N, T]`.
        asked: Tokens that a query of the group asks about, bool `[N, T]`.
        periods: Length of the repeated segment, `[N]`; 0 without one.
    """

    ids: Tensor
    asked: Tensor
    periods: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Group:
        """Return the sequences on a device."""
        return Group(self.ids.to(device), self.asked.to(device), self.periods.to(device))

    def part(self, begin: int, end: int) -> Group:
        """Return some of the sequences."""
        return Group(self.ids[begin:end], self.asked[begin:end], self.periods[begin:end])

    def first_copy(self) -> Tensor:
        """Return the predicted tokens of the first copy of a segment, bool `[N, T]`."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (place >= 1) & (place < self.periods[:, None])


def repeated(count: int, source: np.random.Generator) -> Group:
    """Return sequences of one random segment without a character twice, again and again.

    The tokens asked about are those of the second copy whose predecessor came before.
    """
    low, high = PERIODS
    periods = torch.from_numpy(source.integers(low, high + 1, size=count))
    orders = np.argsort(source.random((count, len(ALPHABET))), axis=1)
    place = torch.arange(LENGTH)
    ids = torch.from_numpy(orders).gather(1, place % periods[:, None])
    asked = (place > periods[:, None]) & (place < 2 * periods[:, None])
    return Group(ids, asked, periods)


def windows(texts: Iterable[str], *, seed: int) -> dict[str, Group]:
    """Return windows of texts that begin with a word, in random order.

    "delimiters" have a pair of quotes or brackets and are asked about what closes it; "words" have
    none and are asked about letters within words.  A window with half a pair, or with a character
    that is not in the alphabet, is left out.
    """
    found: dict[str, list[tuple[list[int], list[bool]]]] = {"delimiters": [], "words": []}
    number = {sign: i for i, sign in enumerate(ALPHABET)}
    for text in texts:
        words = " ".join(text.split()).replace("“", '"').replace("”", '"')
        for begin in range(0, len(words) - LENGTH, LENGTH):
            start = words.find(" ", begin) + 1
            window = words[start : start + LENGTH]
            if start == 0 or len(window) < LENGTH or not set(window) <= set(ALPHABET):
                continue
            kind, asked = _asked(window)
            if kind:
                found[kind].append(([number[sign] for sign in window], asked))
    groups = {}
    for kind, rows in found.items():
        order = np.random.default_rng(seed).permutation(len(rows))
        ids = torch.tensor([rows[i][0] for i in order]).reshape(-1, LENGTH)
        asked = torch.tensor([rows[i][1] for i in order], dtype=torch.bool).reshape(-1, LENGTH)
        groups[kind] = Group(ids, asked, torch.zeros(len(ids), dtype=torch.long))
    return groups


def _asked(window: str) -> tuple[str, list[bool]]:
    """Return the group of a window, "" if of none, and which of its characters are asked about."""
    if not set(window) & {*_CLOSES, *_CLOSES.values()}:
        pairs = zip(" " + window, window, strict=False)
        return "words", [before.isalpha() and sign.isalpha() for before, sign in pairs]
    marks, is_open = [], set()
    for sign in window:
        left = _CLOSES.get(sign)
        marks.append(left in is_open)
        if left in is_open:
            is_open.remove(left)
        elif sign in _CLOSES.values():
            is_open.add(sign)
        elif left is not None:
            return "", []
    return ("", []) if is_open else ("delimiters", marks)


@dataclass(frozen=True)
class Corpus:
    """Train and held-out sequences by group."""

    train: dict[str, Group]
    held_out: dict[str, Group]


def corpus(texts: Iterable[str], *, sizes: dict[str, int], held_out: int, seed: int) -> Corpus:
    """Return train sequences of the sizes given by group, and held-out ones of each.

    Raises:
        ValueError: The texts have too few windows of a group.
    """
    source = np.random.default_rng(seed)
    groups = {"induction": repeated(sizes["induction"] + held_out, source)}
    groups |= windows(texts, seed=seed)
    for name in GROUPS:
        if len(groups[name]) < sizes[name] + held_out:
            raise ValueError(
                f"the texts have {len(groups[name])} windows of {name!r}, and "
                f"{sizes[name] + held_out} are needed: give more text."
            )
    return Corpus(
        {name: groups[name].part(held_out, held_out + sizes[name]) for name in GROUPS},
        {name: groups[name].part(0, held_out) for name in GROUPS},
    )
