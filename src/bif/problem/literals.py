"""A check of names that stand for a choice."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args


def require_literal(name: str, value: object, literal: Any) -> None:
    """Raise unless `value` is one of a Literal's names.

    Args:
        name: How the argument is called.
        value: What was given.
        literal: `Literal[…]`.

    Raises:
        ValueError: It is another, with the nearest right name.
    """
    known = get_args(literal)
    if value in known:
        return
    nearest = get_close_matches(str(value).lower(), map(str, known), n=1, cutoff=0.0)
    raise ValueError(
        f"{name} is {value!r}: expected one of {', '.join(map(str, known))}; {nearest[0]!r} is the "
        "nearest."
    )
