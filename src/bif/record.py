"""Record the losses of a block of chains draw by draw, and notice chains that diverge."""

from __future__ import annotations

import torch
from torch import Tensor

from bif.traces import TraceBlock

_BUFFER_BYTES = 256 * 2**20


class BlockRecorder:
    """Traces of one block: gathered on the device, moved to the host a buffer at a time.

    `add` never waits for the device; `flush` does.

    Args:
        chains: Indices of the block's chains in the run.
        num_draws: Draws to come, D.
        distance_limit: A chain with `|w - w*|²` above this has diverged.
    """

    def __init__(self, chains: range, *, num_draws: int, distance_limit: float) -> None:
        self.chains = chains
        self.num_draws = num_draws
        self.recorded = 0
        self.diverged: dict[int, int] = {}
        """Chain to the draw by which it had diverged."""
        self._limit = distance_limit
        self._flush_every = 1
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sent: list[tuple[int, Tensor, Tensor, Tensor, torch.cuda.Event | None]] = []
        self._host: list[tuple[Tensor, Tensor]] = []

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged) == len(self.chains)

    def add(self, train: Tensor, query: Tensor, distance_squared: Tensor) -> None:
        """One draw: `train` `[C, N]`, `query` `[C, A·Q]`, `distance_squared` `[C]`."""
        if not self.recorded:
            size = (train.numel() + query.numel()) * train.element_size()
            self._flush_every = max(1, min(self.num_draws, 32, _BUFFER_BYTES // size))
        self._pending.append((train, query, distance_squared))
        if len(self._pending) >= self._flush_every:
            self._send()
            self._read(wait=False)

    def flush(self) -> None:
        """Wait until everything has reached the host and has been looked at."""
        if self._pending:
            self._send()
        self._read(wait=True)

    def block(self) -> TraceBlock | None:
        """The surviving chains' traces so far, flushed; None if there are none."""
        self.flush()
        keep = [i for i, chain in enumerate(self.chains) if chain not in self.diverged]
        if not self._host or not keep:
            return None
        if len(self._host) > 1:  # joined once, so that asking again is free
            train, query = zip(*self._host, strict=True)
            self._host = [(torch.cat(train, dim=1), torch.cat(query, dim=1))]
        block = TraceBlock(tuple(self.chains), *self._host[0])
        return block.only(keep) if self.diverged else block

    def _send(self) -> None:
        """Start the copy of the pending draws to the host."""
        train, query, distance = (torch.stack(x, dim=1) for x in zip(*self._pending, strict=True))
        fine = train.isfinite().flatten(1).all(dim=1) & query.isfinite().flatten(1).all(dim=1)
        fine &= (distance <= self._limit).all(dim=1)
        self.recorded += len(self._pending)
        buffers = _to_host(train), _to_host(query), _to_host(fine)
        arrived = None
        if train.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._sent.append((self.recorded, *buffers, arrived))
        self._pending.clear()

    def _read(self, *, wait: bool) -> None:
        """Look at the buffers that have arrived, or at all of them."""
        while self._sent:
            stop, train, query, fine, arrived = self._sent[0]
            if arrived is not None and not arrived.query():
                if not wait:
                    return
                arrived.synchronize()
            self._sent.pop(0)
            # Out of pinned memory, so that the next buffer can have it: making more of it stalls.
            self._host.append((_pageable(train), _pageable(query)))
            for position, ok in enumerate(fine.tolist()):
                if not ok:
                    self.diverged.setdefault(self.chains[position], stop)


def _to_host(x: Tensor) -> Tensor:
    """A copy on the host; from a GPU into pinned memory, without waiting."""
    if not x.is_cuda:
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def _pageable(x: Tensor) -> Tensor:
    return x.clone() if x.is_pinned() else x
