"""Where an error came from: the user's own code, or this library."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

SHOW_ALL = "BIF_TRACEBACK"
"""Environment variable that has errors raised with all frames, for a report of a fault."""
_OURS = Path(__file__).parents[1]
_PACKAGES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def place_in_users_code(error: BaseException) -> str:
    """Return the line of the user's own code that raised, as "mine.py, line 3, in loss".

    Frames of Python and of packages below it are passed over; empty where this library raised.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_OURS):
            return ""
        if path.is_file() and not any(map(path.is_relative_to, _PACKAGES)):
            return f"{path.name}, line {frame.lineno}, in {frame.name}"
    return ""


def in_words(error: Exception) -> str:
    """Return what went wrong in a sentence, with the place if it is in the user's own code."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    place = place_in_users_code(error)
    return f"{type(error).__name__}: {text} ({place})" if place else text


def unexpected_in_words(error: Exception) -> str:
    """Return what to do about an error that this library should have said in words of its own."""
    if place_in_users_code(error):
        return in_words(error)
    return (
        f"{type(error).__name__}: {error}. This is a fault of bif: please report it, with what "
        f"{SHOW_ALL}=1 before the command prints."
    )
