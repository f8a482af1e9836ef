"""Texts whose tokens are shaded by their scores, and the same scores as data for the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bif.report.markup import escape, number
from bif.report.token_source import Scores, Texts

_LARGEST_SHADE = 45
"""Per cent of the tone behind the token of the largest score: its text keeps its contrast."""
_INT16_MAX = 32767
"""The largest int16, to which scores are scaled."""


def largest_score(values: Sequence[np.ndarray]) -> float:
    """Return the largest score among several texts, by which all of them are shaded."""
    return max((float(np.nanmax(np.abs(v))) for v in values if np.isfinite(v).any()), default=0.0)


def shaded_text(
    texts: Texts,
    item: int,
    values: np.ndarray,
    certain: np.ndarray,
    *,
    largest: float,
    helpful_sign: int,
) -> str:
    """Return the text of one item with its tokens shaded, blue where helpful, orange where not.

    Args:
        texts: The item's side.
        item: The item's position.
        values: One score a column of the item.
        certain: Whether the sign of each score is certain.
        largest: The score of the token with the full shade.
        helpful_sign: The sign of helpful scores.
    """
    column_of = {token: i for i, token in enumerate(texts.tokens[item])}
    pieces = texts.pieces[item] or [f"[{t}] " for t in texts.tokens[item]]
    if not texts.pieces[item]:
        column_of = {i: i for i in range(len(pieces))}
    parts = []
    for t, piece in enumerate(pieces):
        text = escape(piece).replace("\n", "↵\n")
        if t not in column_of:
            parts.append(f"<span>{text}</span>")
            continue
        i = column_of[t]
        tone, strength = _shade(float(values[i]), largest, helpful_sign)
        sure = " sure" if certain[i] else ""
        parts.append(
            f'<span class="t {tone}{sure}" data-i="{i}" style="--s:{strength}%" '
            f'title="{number(values[i])}">{text}</span>'
        )
    return "".join(parts)


def _shade(value: float, largest: float, helpful_sign: int) -> tuple[str, int]:
    if not np.isfinite(value) or not largest:
        return "", 0
    tone = "blue" if value * helpful_sign > 0 else "orange"
    return tone, round(_LARGEST_SHADE * min(1.0, abs(value) / largest))


def data_block(content: Any) -> str:
    """Return numbers for the page's script as JSON that cannot end its element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def pack_scores(scores: Scores) -> dict[str, Any]:
    """Return the scores of pairs of tokens as base64.

    Influence is rounded to 1/32767 of its largest value, correlation to 1/127.
    """
    influence = np.nan_to_num(scores.influence.astype(np.float64))
    scale = float(np.abs(influence).max(initial=0.0))
    whole = np.round(influence / (scale or 1.0) * _INT16_MAX).astype("<i2")
    correlation = np.nan_to_num(scores.correlation).clip(-1, 1)
    return {
        "scale": float(f"{scale:.6g}"),
        "influence": _base64(whole.tobytes()),
        "correlation": _base64(np.round(127 * correlation).astype(np.int8).tobytes()),
        "certain": _base64(np.packbits(scores.certain.ravel(), bitorder="little").tobytes()),
        "columns": int(scores.influence.shape[1]),
    }


def score_list(scores: Scores) -> dict[str, Any]:
    """Return one row or column of scores, rounded to four digits."""
    influence, correlation = (
        [float(f"{x:.4g}") for x in np.nan_to_num(values).ravel().astype(np.float64)]
        for values in (scores.influence, scores.correlation)
    )
    certain = [int(x) for x in scores.certain.ravel()]
    return {"influence": influence, "correlation": correlation, "certain": certain}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
