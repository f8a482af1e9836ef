"""Record chains as traces, in memory and on disk: commit, go on, stop when asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bif.calibration.budget import Goal
from bif.estimate.covariance import Covariance, CovarianceSums
from bif.estimate.diagnostics import has_mixed, reliability
from bif.estimate.traces import LossTraces
from bif.runs.anchoring import Anchoring
from bif.runs.block_recorder import BlockRecorder
from bif.runs.block_run import BlockRun, Unfinished, agreed_signal
from bif.runs.retention import Keep
from bif.runs.writer import Writer
from bif.sampling.engine import Engine
from bif.sampling.posterior_identities import IdentitySums
from bif.sampling.sampler_checks import Checks
from bif.sampling.whole_model import WHOLE
from bif.store import RunFolder
from bif.store.signals import Preempted, wishes_to_stop
from bif.terminal import ProgressBar
from bif.types import Shards

_ASK_FOR_LESS = (
    "Ctrl-C keeps what there is by then. Set reliability=0.9 (--reliability) to end as soon as two "
    "halves of the draws agree, or a budget (--budget 10m)."
)


@dataclass(frozen=True)
class Context:
    """What stays the same while a run is recorded.

    Attributes:
        engine: The run's engine.
        keep: What is kept of the draws.
        folder: The run's folder; None keeps everything in memory only.
        commit_every: Seconds from one commit to the next.
        blocks: The chains of each block.
        writer: Writes the commits.
        goal: The reliability that ends the run early, for chains of one block.
        anchoring: Of a run with anchors.
        shards: The processes that sample a block together; one where a recorded run is read.
    """

    engine: Engine
    keep: Keep
    folder: RunFolder | None
    commit_every: float
    blocks: list[range]
    writer: Writer
    goal: Goal | None = None
    anchoring: Anchoring | None = None
    shards: Shards = WHOLE

    @property
    def arrays(self) -> list[str]:
        """Return the names of the arrays that are recorded."""
        panels = self.engine.panels
        return ["train_loss-0", "query_value-0"] if self.keep == "sums" else panels.names

    @property
    def committed_arrays(self) -> list[str]:
        """Return the names of the arrays that every committed draw must have."""
        named = (self.folder.manifest.get("arrays") or []) if self.folder else []
        return [n for n in self.arrays if n in named]

    @property
    def weight_arrays(self) -> list[str]:
        """Return the names of the arrays of weights that are recorded."""
        count = len(self.engine.posterior.center) if self.keep == "weights" else 0
        return [f"weight-{i}" for i in range(count)]


@dataclass(frozen=True)
class Share:
    """What one rank did of a run.

    Attributes:
        blocks: Positions of its blocks.
        seconds: Seconds that it took for them.
        seconds_before: Seconds that earlier processes had taken for them.
        notes: Notes for the reader of the run.
    """

    blocks: list[int]
    seconds: float
    seconds_before: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass
class Recording:
    """The chains of one run as far as they have come.

    Args:
        context: What stays the same while the run is recorded.
    """

    context: Context
    recorders: list[BlockRecorder] = field(default_factory=list)
    interrupted: bool = False
    seconds_before: float = 0.0
    """Seconds of sampling by earlier processes of the run."""
    seconds: float = 0.0
    """Seconds of sampling by this process."""
    checks: Checks | None = None
    """Checks of the sampler at the end of the first block, if it came to its end."""
    ended_at: int | None = None
    """Draws of each chain at which the goal was reached."""
    shares: Sequence[Share] = ()
    """What ranks have sampled into the folder, of which this is then made."""
    notes: list[str] = field(default_factory=list)
    """Notes that a resumed run adds to its warnings."""
    identities: IdentitySums = field(init=False)
    """Sums over the draws of all blocks for the identities that check the sampler."""

    def __post_init__(self) -> None:
        center = self.context.engine.mean_train_loss(
            self.context.engine.observer.train_center[None]
        )
        self.identities = IdentitySums(
            self.context.blocks[-1].stop, center_loss=0.0 if center is None else float(center)
        )

    def run(self, *, show_progress: bool, indices: Iterable[int] | None = None) -> None:
        """Run every block of chains, or those of some indices, to its last draw.

        Ctrl-C stops after the step and keeps what there is.

        Raises:
            Preempted: SIGTERM came; everything so far has been committed.
            DamagedRun: What the folder holds contradicts the problem.
            OSError: The folder cannot be written to; what was committed stays.
            KeyboardInterrupt: Ctrl-C while new groups were observed.
        """
        s = self.context.engine.settings
        open_ended = s.reliability is None and s.budget is None
        bar = ProgressBar(
            s.chains * s.draws, reliability=self.current_reliability, shown=show_progress,
            hint=_ASK_FOR_LESS if open_ended else "",
        )  # fmt: skip
        stops = wishes_to_stop(terminate=self.context.folder is not None)
        began = time.monotonic()
        with bar, stops as wish:
            try:
                for index in range(len(self.context.blocks)) if indices is None else indices:
                    if agreed_signal(self.context.shards, wish) != signal.SIGTERM:
                        BlockRun(self, index, bar, wish).run()
            except Unfinished:  # old draws lack new groups: no result of any kind
                if wish.signal != signal.SIGTERM:
                    raise KeyboardInterrupt("while new groups were observed") from None
            except KeyboardInterrupt:  # outside the main thread's handler, or the second one
                self.interrupted = True
        if wish.signal == signal.SIGTERM:
            raise Preempted(f"stopped by SIGTERM {self.progress_in_words()}")
        self.interrupted |= wish.signal is not None
        for recorder in self.recorders:
            recorder.flush()
        for text in self.context.engine.halved_passes:
            self.note(text)
        self.seconds = time.monotonic() - began
        if self.shares:  # blocks were sampled side by side
            self.seconds += max(share.seconds for share in self.shares)
            self.seconds_before = sum(s.seconds_before for s in self.shares) / len(self.shares)

    def take_in(self, shares: Sequence[Share]) -> None:
        """Note what ranks have sampled into the folder; `run` then reads it."""
        for share in shares:
            for text in share.notes:
                self.note(text)
        self.shares = shares
        if self.context.folder is not None:
            parts = [{"blocks": s.blocks, "seconds": s.seconds} for s in shares]
            self.context.folder.update({"ranks": parts})

    def traces(self) -> LossTraces:
        """Return what chains that are alive and have two draws have recorded."""
        blocks = [recorder.block() for recorder in self.recorders]
        return LossTraces(tuple(b for b in blocks if b is not None and b.num_draws >= 2))

    def covariance(self) -> Covariance:
        """Return the covariance of the sums, which are used up."""
        totals = CovarianceSums()
        for recorder in self.recorders:
            if recorder.sums is not None and recorder.recorded >= 2:
                for closed in recorder.sums.close(recorder.diverged):
                    totals.add(closed)
        return totals.finish()

    def current_reliability(self) -> float:
        """Return the reliability so far, on the host; NaN while chains have not mixed.

        A drift that all chains share would raise it.
        """
        traces = self.traces()
        if traces.num_chains < 2 or not has_mixed(traces):
            return float("nan")
        return reliability(traces, num_queries=32, num_train=512)

    @property
    def final_checks(self) -> Checks | None:
        """Return the checks, with the figures of all draws in place of the last draw's."""
        if self.checks is None:
            return None
        return replace(self.checks, **self.identities.figures(self.diverged))

    @property
    def diverged(self) -> dict[int, int]:
        """Return the chains that diverged, and the draw at which each had."""
        return {c: d for recorder in self.recorders for c, d in recorder.diverged.items()}

    @property
    def lost_to_others(self) -> list[int]:
        """Return the chains left out because they share sums with one that diverged."""
        lost = [r.sums.lost(r.diverged) - set(r.diverged) for r in self.recorders if r.sums]
        return sorted(set().union(*lost))

    @property
    def taken(self) -> int:
        """Return the draws of all chains so far."""
        return sum(r.taken * len(r.chains) for r in self.recorders)

    def note(self, text: str) -> None:
        """Add a note to the run, and to its folder at once."""
        if text not in self.notes:
            self.notes.append(text)
            if self.context.folder is not None:
                self.context.folder.update({"notes": self.notes})

    def progress_in_words(self) -> str:
        """Return how far the run has come, for the message of a run that stops."""
        s = self.context.engine.settings
        return f"after {self.taken:,} of {(s.chains or 0) * (s.draws or 0):,} draws"


def deal(num_chains: int, block_size: int, *, dealt: list[range] | None = None) -> list[range]:
    """Return the chains of each block; blocks that have been dealt stay as they are."""
    blocks = list(dealt or [])
    for start in range(blocks[-1].stop if blocks else 0, num_chains, block_size):
        blocks.append(range(start, min(start + block_size, num_chains)))
    return blocks
