"""Pairs of tokens that belong together, and pairs matched by frequency that do not."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CLASSES = ("same word", "variant", "quotes and brackets", "names again")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\d+|[^\sA-Za-z\d]")
_PARTNERS = {"(": ")", "[": "]"}
_ENDINGS = ("'s", "ing", "ed", "es", "s", "ly", "er", "est")
_SENTENCE_ENDS = frozenset('.!?"')


@dataclass(frozen=True)
class Token:
    """The first token of a word, or a sign.

    Attributes:
        item: The number of the token's text.
        column: The token's column among the scores.
        word: The word as it is written.
        is_name: Capitalised inside of a sentence.
        is_again: The same word came before in the text.
        opens: The kind of bracket or quote that it opens, or "".
        closes: The kind that it closes, or "".
    """

    item: int
    column: int
    word: str
    is_name: bool = False
    is_again: bool = False
    opens: str = ""
    closes: str = ""


def tokens_of(pieces: Sequence[str], columns: Sequence[int], item: int) -> list[Token]:
    """Return the tokens that begin a word and have a column.

    Args:
        pieces: The pieces of the whole text, in order; joined they are the text.
        columns: The column of each, or -1.
        item: The number of the text.
    """
    text = "".join(pieces)
    starts: dict[int, int] = {}
    place = 0
    for i, piece in enumerate(pieces):
        starts.setdefault(place + len(piece) - len(piece.lstrip()), i)
        place += len(piece)
    found, seen, before = [], set(), ""
    quote_is_open = False
    for match in _WORD.finditer(text):
        word = match[0]
        opens = closes = ""
        if word == '"':
            opens, closes = ("", '"') if quote_is_open else ('"', "")
            quote_is_open = not quote_is_open
        elif word in _PARTNERS:
            opens = word
        elif word in _PARTNERS.values():
            closes = next(a for a, b in _PARTNERS.items() if b == word)
        is_name = word[0].isupper() and len(word) > 1 and before not in _SENTENCE_ENDS | {""}
        piece = starts.get(match.start())
        if piece is not None and columns[piece] >= 0:
            again = word.lower() in seen
            found.append(Token(item, columns[piece], word, is_name, again, opens, closes))
        seen.add(word.lower())
        before = word
    return found


def stem(word: str) -> str:
    """Return a word without a common English ending, if three letters are left."""
    word = word.lower()
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def class_of(query: Token, train: Token) -> str:
    """Return the class of a pair of tokens, one of `CLASSES`, or ""."""
    a, b = query.word.lower(), train.word.lower()
    if a.isalpha() and len(a) >= 3:
        if a == b:
            return "same word"
        if b.isalpha() and stem(a) == stem(b):
            return "variant"
    kinds = {(query.opens, train.closes), (query.closes, train.opens)}
    if any(x and x == y for x, y in kinds):
        return "quotes and brackets"
    if query.is_name and train.is_name and query.is_again and train.is_again:
        return "names again"
    return ""


def _keys(token: Token, *, partners: bool = False) -> list[tuple[str, str]]:
    """Return what a token shares with those that may belong to it.

    Of brackets, it is the other side's.
    """
    opens, closes = token.opens, token.closes
    if partners:
        opens, closes = closes, opens
    keys = [("opens", opens)] * bool(opens) + [("closes", closes)] * bool(closes)
    if token.word.isalpha():
        keys.append(("stem", stem(token.word)))
    if token.word.lower() != stem(token.word):
        keys.append(("word", token.word.lower()))
    return keys + [("names", "")] * (token.is_name and token.is_again)


class Pair(NamedTuple):
    """Columns of a query token, of one that belongs to it, and of one as frequent that does not."""

    query: int
    train: int
    control: int


def matched_pairs(
    queries: Sequence[Token], train: Sequence[Token], *, most: int, seed: int
) -> dict[str, list[Pair]]:
    """Return at most `most` pairs of each class for the tokens of one query text.

    A control is a token of the same train text whose word is as frequent among all of `train`,
    within a factor of 2, and belongs to none of the classes.
    """
    source = np.random.default_rng(seed)
    counts = Counter(t.word.lower() for t in train)
    level = {word: round(math.log2(n)) for word, n in counts.items()}
    by_place: dict[tuple[int, int], list[Token]] = defaultdict(list)
    for t in train:
        by_place[t.item, level[t.word.lower()]].append(t)
    by_key: dict[tuple[str, str], list[Token]] = defaultdict(list)
    for t in train:
        for key in _keys(t):
            by_key[key].append(t)
    candidates: dict[str, list[tuple[Token, Token]]] = {name: [] for name in CLASSES}
    for query in queries:
        near = {t.column: t for key in _keys(query, partners=True) for t in by_key[key]}
        for t in near.values():
            name = class_of(query, t)
            if name:
                candidates[name].append((query, t))
    found: dict[str, list[Pair]] = {}
    for name, pairs in candidates.items():
        order = source.permutation(len(pairs))
        found[name] = []
        for place in order:
            if len(found[name]) == most:
                break
            query, t = pairs[place]
            same = by_place[t.item, level[t.word.lower()]]
            others = [o for o in same if not class_of(query, o) and o.word != t.word]
            if others:
                control = others[int(source.integers(len(others)))]
                found[name].append(Pair(query.column, t.column, control.column))
    return found


class Difference(NamedTuple):
    """A mean difference with its bootstrap interval over texts."""

    mean: float
    ci_low: float
    ci_high: float
    texts: int


def bootstrap(values: Sequence[float], *, seed: int, resamples: int = 2000) -> Difference:
    """Return the mean of one value a text, with percentiles over resampled texts.

    Raises:
        ValueError: No values.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("there are no values: no text has such a pair.")
    chosen = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    low, high = np.percentile(x[chosen].mean(axis=1), [2.5, 97.5])
    return Difference(float(x.mean()), float(low), float(high), len(x))


def p_value(value: float, shuffled: Sequence[float]) -> float:
    """Return the share of permutations, itself among them, that are as far from 0."""
    beyond = sum(abs(x) >= abs(value) for x in shuffled)
    return (1 + beyond) / (1 + len(shuffled))
