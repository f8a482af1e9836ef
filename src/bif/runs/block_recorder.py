"""Record the losses of a block of chains draw by draw, and notice chains that diverge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bif.estimate.sums import BlockSums
from bif.estimate.traces import TraceBlock
from bif.runs.slope_means import SlopeMeans
from bif.types import Params

_BUFFER_BYTES = 256 * 2**20
"""Bytes of draws that are gathered on the device before they move to the host."""


@dataclass(frozen=True)
class Subset:
    """The columns whose traces stay where only sums are kept, by positions."""

    train: np.ndarray
    query: np.ndarray


class Segment(NamedTuple):
    """Draws on the host: `[C, d, N]`, `[C, d, A·Q]` and, where kept, weights `[C, d, *shape]`."""

    train: Tensor
    query: Tensor
    weights: Params


class _Sent(NamedTuple):
    """A segment on its way to the host, and which of its draws are fine, `[C, d]`."""

    first: int
    segment: Segment
    fine: Tensor
    arrived: torch.cuda.Event | None


class BlockRecorder:
    """The traces of one block: gathered on the device, moved to the host a buffer at a time.

    `add` never waits for the device; `flush` does.

    Args:
        chains: Indices of the block's chains in the run.
        num_draws: Draws to come, D.
        distance_limit: A chain with `|w - w*|²` above this has diverged.
        sums: Take sums of everything, buffer by buffer, and keep only the traces of `subset`.
        subset: Columns whose traces are kept, where `sums` are given.
        slopes: Of a run with anchors, which are behind the queries' columns.
    """

    def __init__(
        self,
        chains: range,
        *,
        num_draws: int,
        distance_limit: float,
        sums: BlockSums | None = None,
        subset: Subset | None = None,
        slopes: SlopeMeans | None = None,
    ) -> None:
        self.chains = chains
        self.num_draws = num_draws
        self.recorded = 0
        """Draws that have left for the host."""
        self.diverged: dict[int, int] = {}
        """Chain to the draw at which it had diverged."""
        self.sums, self.slopes = sums, slopes
        self._subset = subset
        self._limit = distance_limit
        self._flush_every = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor, Params]] = []
        self._sent: list[_Sent] = []
        self._host: tuple[Tensor, Tensor] | None = None
        self._arrived = self._handed_out = 0
        self._fresh_weights: list[Params] = []

    @property
    def taken(self) -> int:
        """Return the number of draws added so far."""
        return self.recorded + len(self._pending)

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged) == len(self.chains)

    @property
    def fresh_bytes(self) -> int:
        """Return the bytes on the host of weights that wait for `drain`."""
        return sum(
            x.numel() * x.element_size() for leaves in self._fresh_weights for x in leaves.values()
        )

    def add(
        self,
        train: Tensor,
        query: Tensor,
        distance_squared: Tensor,
        weights: Params | None = None,
    ) -> None:
        """Add one draw: `train` `[C, N]`, `query` `[C, A·Q]`, `distance_squared` `[C]`.

        Args:
            weights: Leaves `[C, *shape]`, copied, where weights are kept.
        """
        weights = {name: leaf.detach().clone() for name, leaf in (weights or {}).items()}
        self._set_buffer(train, query, weights)
        self._pending.append((train, query, distance_squared, weights))
        if len(self._pending) >= self._flush_every:
            self._send()
            self._read(wait=False)

    def flush(self) -> None:
        """Wait until everything has reached the host and has been checked."""
        if self._pending:
            self._send()
        self._read(wait=True)

    def settle(self) -> None:
        """Flush before `drain` and `state`, but leave the open buffer that sums wait for.

        Sums are taken a full buffer at a time, so their last bits must not depend on when a run
        was committed.
        """
        if self.sums is None:
            self.flush()
        else:
            self._read(wait=True)

    def drain(self) -> Segment | None:
        """Return what has reached the host since the last call, as views that stay as they are."""
        if self._host is None or self._handed_out == self._arrived:
            return None
        part = slice(self._handed_out, self._arrived)
        weights, self._fresh_weights, self._handed_out = self._fresh_weights, [], self._arrived
        return Segment(
            self._host[0][:, part],
            self._host[1][:, part],
            {n: torch.cat([leaves[n] for leaves in weights], dim=1) for n in weights[0]}
            if weights
            else {},
        )

    def block(self) -> TraceBlock | None:
        """Return the surviving chains' traces so far; None if there are none."""
        self.settle()
        lost = set(self.diverged) if self.sums is None else self.sums.lost(self.diverged)
        keep = [i for i, chain in enumerate(self.chains) if chain not in lost]
        if self._host is None or not keep:
            return None
        train, query = (x[:, : self._arrived] for x in self._host)
        slopes = None if self.slopes is None else self.slopes.mean()
        block = TraceBlock.joined(tuple(self.chains), train, query, slopes)
        return block.only(keep) if lost else block

    def state(self) -> dict[str, Tensor]:
        """Return copies of what is recorded nowhere else: the open buffer and the sums."""
        found = {f"sums/{n}": x for n, x in (self.sums.state() if self.sums else {}).items()}
        if self.slopes is not None:
            found |= {f"slopes/{n}": x for n, x in self.slopes.state().items()}
        if self._pending:
            train, query, distance, weights = zip(*self._pending, strict=True)
            found |= {
                "pending/train": torch.stack(train, dim=1),
                "pending/query": torch.stack(query, dim=1),
                "pending/distance": torch.stack(distance, dim=1),
                **{
                    f"pending/weights/{n}": torch.stack([w[n] for w in weights], dim=1)
                    for n in weights[0]
                },
            }
        return found

    def restore(
        self,
        traces: tuple[Tensor, Tensor] | None,
        *,
        diverged: Mapping[int, int],
        saved: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        """Go on from drained traces `[C, D, …]` (None: no draws yet) and from a saved state."""
        if traces is not None:
            self._keep(*traces)
            self.recorded = self._handed_out = self._arrived
        self.diverged = dict(diverged)
        if self.sums is not None:
            self.sums.restore(with_prefix(saved, "sums/"), device)
        if self.slopes is not None:
            self.slopes.restore(with_prefix(saved, "slopes/"))
        pending = {n: x.to(device) for n, x in with_prefix(saved, "pending/").items()}
        if pending:
            weights = with_prefix(pending, "weights/")
            for d in range(pending["train"].shape[1]):
                draw = [pending[n][:, d] for n in ("train", "query", "distance")]
                leaves = {n: x[:, d] for n, x in weights.items()}
                self._set_buffer(draw[0], draw[1], leaves)
                self._pending.append((draw[0], draw[1], draw[2], leaves))

    def _set_buffer(self, train: Tensor, query: Tensor, weights: Params) -> None:
        if not self._flush_every:
            numbers = train.numel() + query.numel() + sum(x.numel() for x in weights.values())
            size = numbers * train.element_size()
            # Not fewer for a short run: a longer one is to take its sums by the same buffers.
            self._flush_every = max(1, min(32, _BUFFER_BYTES // size))

    def _send(self) -> None:
        """Start the copy of the pending draws to the host."""
        columns = list(zip(*self._pending, strict=True))
        train, query, distance = (torch.stack(x, dim=1) for x in columns[:3])
        weights = {n: torch.stack([w[n] for w in columns[3]], dim=1) for n in columns[3][0]}
        fine = train.isfinite().all(dim=2) & query.isfinite().all(dim=2)
        fine &= distance <= self._limit
        first, self.recorded = self.recorded, self.recorded + len(self._pending)
        if self.sums is not None and self._subset is not None:
            self.sums.update(train, query)
            train = train[..., torch.as_tensor(self._subset.train, device=train.device)]
            query = query[..., torch.as_tensor(self._subset.query, device=query.device)]
        segment = Segment(
            _to_host(train), _to_host(query), {n: _to_host(x) for n, x in weights.items()}
        )
        fine = _to_host(fine)
        arrived = None
        if train.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._sent.append(_Sent(first, segment, fine, arrived))
        self._pending.clear()

    def _read(self, *, wait: bool) -> None:
        """Check the buffers that have arrived, or all of them."""
        while self._sent:
            first, segment, fine, arrived = self._sent[0]
            if arrived is not None and not arrived.query():
                if not wait:
                    return
                arrived.synchronize()
            self._sent.pop(0)
            self._keep(segment.train, segment.query)
            if segment.weights:
                # Out of pinned memory, so that the next buffer can have it: making more stalls.
                self._fresh_weights.append(
                    {n: x.clone() if x.is_pinned() else x for n, x in segment.weights.items()}
                )
            for position, draws in enumerate(fine.tolist()):
                if not all(draws):
                    self.diverged.setdefault(self.chains[position], first + draws.index(False))

    def _keep(self, train: Tensor, query: Tensor) -> None:
        """Put draws into their places on the host."""
        if self._host is None:
            num_draws = max(self.num_draws, train.shape[1])
            self._host = tuple(  # type: ignore[assignment]
                torch.empty(x.shape[0], num_draws, x.shape[2], dtype=x.dtype)
                for x in (train, query)
            )
        assert self._host is not None
        part = slice(self._arrived, self._arrived + train.shape[1])
        for host, x in zip(self._host, (train, query), strict=True):
            host[:, part] = x
        self._arrived = part.stop


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def _to_host(x: Tensor) -> Tensor:
    """Copy to the host; from a GPU into pinned memory, without waiting."""
    if not x.is_cuda:
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)
