"""Objects from a user's own file: FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bif.problem.items import Items
    from bif.problem.problem import Problem


def load_problem(target: str) -> Problem:
    """Import FILE.py and call FUNCTION.

    Raises:
        ValueError: The target is not `FILE.py:FUNCTION`, or the file has no such function.
        FileNotFoundError: There is no such file.
        TypeError: The function does not return a Problem.
    """
    from bif.problem.problem import Problem

    problem = load_function(target)()
    if not isinstance(problem, Problem):
        raise TypeError(f"{target} must return a bif.Problem, got {type(problem).__name__}.")
    return problem


def load_groups(targets: Sequence[str]) -> dict[str, Items]:
    """Return groups of items from functions that return items, or mappings to items.

    Raises: as `load_problem`, and
        ValueError: Two groups of one name.
    """
    from bif.problem.items import Items, as_items

    groups: dict[str, Items] = {}
    for target in targets:
        made = load_function(target)()
        named = (
            made
            if isinstance(made, Mapping) and all(isinstance(v, Items) for v in made.values())
            else {target.rpartition(":")[2]: made}
        )
        for name, items in named.items():
            if name in groups:
                raise ValueError(f"two groups are named {name!r}: give one another name.")
            groups[str(name)] = as_items(items)
    return groups


def load_function(target: str) -> Callable[[], Any]:
    """Import FILE.py and return FUNCTION.

    Raises:
        ValueError: The target is not `FILE.py:FUNCTION`, or the file has no such function.
        FileNotFoundError: There is no such file.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, got {target!r}.")
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path!r}: expected FILE.py:FUNCTION, got {target!r}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is not a Python file: expected FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path!r} has no function {name!r}: name one that is in the file.")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(
            f"{name!r} of {path!r} is called without arguments: {error}. Name a function that "
            "needs none."
        ) from error
    except ValueError:  # of a builtin, which has no signature to look at
        pass
    return function
