"""What an extra brings: missed with an error that names the extra."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(extra: str, why: str) -> Iterator[None]:
    """Name the extra where an import fails.

    Args:
        extra: Such as "report".
        why: What needs which package, as the beginning of a sentence.

    Raises:
        ImportError: An import inside failed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{why}: pip install 'bayesian-influence[{extra}]'.") from error
