"""From chains to traces, in memory and on disk: record, commit, go on, stop when asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from bif.calibration.budget import Goal
from bif.estimate.covariance import Covariance, CovarianceSums
from bif.estimate.diagnostics import has_mixed, reliability
from bif.estimate.sums import BlockSums
from bif.estimate.traces import LossTraces
from bif.problem.array_layout import Panels, joined
from bif.problem.provenance import hardware
from bif.runs.backfill import fill
from bif.runs.block_recorder import BlockRecorder, Segment, below
from bif.runs.retention import Keep, subset_of
from bif.runs.writer import Writer
from bif.sampling.chain import Position
from bif.sampling.engine import Engine, Start
from bif.sampling.posterior_identities import IdentitySums
from bif.sampling.sampler_checks import Checks, check, not_measured
from bif.sampling.sampler_state import on_host
from bif.store import BlockStore, Commit, RunFolder
from bif.store.signals import Preempted, Wish, wishes_to_stop
from bif.terminal import ProgressBar
from bif.types import HasParams, Params

_FRESH_BYTES = 512 * 2**20
_COMMIT_SHARE = 50
"""A commit's cost is at most about one part in this many of the time."""
_NEXT_LOOK = 1.1
"""Draws at the next look at the goal, in units of those at the last."""


@dataclass
class Recording:
    """One run's chains as far as they have come.

    Args:
        engine: The machinery.
        keep: What is kept of the draws.
        folder: Where it is kept, or None: in memory only.
        commit_every: Seconds from one commit to the next.
        blocks: The chains of each block.
        writer: Writes the commits.
        goal: Where to end before the last draw, for chains of one block.
    """

    engine: Engine
    keep: Keep
    folder: RunFolder | None
    commit_every: float
    blocks: list[range]
    writer: Writer
    goal: Goal | None = None
    recorders: list[BlockRecorder] = field(default_factory=list)
    interrupted: bool = False
    seconds_before: float = 0.0
    """Of sampling, by the processes that began the run."""
    seconds: float = 0.0
    """Of sampling, by this process."""
    checks: Checks | None = None
    """Of the first block, where it came to its end."""
    ended_at: int | None = None
    """Draws of each chain at which the goal was reached."""
    notes: list[str] = field(default_factory=list)
    """What a resumed run has to say of itself."""
    identities: IdentitySums = field(init=False)
    """What the draws of all blocks say of the sampler."""

    def __post_init__(self) -> None:
        center = self.engine.mean_train_loss(self.engine.train_center[None])
        self.identities = IdentitySums(
            self.blocks[-1].stop, center_loss=0.0 if center is None else float(center)
        )

    def run(self, *, show_progress: bool) -> None:
        """Run every block of chains to its last draw.

        Ctrl-C stops after the step and keeps what there is.

        Raises:
            Preempted: SIGTERM came; everything so far has been committed.
            DamagedRun: What the folder holds contradicts the problem.
            OSError: The folder cannot be written to; what was committed stays.
            KeyboardInterrupt: Ctrl-C while new groups were observed.
        """
        s = self.engine.settings
        bar = ProgressBar(
            s.chains * s.draws, reliability=self.current_reliability, shown=show_progress
        )
        stops = wishes_to_stop(terminate=self.folder is not None)
        began = time.monotonic()
        with bar, stops as wish:
            try:
                for index in range(len(self.blocks)):
                    if wish.signal != signal.SIGTERM:
                        _BlockRun(self, index, bar, wish).run()
            except _Unfinished:  # old draws lack new groups: no result of any kind
                if wish.signal != signal.SIGTERM:
                    raise KeyboardInterrupt("while new groups were observed") from None
            except KeyboardInterrupt:  # outside the main thread's handler, or the second one
                self.interrupted = True
        if wish.signal == signal.SIGTERM:
            raise Preempted(f"stopped by SIGTERM {self.progress_in_words()}")
        self.interrupted |= wish.signal is not None
        for recorder in self.recorders:
            recorder.flush()
        self.seconds = time.monotonic() - began

    def traces(self) -> LossTraces:
        """What has been recorded by chains that are alive and have two draws."""
        blocks = [recorder.block() for recorder in self.recorders]
        return LossTraces(tuple(b for b in blocks if b is not None and b.num_draws >= 2))

    def covariance(self) -> Covariance:
        """From the sums, which are used up."""
        totals = CovarianceSums()
        for recorder in self.recorders:
            if recorder.sums is not None and recorder.recorded >= 2:
                for closed in recorder.sums.close(recorder.diverged):
                    totals.add(closed)
        return totals.finish()

    def current_reliability(self) -> float:
        """Reliability of what has reached the host; NaN while chains have not mixed.

        A drift that all chains share would raise it.
        """
        traces = self.traces()
        if traces.num_chains < 2 or not has_mixed(traces):
            return float("nan")
        return reliability(traces, num_queries=32, num_train=512)

    @property
    def looked_at(self) -> Checks | None:
        """The checks of the first block's end, with what all draws say in the place of the last."""
        if self.checks is None:
            return None
        return replace(self.checks, **self.identities.figures(self.diverged))

    @property
    def diverged(self) -> dict[int, int]:
        """Chains that diverged, and the draw at which they had."""
        return {c: d for recorder in self.recorders for c, d in recorder.diverged.items()}

    @property
    def taken_along(self) -> list[int]:
        """Chains that were left out because they shared their sums with one that diverged."""
        lost = [r.sums.lost(r.diverged) - set(r.diverged) for r in self.recorders if r.sums]
        return sorted(set().union(*lost))

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays that are recorded."""
        panels = self.engine.panels
        return ["train_loss-0", "query_value-0"] if self.keep == "sums" else panels.names

    @property
    def weight_arrays(self) -> list[str]:
        """Names of the arrays of weights that are recorded."""
        count = len(self.engine.posterior.center) if self.keep == "weights" else 0
        return [f"weight-{i}" for i in range(count)]

    @property
    def taken(self) -> int:
        """Draws of all chains so far."""
        return sum(r.taken * len(r.chains) for r in self.recorders)

    def note(self, text: str) -> None:
        """Keep something that the run has to say of itself, whatever happens to it later."""
        if text not in self.notes:
            self.notes.append(text)
            if self.folder is not None:
                self.folder.update({"notes": self.notes})

    def progress_in_words(self) -> str:
        """For the message of a run that stops."""
        s = self.engine.settings
        return f"after {self.taken:,} of {(s.chains or 0) * (s.draws or 0):,} draws"


class _Unfinished(Exception):
    """A wish to stop came while new groups were observed at old draws."""


class _BlockRun:
    """One block of a recording on its way."""

    def __init__(self, whole: Recording, index: int, bar: ProgressBar, wish: Wish) -> None:
        self.whole, self.index, self.bar, self.wish = whole, index, bar, wish
        self.engine, self.chains = whole.engine, whole.blocks[index]
        self.store = whole.folder.block(index) if whole.folder else None
        self.recorder = self._recorder()
        whole.recorders.append(self.recorder)
        self._seconds_before = 0.0
        self._serial = 0
        self._committed_step: int | None = None
        self._next_look = whole.goal.fewest if whole.goal else 0

    def run(self) -> None:
        """From where the block stands to its last draw, or to a wish to stop.

        Where the wish came before, what the block has is read and no more: it is part of a result.
        """
        start = self._start()
        self.bar.advance(self.recorder.taken * len(self.chains))
        self._began = self._committed = time.monotonic()
        self._patience = self.whole.commit_every
        end: HasParams | None = None
        complete = self.recorder.taken >= (self.engine.settings.draws or 0)
        if complete:
            end = start.state
        elif self.wish.signal is None:
            end = self._walk(start)
        if self.index == 0 and end is not None and not self.recorder.all_diverged:
            self.whole.checks = self._checked(end, anew=not complete)

    def _checked(self, end: HasParams, *, anew: bool) -> Checks:
        """What the sampler's state at the last draw tells, or told when the block ended."""
        folder = self.whole.folder
        found = folder.manifest.get("checks") if folder else None
        if found and not anew:
            return Checks.from_dict(found)
        try:
            checks = check(self.engine, end)
        except torch.OutOfMemoryError:
            checks = not_measured()
            self.whole.note("there was no memory left to look at the sampler: its gates are open")
        if folder:
            folder.update({"checks": asdict(checks)})
        return checks

    def _walk(self, start: Start) -> HasParams | None:
        """The state at the last draw, if it was reached."""
        position: Position | None = None
        for position in self.engine.positions(self.index, len(self.chains), start):
            index = self.engine.draw_at(position.step)
            if index is not None and index >= self.recorder.taken:
                self._record(position)
            stops = self.wish.signal is not None or self.recorder.all_diverged
            ends = position.step == self.engine.last_step or (not stops and self._goal_reached())
            if self.store and (stops or ends or self._commit_due()):
                self._commit(self.store, start, position)
            if stops:
                return None
            if ends:
                break
        return position.state if position else None

    def _goal_reached(self) -> bool:
        """Whether the run may end here; looks again after a tenth more draws."""
        goal, taken = self.whole.goal, self.recorder.taken
        if goal is None or taken < self._next_look:
            return False
        self._next_look = ceil(_NEXT_LOOK * taken)
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
                self.whole.identities.add(
                    self.chains.start, self.engine.posterior, state=position.state,
                    gradient=position.gradient, mean_loss=self.engine.mean_train_loss(train),
                )  # fmt: skip
        self.recorder.add(
            train,
            query,
            self.engine.distance_squared(params),
            params if self.whole.keep == "weights" else None,
        )
        self.bar.advance(len(self.chains))

    def _recorder(self) -> BlockRecorder:
        s = self.engine.settings
        sums = subset = None
        if self.whole.keep == "sums":
            sums = BlockSums(self.chains, num_chains=self.whole.blocks[-1].stop)
            subset = subset_of(self.engine.panels)
        return BlockRecorder(
            self.chains,
            num_draws=s.draws,
            distance_limit=self.engine.distance_limit(),
            sums=sums,
            subset=subset,
        )

    def _start(self) -> Start:
        """At w*, or where the newest whole commit left the block."""
        found = None
        if self.store:
            found = self.store.usable(recorded_arrays(self.whole), self.whole.weight_arrays)
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
        if commit.draws:
            if self.whole.keep != "sums":
                filling = fill(self.engine, self.store, commit, self.index, self.chains)
                for _ in filling:
                    if self.wish.signal is not None:
                        raise _Unfinished
            names = self.whole.arrays
            traces = joined({n: self.store.traces.read(n, 0, commit.draws) for n in names})
        self.recorder.restore(
            traces, diverged=commit.diverged, saved=below(saved, "recorder/"),
            device=self.engine.device,
        )  # fmt: skip
        self.whole.identities.restore(self.chains, saved.get("identities"))
        return self.engine.resumed(
            self.index,
            len(self.chains),
            saved,
            step=commit.step,
            same_device=commit.hardware.get("device") == here["device"],
        )

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
        state = {
            **start.saved(position),
            **{f"recorder/{n}": x for n, x in self.recorder.state().items()},
            "identities": self.whole.identities.state(self.chains),
        }
        self._serial += 1
        commit = Commit(
            serial=self._serial,
            step=position.step,
            draws=self.recorder.recorded,
            diverged=dict(self.recorder.diverged),
            seconds=self._seconds_before + self._seconds(),
            hardware=hardware(self.engine.device),
        )
        panels = self.engine.panels
        if self.whole.keep == "sums" and segment is not None:
            panels = Panels((segment.train.shape[2],), (segment.query.shape[2],), 1)
        ready = None
        if self.engine.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        self.whole.writer.submit(_write, store, commit, panels, segment, state, ready)
        self._committed_step = position.step
        self._committed = time.monotonic()
        self._patience = max(self.whole.commit_every, _COMMIT_SHARE * (self._committed - began))

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def deal(num_chains: int, block_size: int, *, dealt: list[range] | None = None) -> list[range]:
    """The chains of each block; blocks that have been dealt stay as they are."""
    blocks = list(dealt or [])
    for start in range(blocks[-1].stop if blocks else 0, num_chains, block_size):
        blocks.append(range(start, min(start + block_size, num_chains)))
    return blocks


def recorded_arrays(recording: Recording) -> list[str]:
    """The arrays that every committed draw must have."""
    assert recording.folder is not None
    named = recording.folder.manifest.get("arrays") or []
    return [n for n in recording.arrays if n in named]


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
    """Leaves by their position, so that no name of a parameter becomes a path."""
    return {
        f"weight-{i}": (
            leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf
        ).numpy()
        for i, leaf in enumerate(weights.values())
    }


def other_hardware(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What a run says that was begun elsewhere."""
    changed = [
        f"{name} {then.get(name, 'unknown')} then, {now[name]} now"
        for name in now
        if then.get(name) != now[name]
    ]
    return (
        f"the run was begun elsewhere ({'; '.join(changed)}): it is equal in law to one that was "
        "not interrupted, but not to the last bit"
    )
