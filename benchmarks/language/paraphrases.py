"""Paraphrases by rule, and the rank of a passage among others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

_GROUPS = (
    "big large huge", "small little tiny", "happy glad", "said told", "started began",
    "wanted wished", "very really", "looked gazed", "found discovered", "also too",
    "house home", "mom mother", "dad father", "quickly fast", "pretty beautiful", "saw noticed",
    "went walked", "however but", "many several", "first earliest", "because since",
    "although though", "during throughout", "made built", "called named", "near close",
    "often frequently", "shows displays", "song track", "film movie", "city town", "began started",
)  # fmt: skip
_SWAPS = {words.split()[0]: words.split()[1] for words in _GROUPS}
_NAMES = ("Nora", "Felix", "Ida", "Oscar", "Vera", "Hugo", "Clara", "Anton")


def paraphrase(text: str) -> str:
    """Return a text in other words and names, with its sentences in another order.

    Words of a list are swapped for their like, every capitalised word inside of a sentence that
    comes twice gets a name of a list, and neighbouring sentences change places.  The same text
    always becomes the same.
    """
    inside = re.findall(r"(?<=[a-z,] )([A-Z][a-z]+)", text)
    again = [word for word in dict.fromkeys(inside) if len(re.findall(rf"\b{word}\b", text)) > 1]
    names = dict(zip(again, _NAMES, strict=False))
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    turned = [s for i in range(0, len(sentences), 2) for s in reversed(sentences[i : i + 2])]
    return re.sub(r"[A-Za-z]+", lambda m: _replacement(m[0], names), " ".join(turned))


def _replacement(word: str, names: Mapping[str, str]) -> str:
    if word in names:
        return names[word]
    swapped = _SWAPS.get(word.lower(), word)
    return swapped.capitalize() if word[:1].isupper() and swapped != word else swapped


def shared_words(one: str, other: str, *, length: int = 5) -> float:
    """Return the share of a text's runs of `length` words that another has, too."""
    runs = [
        {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
        for words in (one.lower().split(), other.lower().split())
    ]
    return len(runs[0] & runs[1]) / max(1, len(runs[0]))


def ranks(scores: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Return the rank of column `places[q]` in row q, 1 for the lowest score.

    Ties have the middle of their ranks.

    Args:
        scores: `[Q, N]`; the lowest are the most helpful for a loss.
        places: A column for each row.
    """
    places_Q = np.asarray(places)[:, None]
    return np.take_along_axis(rankdata(scores, axis=1), places_Q, axis=1)[:, 0]
