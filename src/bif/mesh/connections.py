"""Name what goes wrong between ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

WAITING = timedelta(days=30)
"""Time that a rank waits for others, which sample; one that ends closes its connections at once."""


class RankFailed(RuntimeError):
    """Raised on the ranks whose own work is fine when another rank has failed."""


@contextmanager
def named(rank: int, what: str) -> Iterator[None]:
    """Raise an error of the connections as `RankFailed`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of torch.distributed, in many classes
        raise _failed(rank, what, error) from error


@contextmanager
def naming_lost_shards(rank: int) -> Iterator[None]:
    """Raise an error of the connections as `RankFailed`, and let those of other work pass."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no class of their own, but its name in their words.
        of_connections = isinstance(error, dist.DistError) or "gloo" in str(error)
        if isinstance(error, RankFailed) or not of_connections:
            raise
        raise _failed(rank, "another rank has ended", error) from error


def _failed(rank: int, what: str, error: Exception) -> RankFailed:
    return RankFailed(
        f"rank {rank}: {what}, see what the other ranks say. What was committed is kept: "
        f"start all ranks again to go on from there. ({str(error).splitlines()[0]})"
    )
