"""Observe new items at the draws that a run has already taken.

From the weights, where they were kept, by forward passes alone; else by running the same steps
once more, with the recorded losses as proof that they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bif.sampling.engine import Engine
from bif.store import BlockStore, Commit, DamagedRun
from bif.types import Params

_DRAWS_AT_ONCE = 32
"""Draws that are read, observed and written at a time, which bounds the memory."""


class ReplayDeparts(RuntimeError):
    """Raised when the same steps give other losses than those recorded."""


def missing(engine: Engine, store: BlockStore, num_draws: int) -> dict[str, int]:
    """Return the arrays that lack some of the block's draws, and how many they have."""
    lengths = {n: store.traces.good_length(n, num_draws) for n in engine.panels.names}
    return {name: length for name, length in lengths.items() if length < num_draws}


def fill(
    engine: Engine, store: BlockStore, commit: Commit, block: int, chains: range
) -> Iterator[int]:
    """Observe every group that lacks committed draws, and write it as long as the others.

    Yields:
        Draws as they are observed; what has been written stays if the caller stops asking.

    Raises:
        ReplayDeparts: Without kept weights, on another device or with other versions.
    """
    lacking = missing(engine, store, commit.draws)
    if not lacking:
        return
    start = first = min(lacking.values())
    waiting: list[dict[str, Tensor]] = []
    for index, params in _draws(engine, store, commit, block, chains, start=start):
        if index >= start:
            waiting.append({n: engine.observer.panel(n, params).cpu() for n in lacking})
        if waiting and (len(waiting) == _DRAWS_AT_ONCE or index == commit.draws - 1):
            _append(store, waiting, start=first, have=lacking)
            store.amend(commit)
            first, waiting = index + 1, []
        yield index


def _append(
    store: BlockStore, waiting: list[dict[str, Tensor]], *, start: int, have: dict[str, int]
) -> None:
    for name, length in have.items():
        values = torch.stack([values[name] for values in waiting], dim=1).numpy()
        new = values[:, max(0, length - start) :]
        if new.shape[1]:
            store.traces.append({name: new}, start=max(start, length))


def _draws(
    engine: Engine,
    store: BlockStore,
    commit: Commit,
    block: int,
    chains: range,
    *,
    start: int,
) -> Iterator[tuple[int, Params]]:
    """Yield draws, at least from `start` on: index and weights `[C, *shape]` on the device."""
    if has_weights(engine, store, commit.draws):
        yield from _kept(engine, store, range(start, commit.draws))
        return
    s = engine.settings
    positions = engine.positions(
        block,
        len(chains),
        engine.start(block, len(chains)),
        last_step=s.burn_in + (commit.draws - 1) * s.thin,
    )
    for position in positions:
        index = engine.draw_at(position.step)
        if index is None:
            continue
        if position.losses is not None or index % _DRAWS_AT_ONCE == 0 or index == commit.draws - 1:
            losses = engine.observer.train(position.state.params, position.losses)
            _compare(losses[:, : engine.panels.train[0]].cpu(), store, index)
        yield index, position.state.params


def has_weights(engine: Engine, store: BlockStore, num_draws: int) -> bool:
    """Return whether the weights of all these draws were kept."""
    count = len(engine.posterior.center)
    return all(store.weights.length(f"weight-{i}") >= num_draws for i in range(count))


def _kept(engine: Engine, store: BlockStore, draws: range) -> Iterator[tuple[int, Params]]:
    center = engine.posterior.center
    for first in range(draws.start, draws.stop, _DRAWS_AT_ONCE):
        stop = min(first + _DRAWS_AT_ONCE, draws.stop)
        leaves: dict[str, Tensor] = {}
        for i, (name, like) in enumerate(center.items()):
            values = store.weights.read(f"weight-{i}", first, stop)
            if values.shape[2:] != tuple(like.shape):
                raise DamagedRun(
                    f"the kept weights of {name!r} have shape {values.shape[2:]}, the model's "
                    f"{tuple(like.shape)}: pass the run's own model."
                )
            leaves[name] = torch.tensor(values, dtype=like.dtype, device=like.device)
        for offset in range(stop - first):
            yield (
                first + offset,
                {
                    # Memory of its own: the last bits of a product may depend on where it lies.
                    n: x[:, offset].clone(memory_format=torch.contiguous_format)
                    for n, x in leaves.items()
                },
            )


def _compare(losses: Tensor, store: BlockStore, index: int) -> None:
    recorded = store.traces.read("train_loss-0", index, index + 1)[:, 0]
    if not np.array_equal(losses.numpy(), recorded, equal_nan=True):
        raise ReplayDeparts(
            f"repeating the run's steps gave other losses at draw {index}: another device, another "
            "number of threads or other versions than then. Queries can be added where the "
            "run was made, or to runs that kept their weights (--keep weights)."
        )
