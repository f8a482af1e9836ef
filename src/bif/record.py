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
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._host: tuple[Tensor, Tensor] | None = None

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged) == len(self.chains)

    def add(self, train: Tensor, query: Tensor, distance_squared: Tensor) -> None:
        """One draw: `train` `[C, N]`, `query` `[C, A·Q]`, `distance_squared` `[C]`."""
        if self._host is None:
            rows = len(self.chains), self.num_draws
            self._host = (
                torch.empty(*rows, train.shape[1], dtype=train.dtype),
                torch.empty(*rows, query.shape[1], dtype=query.dtype),
            )
            size = (train.numel() + query.numel()) * train.element_size()
            self._flush_every = max(1, min(self.num_draws, 64, _BUFFER_BYTES // size))
        self._pending.append((train, query, distance_squared))
        if len(self._pending) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Move pending draws to the host and look for chains that have diverged."""
        if not self._pending:
            return
        assert self._host is not None
        train, query, distance = (torch.stack(x, dim=1) for x in zip(*self._pending, strict=True))
        stop = self.recorded + len(self._pending)
        self._host[0][:, self.recorded : stop].copy_(train)
        self._host[1][:, self.recorded : stop].copy_(query)
        fine = train.isfinite().all(dim=(1, 2)) & query.isfinite().all(dim=(1, 2))  # type: ignore[call-overload]
        fine &= (distance <= self._limit).all(dim=1)
        for position, ok in enumerate(fine.tolist()):
            if not ok:
                self.diverged.setdefault(self.chains[position], stop)
        self.recorded = stop
        self._pending.clear()

    def block(self) -> TraceBlock | None:
        """The surviving chains' traces so far; None if there are none."""
        if self._host is None or not self.recorded:
            return None
        keep = [i for i, chain in enumerate(self.chains) if chain not in self.diverged]
        if not keep:
            return None
        train, query = (x[:, : self.recorded] for x in self._host)
        return (
            TraceBlock(tuple(self.chains), train, query).only(keep)
            if self.diverged
            else (TraceBlock(tuple(self.chains), train, query))
        )
