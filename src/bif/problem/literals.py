"""Checks of names that stand for a choice or a setting, with the nearest right one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, get_args

_Class = TypeVar("_Class")


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


def unknown_names(names: Iterable[str], known: Iterable[str]) -> str:
    """Return names that are not known, each with the nearest that is, as one phrase."""
    found = []
    for name in names:
        nearest = get_close_matches(name, known, n=1)
        found.append(f"{name!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    return ", ".join(found)


def suggests_names(cls: type[_Class]) -> type[_Class]:
    """Let a dataclass refuse unknown arguments with the nearest known name.

    The class raises TypeError, as Python does, which names the argument alone.
    """
    plain: Any = cls.__init__

    @wraps(plain)
    def checked(self: _Class, *args: Any, **given: Any) -> None:
        known = tuple(type(self).__dataclass_fields__)  # pyright: ignore[reportAttributeAccessIssue]
        strange = [name for name in given if name not in known]
        if strange:
            raise TypeError(
                f"{type(self).__name__} has no {unknown_names(strange, known)}: help(bif."
                f"{type(self).__name__}) lists all of them."
            )
        plain(self, *args, **given)

    cls.__init__ = checked  # pyright: ignore[reportAttributeAccessIssue]
    return cls
