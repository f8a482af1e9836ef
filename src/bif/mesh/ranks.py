"""Join the processes that torchrun, Slurm or Ray have started together, and share work by index."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from bif.mesh.connections import WAITING, RankFailed, named, naming_lost_shards
from bif.mesh.shards import ModelShards

_T = TypeVar("_T")
_MEETING = timedelta(minutes=10)
"""Time in which all ranks must have joined: images are loaded and nodes start meanwhile."""
_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Environment variables of torchrun and of srun: rank, number of ranks, rank on this host."""


@dataclass(frozen=True)
class _Failure:
    """What a rank announces in the place of a value."""

    message: str


def launched() -> bool:
    """Return whether a launcher has started this process as one of several ranks.

    torchrun sets all variables; a Slurm script says by MASTER_ADDR and MASTER_PORT that ranks are
    meant.
    """
    return _place() is not None


def _place() -> tuple[int, int, int] | None:
    """Return rank, number of ranks and rank on this host by the environment; None if alone."""
    if "MASTER_ADDR" not in os.environ:
        return None
    for names in _NAMES:
        found = [os.environ.get(name, "") for name in names]
        if found[0].isdigit() and found[1].isdigit() and int(found[1]) > 1:
            local = int(found[2]) if found[2].isdigit() else 0
            return int(found[0]), int(found[1]), local
    return None


def join() -> Ranks:
    """Join the other ranks: by gloo between CPUs, with NCCL beside it where there are GPUs.

    A rank uses the GPU of its number on the host, which `device="cuda"` then means.

    Raises:
        ValueError: No launcher has started this process.
        RankFailed: The others have not come within ten minutes.
    """
    place = _place()
    if place is None:
        raise ValueError(
            "no launcher has started this process as one of several ranks: expected RANK, "
            "WORLD_SIZE (or SLURM_PROCID, SLURM_NTASKS), MASTER_ADDR and MASTER_PORT in the "
            "environment, as torchrun sets them."
        )
    rank, size, local = place
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local % torch.cuda.device_count())
    begins = not dist.is_initialized()
    if begins:
        with named(rank, "the ranks could not meet"):
            meeting, *_ = next(dist.rendezvous("env://", rank, size, timeout=_MEETING))
            # torchrun may keep its store where it starts ranks again, with the lost ranks' places.
            start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=rank, world_size=size,
                timeout=_MEETING, store=dist.PrefixStore(f"bif-{size}-{start}", meeting),
            )  # fmt: skip
    return Ranks(rank, size, ends_group=begins)


class Ranks:
    """The processes of one run, seen from one of them.

    All ranks make the same calls of `gather`, `announce` and `hear` in the same order.

    Args:
        rank: This process, from 0 on.
        size: Number of processes.
        ends_group: Whether to end torch's process group when leaving.

    Attributes:
        shards: The group of ranks that holds one model with this one; None where each rank has a
            model of its own.
    """

    def __init__(self, rank: int, size: int, *, ends_group: bool = True) -> None:
        self.rank, self.size, self._ends_group = rank, size, ends_group
        self.shards: ModelShards | None = None
        self._waited_for = True
        with named(rank, "the ranks could not meet"):
            self._group: Any = dist.new_group(backend="gloo", timeout=WAITING)
            host = os.environ.get("MASTER_ADDR", socket.gethostname())
            counter = None
            if self.is_first:
                counter = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
            (port, *_) = self.gather(counter.port if counter else 0)
            self._counter = counter or dist.TCPStore(host, port, is_master=False)
        self._deals = 0

    @property
    def is_first(self) -> bool:
        """Return whether this is the rank that calibrates and writes the results."""
        return self.rank == 0

    @property
    def num_models(self) -> int:
        """Return the number of ranks, or of their groups that hold a model each."""
        return self.shards.num_groups if self.shards else self.size

    def split_(self, count: int) -> None:
        """Let every `count` consecutive ranks hold one model; all ranks call it.

        Raises:
            ValueError: Ranks that are no whole groups.
        """
        self.shards = ModelShards(self, count) if count > 1 else None

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all ranks, in their order, once all have called.

        Raises:
            RankFailed: A rank has ended.
        """
        found: list[Any] = [None] * self.size
        with named(self.rank, "another rank has ended"):
            dist.all_gather_object(found, value, group=self._group)
        return found

    def each(self, value: _T) -> Iterator[_T]:
        """Yield the value of every rank in their order, of which memory holds one at a time.

        Raises:
            RankFailed: A rank has ended.
        """
        for rank in range(self.size):
            held: list[Any] = [value if rank == self.rank else None]
            with named(self.rank, "another rank has ended"):
                dist.broadcast_object_list(held, src=rank, group=self._group)
            yield held[0]

    def announce(self, value: object) -> None:
        """Give a value of rank 0 to the others, which `hear`."""
        self.gather(value)

    def hear(self) -> Any:
        """Return what rank 0 announces.

        Raises:
            RankFailed: It has failed; says how.
        """
        (found, *_) = self.gather(None)
        if isinstance(found, _Failure):
            raise RankFailed(f"rank 0 failed: {found.message}")
        return found

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Announce an error of rank 0 to the others, which wait to `hear`; not within `sharing`."""
        try:
            yield
        except Exception as error:
            if self._waited_for:
                self.announce(_Failure(str(error)))
            raise

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return on every rank what rank 0 makes.

        Raises:
            RankFailed: Rank 0 raised, on the others.
        """
        if not self.is_first:
            return self.hear()
        with self.leading():
            found = make()
        self.announce(found)
        return found

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Hold while all ranks work: whoever fails ends, and the others with it.

        Raises:
            RankFailed: Another rank has ended, one that holds the same model.
        """
        self._waited_for = False
        with naming_lost_shards(self.rank):
            yield
        self._waited_for = True

    def deal(self, count: int) -> Iterator[int]:
        """Yield the indices below `count` that this rank takes; all ranks call it.

        The first is the rank's own number, so 0 is rank 0's. Further ones go to whoever comes
        first: a slow rank takes fewer. Ranks that hold one model take the same, by the number of
        their group.
        """
        self._deals += 1
        key, shards = f"deal-{self._deals}", self.shards
        index = shards.group if shards else self.rank
        while index < count:
            yield index
            if shards is None or shards.index == 0:
                with named(self.rank, "rank 0 has ended"):
                    index = self.num_models - 1 + self._counter.add(key, 1)
            index = shards.of_first(index) if shards else index

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave: where all is well, together."""
        if error is None:
            self.gather(None)
        if self._ends_group:
            dist.destroy_process_group()
