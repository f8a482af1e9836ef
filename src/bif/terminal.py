"""Messages on the terminal, and the progress bar: draws, draws a second, time left, reliability."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

_RELIABILITY_PERIOD = 3.0
"""Seconds between two computations of the reliability."""
_LINE_PERIOD = 30.0
"""Seconds between two lines where there is no terminal for a bar."""
_LONG = 300.0
"""Seconds left from which a run says once how to ask for less."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIMES = {"years": 365.25 * 86_400.0, "days": 86_400.0, "h": 3_600.0, "min": 60.0}
_BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of the text after them."""


def escape_controls(text: object) -> str:
    """Return a text whose control characters are written out: a terminal would obey them.

    Lines and tabs stay; so does what is merely unusual.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" or c in _BIDI_CONTROLS
        else c
        for c in str(text)
    )


def as_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def in_time(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in _TIMES.items():
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"


def say(lines: Iterable[str]) -> None:
    """Print lines on the terminal, beside the progress bar."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    for line in lines:
        console.print(escape_controls(line), style="dim", markup=False, highlight=False)


_brief: ContextVar[bool] = ContextVar("brief", default=False)


@contextmanager
def briefly() -> Iterator[None]:
    """Leave out what `explain` is told."""
    token = _brief.set(True)
    try:
        yield
    finally:
        _brief.reset(token)


def explain(lines: Iterable[str]) -> None:
    """Print why settings are as they are, unless it is to be brief."""
    if not _brief.get():
        say(lines)


class ProgressBar:
    """A bar on the terminal, lines in a log, or nothing at all where `shown` is False.

    Args:
        total_draws: Draws of all chains together.
        reliability: Computes the current reliability, NaN while the chains have not mixed; asked
            every few seconds.
        shown: Whether to show anything.
        hint: Said once where much time is left.
    """

    def __init__(
        self,
        total_draws: int,
        *,
        reliability: Callable[[], float],
        shown: bool,
        hint: str = "",
    ) -> None:
        self._total, self._reliability, self._shown = total_draws, reliability, shown
        self._hint = hint
        self._asked = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(stderr=True, soft_wrap=True)
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} draws"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("reliability {task.fields[reliability]}"),
                console=console,
                get_time=lambda: time.monotonic(),  # the one clock of all that is said
            )
            self._is_log = not console.is_terminal
            self._progress.start()
            self._task = self._progress.add_task(
                "sampling", total=self._total, speed="", reliability="–"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            self._progress.stop()

    def advance(self, draws: int) -> None:
        """Count further draws."""
        if not self._shown:
            return
        self._progress.advance(self._task, draws)
        now, task = time.monotonic(), self._progress.tasks[0]
        done = round(task.completed)
        speed = task.speed or done / max(task.elapsed or 0.0, 1e-9)
        fields = {"speed": f"{speed:,.3g} draws/s"}
        if now - self._asked > (_LINE_PERIOD if self._is_log else _RELIABILITY_PERIOD):
            found = self._reliability()
            fields["reliability"] = f"{found:.2f}" if found == found else "– (not mixed yet)"
            self._asked = now
            left = (self._total - done) / max(speed, 1e-9)
            lines = []
            if self._is_log:
                lines.append(
                    f"sampling: {done:,} of {self._total:,} draws, {fields['speed']}, "
                    f"{in_time(left)} left, reliability {fields['reliability']}"
                )
            if self._hint and left > _LONG:
                lines.append(f"about {in_time(left)} left; {self._hint}")
                self._hint = ""
            for line in lines:
                self._progress.console.print(line, style="dim", markup=False, highlight=False)
        self._progress.update(self._task, **fields)  # type: ignore[arg-type]
