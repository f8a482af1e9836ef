"""Run a function on several ranks: forked processes, which need not import torch again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from bif.mesh import Ranks, join

_PATIENCE = 60.0
"""Seconds after which a rank counts as hung."""


class RankError(AssertionError):
    """An error of a rank that was not expected."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def outcomes_on_ranks(size: int, work: Callable[[Ranks], Any]) -> list[tuple[str, Any]]:
    """What each rank returned, as `("", value)`, or raised, as `(name, message)`.

    A rank that is killed has `("killed", exit code)`.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes, processes = [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(rank, size, port, work, there))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # no thread of the parent holds a lock
            process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    found = []
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            found.append(pipe.recv() if pipe.poll(_PATIENCE) else ("hung", ""))
        except EOFError:
            process.join(_PATIENCE)
            found.append(("killed", process.exitcode))
    for process in processes:
        process.join(5)
        process.kill()
    return found


def on_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each rank returned.

    Raises:
        RankError: One of them raised.
    """
    found = outcomes_on_ranks(size, work)
    if any(name for name, _ in found):
        raise RankError("\n".join(f"{name}: {value}" for name, value in found if name))
    return [value for _, value in found]


def _work(rank: int, size: int, port: int, work: Callable[[Ranks], Any], pipe: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        with join() as ranks:
            found = ("", work(ranks))
    except BaseException as error:
        found = (type(error).__name__, f"{error}\n{traceback.format_exc()}")
    pipe.send(found)
    pipe.close()
