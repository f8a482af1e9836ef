"""How options read in the help: names of what they take, and defaults that say something."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

import tyro

Target = Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[FILE.py:FUNCTION]")]
"""An argument that names a function of a user's file."""
Folder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
"""An argument that names the folder of a run."""
Folders = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    tyro.conf.arg(metavar="RUN RUN ...", help_behavior_hint="(required)"),
]
"""Arguments that name the folders of runs."""
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
"""Options of nested groups have their own names, and none takes the word None."""
_SILENT = tyro.conf.arg(help_behavior_hint="")


@cache
def without_empty_defaults(command: type) -> type:
    """Leave "(default: None)" and its like out of the help of a command's options.

    An option that is left out and means nothing then is told by its text alone.  Tyro has no such
    setting for all options at once, so each one's type is annotated, in groups of options as well:
    once, since annotations add up.
    """
    hints: dict[str, Any] = get_type_hints(command, include_extras=True)
    for option in fields(command):
        hint = hints[option.name]
        if isinstance(hint, type) and is_dataclass(hint):
            without_empty_defaults(hint)
        elif option.default is None or option.default == () or option.default is False:
            hints[option.name] = Annotated[hint, _SILENT]
    command.__annotations__ = hints
    return command
