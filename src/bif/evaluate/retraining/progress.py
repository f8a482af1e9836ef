"""The progress bar of a bank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, done: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar by networks; it shows nothing if `shown` is False."""
    if not shown:
        yield lambda networks: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("[bold]retraining"), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(
        *columns, TextColumn("networks"), TimeLeft(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda networks: bar.advance(task, networks)
