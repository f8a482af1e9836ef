"""Turn Ctrl-C and SIGTERM into a wish to stop that is granted between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Preempted(BaseException):
    """Raised when SIGTERM stops a run; what is recorded is on disk, and the same call goes on.

    Not an `Exception`, so that no handler of a user's own keeps a process alive that is to end.
    """


class Wish:
    """The signal that asked for an end, or None."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """Raise `Preempted` where SIGTERM would kill; only the main thread hears signals."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by SIGTERM")

    with _handling({signal.SIGTERM: handler}):
        yield


@contextlib.contextmanager
def wishes_to_stop(*, terminate: bool) -> Iterator[Wish]:
    """Note Ctrl-C (and SIGTERM, if `terminate`) instead of raising; a second one raises at once.

    A step overwrites its buffers, so an exception in the middle of one would leave no state to go
    on from.
    """
    wish = Wish()

    def handler(number: int, frame: FrameType | None) -> None:
        if wish.signal is not None:
            if number == signal.SIGTERM:
                raise Preempted("stopped by SIGTERM")
            raise KeyboardInterrupt
        wish.signal = signal.Signals(number)

    signals = [signal.SIGINT, signal.SIGTERM] if terminate else [signal.SIGINT]
    with _handling(dict.fromkeys(signals, handler)):
        yield wish


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
