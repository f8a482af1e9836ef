"""What a run found, in plain words: the same on its page and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_SHOWN = 60
"""Characters of an item's text that are shown."""


_NOT_JUDGED = " Not tested: whether retraining without an item agrees (command: bif lds)."


def trust_in_words(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return one line on how far a run can be trusted; of an interrupted one, that it can go on."""
    gates = [gate for gate in manifest.get("gates") or [] if isinstance(gate, Mapping)]
    failed = [str(gate.get("name")) for gate in gates if gate.get("failed")]
    checks = f"all {len(gates)} checks passed" if gates else "no check failed"
    if summary.get("trusted") is None:
        return "How far this can be trusted was not checked."
    complete = summary.get("complete")
    ended = complete is None or bool(complete)
    if not summary["trusted"]:
        names = f" ({', '.join(failed)})" if failed else ""
        counts = f"{len(failed) or 'some'} of {len(gates) or 'the'} checks"
        if not ended:
            return (
                f"Stopped early, and can go on: {counts} do not pass yet{names}. No direction is "
                "certain so far: read the lists below as guesses."
            )
        return (
            f"Not trusted: {counts} failed{names}. No direction is certain: read the lists below "
            "as guesses."
        )
    parts = "" if ended else " It was stopped early, and can go on."
    if summary.get("estimator") == "response":
        return f"Trusted: computed without random draws, and {checks}.{parts}{_NOT_JUDGED}"
    agree = ""
    reliability = summary.get("reliability")
    if isinstance(reliability, float) and math.isfinite(reliability):
        agree = f"the scores of the run's two halves correlate at {reliability:.2f}, and "
    return f"Trusted: {agree}{checks}.{parts}{_NOT_JUDGED}"


def query_in_words(
    name: str,
    *,
    text: str = "",
    features: str = "",
    label: str = "",
    target: str = "",
    prediction: str = "",
) -> str:
    """Return a query's id with its text or features, its label or target, what the model says."""
    told = f", {shortened(text)!r}" if text else f" ({features})" if features else ""
    label = "" if is_own_text(label, text) else label
    known = f"labelled {label}" if label else f"target {target}" if target else ""
    if known:
        told += f", {known}"
        if prediction:
            told += ", and the model agrees" if prediction == (label or target) else (
                f"; the model says {prediction}"
            )  # fmt: skip
    return f"{titled(name)}{told}"


def titled(name: str) -> str:
    """Return a query's id, with the word before it unless it begins so."""
    return name if name.lower().startswith("query") else f"Query {name}"


def is_own_text(label: str, text: str) -> bool:
    """Return whether a label of several words is no more than the beginning of the text."""
    words = label.split()
    return len(words) > 1 and text.split()[: len(words)] == words


def query_token_in_words(name: str, *, text: str = "", context: str = "") -> str:
    """Return a query token's id with its piece of text, and the text that it stands in."""
    told = f", {(text.strip() or text)!r}" if text else ""
    return f"Query token {name}{told}" + (f" of {shortened(context)!r}" if context else "")


def moved_in_words(
    moved: np.ndarray, original: list[str] | None = None, likely: np.ndarray | None = None
) -> list[str]:
    """Return sentences on how many of the labels that were moved on purpose are found.

    Args:
        moved: Whether each item's label was, the most suspicious item first, `[N]`.
        original: Their true labels, in the same order.
        likely: What the run takes for their true labels, in the same order.

    Returns:
        What was done; what was found; what this tells beyond the loss.
    """
    count, first = int(moved.sum()), int(np.cumprod(moved).sum())
    among = int(moved[:count].sum())
    done = f"{count:,} of {len(moved):,} labels were made wrong on purpose."
    found = (
        f"The {first:,} most suspicious items are all among the {count:,} mislabelled."
        if first > 1
        else f"Of the {count:,} most suspicious items {among:,} are among the {count:,} "
        "mislabelled."
    )
    beyond = f"Of the {count:,} most suspicious {among:,} are. " if first > 1 else ""
    beyond += "Items are ranked by their loss."
    if likely is not None and original is not None and count:
        right = sum(str(likely[i]) == original[i] for i in np.flatnonzero(moved))
        beyond += f" The run also names the right label, for {right:,} of the {count:,}."
    return [done, found, beyond]


def shortened(text: str) -> str:
    """Return the beginning of a text, in one line."""
    line = " ".join(text.split()) if text.strip() else text
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
