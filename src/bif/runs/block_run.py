"""Run one block of chains: record its draws, commit them, go on where a commit left it."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bif import tensors
from bif.estimate.sums import BlockSums
from bif.problem.array_layout import Panels, join_panels
from bif.problem.provenance import hardware
from bif.runs.backfill import fill
from bif.runs.block_recorder import BlockRecorder, Segment, with_prefix
from bif.runs.retention import subset_of
from bif.runs.slope_means import SlopeMeans
from bif.sampling.chain import Position
from bif.sampling.engine import Start
from bif.sampling.limits import distance_limit
from bif.sampling.sampler_checks import Checks, check, not_measured
from bif.sampling.sampler_state import on_host
from bif.store import BlockStore, Commit
from bif.store.signals import Wish
from bif.terminal import ProgressBar
from bif.types import HasParams, Params, Shards

if TYPE_CHECKING:
    from bif.runs.recording import Recording

_FRESH_BYTES = 512 * 2**20
"""Bytes recorded since the last commit above which another is due."""
_COMMIT_SHARE = 50
"""Time between two commits at least, in units of what a commit takes."""
_NEXT_CHECK = 1.1
"""Draws at the next check of the goal, in units of the draws at the last one."""


class Unfinished(Exception):
    """Raised when a stop signal arrives while new groups are observed at old draws."""


class BlockRun:
    """One block of a recording as it runs."""

    def __init__(self, whole: Recording, index: int, bar: ProgressBar, wish: Wish) -> None:
        self.whole, self.index, self.bar, self.wish = whole, index, bar, wish
        self.context = context = whole.context
        self.engine, self.chains = context.engine, context.blocks[index]
        self.shards, folder = context.shards, context.folder
        self.store = folder.block(index, shard=self.shards.index) if folder else None
        self.recorder = self._recorder()
        whole.recorders.append(self.recorder)
        self._seconds_before = 0.0
        self._serial = 0
        self._committed_step: int | None = None
        self._next_check = context.goal.fewest if context.goal else 0

    def run(self) -> None:
        """Run the block from where it stands to its last draw, or to a stop signal.

        Where the wish came before, what the block has is read and no more: it is part of a result.
        """
        start = self._start()
        self.bar.advance(self.recorder.taken * len(self.chains))
        self._began = self._committed = time.monotonic()
        self._patience = self.context.commit_every
        end: HasParams | None = None
        complete = self.recorder.taken >= (self.engine.settings.draws or 0)
        complete |= self.recorder.all_diverged
        if complete:
            end = start.state
        elif agreed_signal(self.shards, self.wish) is None:
            end = self._sample(start)
        if self.index == 0 and end is not None and not self.recorder.all_diverged:
            self.whole.checks = self._check(end, anew=not complete)

    def _check(self, end: HasParams, *, anew: bool) -> Checks:
        """Check the sampler at the last draw, or return the checks made when the block ended."""
        folder = self.context.folder
        found = folder.manifest.get("checks") if folder else None
        if found and not anew:
            return Checks.from_dict(found)
        try:
            checks = check(self.engine, end)
        except torch.OutOfMemoryError:
            checks = not_measured()
            self.whole.note("there was no memory left to check the sampler: its gates are open")
        if folder:
            folder.update({"checks": asdict(checks)})
        return checks

    def _sample(self, start: Start) -> HasParams | None:
        """Step and record to the last draw; return its state, None if it was not reached."""
        position: Position | None = None
        for position in self.engine.positions(self.index, len(self.chains), start):
            index = self.engine.draw_at(position.step)
            if index is not None and index >= self.recorder.taken:
                self._record(position)
            stops, due = self._agreed()
            ends = position.step == self.engine.last_step or (not stops and self._reaches_goal())
            if self.store and (stops or ends or due):
                self._commit(self.store, start, position)
            if stops:
                return None
            if ends:
                break
        return position.state if position else None

    def _agreed(self) -> tuple[bool, bool]:
        """Return whether to stop here, and whether a commit is due, by the word of any shard."""
        stops = agreed_signal(self.shards, self.wish) is not None
        found = self.shards.gather((self.recorder.all_diverged, self._commit_due()))
        return stops or any(lost for lost, _ in found), any(due for _, due in found)

    def _reaches_goal(self) -> bool:
        """Return whether the run may end here; check again after a tenth more draws."""
        goal, taken = self.context.goal, self.recorder.taken
        if goal is None or taken < self._next_check:
            return False
        self._next_check = ceil(_NEXT_CHECK * taken)
        self.recorder.settle()
        if not self.whole.current_reliability() >= goal.reliability:
            return False
        self.whole.ended_at = taken
        return True

    def _record(self, position: Position) -> None:
        params = position.state.params
        train, query = self.engine.observed(position)
        if position.gradient is not None:
            with torch.no_grad():
                force = self.engine.posterior.potential_gradient_(
                    tensors.copied(position.gradient), params
                )
                self.whole.identities.add(
                    self.chains.start, self.engine.posterior, state=position.state, force=force,
                    gradient=position.gradient, mean_loss=self.engine.mean_train_loss(train),
                )  # fmt: skip
                if self.context.anchoring is not None:
                    query = torch.cat([query, self.context.anchoring.anchors.along(force)], dim=1)
        if self.recorder.slopes is not None:
            self.recorder.slopes.follow(self.recorder.taken, params, self.recorder.block)
        self.recorder.add(
            train,
            query,
            self.engine.distance_squared(params),
            params if self.context.keep == "weights" else None,
        )
        self.bar.advance(len(self.chains))

    def _recorder(self) -> BlockRecorder:
        s = self.engine.settings
        sums = subset = None
        anchoring = self.context.anchoring
        if self.context.keep == "sums":
            sums = BlockSums(self.chains, num_chains=self.context.blocks[-1].stop)
            subset = subset_of(self.engine.panels)
        return BlockRecorder(
            self.chains,
            num_draws=s.draws,
            distance_limit=distance_limit(self.engine),
            sums=sums,
            subset=subset,
            slopes=anchoring and SlopeMeans(anchoring.slopes),
        )

    def _start(self) -> Start:
        """Return the start at w*, or where the newest whole commit left the block."""
        found = None
        if self.store:
            found = self._newest_of_all(self.store)
        if found is None or self.store is None:
            return self.engine.start(self.index, len(self.chains))
        commit, saved = found
        self._serial, self._seconds_before = commit.serial, commit.seconds
        self.whole.seconds_before += commit.seconds
        self._committed_step = commit.step
        here = hardware(self.engine.device)
        if dict(commit.hardware) != here:
            self.whole.note(other_hardware(commit.hardware, here))
        traces = None
        if commit.draws:  # of the first shard
            if self.context.keep != "sums":
                filling = fill(self.engine, self.store, commit, self.index, self.chains)
                for _ in filling:
                    if self.wish.signal is not None:
                        raise Unfinished
            names = self.context.arrays
            traces = join_panels({n: self.store.traces.read(n, 0, commit.draws) for n in names})
        recorded = {n: x for n, x in saved.items() if not n.startswith(("sampler/", "noise"))}
        recorded, traces = self.shards.of_first((recorded, traces))
        self.recorder.restore(
            traces, diverged=commit.diverged, saved=with_prefix(recorded, "recorder/"),
            device=self.engine.device,
        )  # fmt: skip
        self.whole.identities.restore(self.chains, recorded.get("identities"))
        return self.engine.resumed(
            self.index,
            len(self.chains),
            saved,
            step=commit.step,
            same_device=commit.hardware.get("device") == here["device"],
        )

    def _newest_of_all(self, store: BlockStore) -> tuple[Commit, dict[str, Tensor]] | None:
        """Return the newest commit that is whole on all shards, as this one has it."""
        last: int | None = None
        first = self.shards.index == 0
        arrays = self.context.committed_arrays if first else []
        weights = self.context.weight_arrays if first else []
        while True:
            found = store.usable(arrays, weights, last_step=last)
            steps = self.shards.gather(found[0].step if found else -1)
            if len(set(steps)) == 1:
                return found
            last = min(steps)

    def _commit_due(self) -> bool:
        waited = time.monotonic() - self._committed
        return waited > self._patience or self.recorder.fresh_bytes > _FRESH_BYTES

    def _commit(self, store: BlockStore, start: Start, position: Position) -> None:
        """Hand everything up to here to the writing thread."""
        began = time.monotonic()
        self.recorder.settle()
        segment = self.recorder.drain()
        if segment is None and position.step == self._committed_step:
            return
        own = start.saved(position)
        state = {
            **own,
            **{f"recorder/{n}": x for n, x in self.recorder.state().items()},
            "identities": self.whole.identities.state(self.chains),
        }
        draws = self.recorder.recorded
        if self.shards.count > 1:
            # What all have written before is whole everywhere, before the next takes its place.
            self.context.writer.wait()
            self.shards.gather(None)
            if self.shards.index:  # the first has all but the state
                segment, draws, state = None, 0, own
        self._serial += 1
        commit = Commit(
            serial=self._serial,
            step=position.step,
            draws=draws,
            diverged=dict(self.recorder.diverged),
            seconds=self._seconds_before + self._seconds(),
            hardware=hardware(self.engine.device),
        )
        panels = self.engine.panels
        if self.context.keep == "sums" and segment is not None:
            panels = Panels((segment.train.shape[2],), (segment.query.shape[2],), 1)
        ready = None
        if self.engine.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        self.context.writer.submit(_write, store, commit, panels, segment, state, ready)
        self._committed_step = position.step
        self._committed = time.monotonic()
        self._patience = max(self.context.commit_every, _COMMIT_SHARE * (self._committed - began))

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def agreed_signal(shards: Shards, wish: Wish) -> signal.Signals | None:
    """Return the signal by which any shard was asked to end, and note it as this one's wish."""
    for asked in shards.gather(wish.signal):
        if asked is not None:
            wish.signal = asked
            return asked
    return None


def _write(
    store: BlockStore,
    commit: Commit,
    panels: Panels,
    segment: Segment | None,
    state: Mapping[str, Tensor],
    ready: torch.cuda.Event | None,
) -> None:
    traces: Mapping[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    if segment is not None:
        traces = panels.split(segment.train, segment.query)
        weights = weight_arrays(segment.weights)
    store.commit(commit, traces=traces, weights=weights, state=on_host(state, ready))


def weight_arrays(weights: Params) -> dict[str, np.ndarray]:
    """Return leaves by their position, so that no name of a parameter becomes a path."""
    return {
        f"weight-{i}": (
            leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf
        ).numpy()
        for i, leaf in enumerate(weights.values())
    }


def other_hardware(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the note of a run that was begun on another machine."""
    changed = [
        f"{name} {then.get(name, 'unknown')} then, {now[name]} now"
        for name in now
        if then.get(name) != now[name]
    ]
    return (
        f"the run was begun elsewhere ({'; '.join(changed)}): it is equal in law to one that was "
        "not interrupted, but not to the last bit"
    )
