"""Write behind the sampling: one thing at a time, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Writer:
    """A thread that writes; its errors are raised here, at the next call.

    As a context manager it leaves when everything is written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "bif-writer")
        self._writing: Future[None] | None = None

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write when everything before is written.

        Raises:
            OSError: What was to be written before could not be.
        """
        self.wait()
        self._writing = self._thread.submit(write, *arguments)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: It could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown()
