"""The command that scores items from traces that memory does not hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from bif import store
from bif.cli.averages import write_scores
from bif.cli.language import Language, pose_problem
from bif.cli.options import Folder, Target
from bif.cli.runs import joined
from bif.sampling.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StreamCovariance:
    """Score all items from the traces of a run, ended or not, that memory does not hold.

    Started by torchrun or Slurm, the processes stream some blocks of chains each.
    """

    folder: Folder
    """A run's folder, or its URL, with traces."""
    target: Target = None
    """FILE.py:FUNCTION, the run's problem, which names items and queries of a run that has no
    results yet, unless there is a --model."""
    out: str
    """Folder for influence.zarr and summary.json."""
    query: tuple[str, ...] = ()
    """With --model: the run's files of queries."""
    candidates: tuple[str, ...] = ()
    """With --model: the run's files of documents that were not trained on."""
    without_proxies: bool = False
    """Whether the run records the observables themselves."""
    language: Language = field(default_factory=Language)

    def run(self) -> None:
        from bif.runs.streaming import stream_influence

        problem = None
        if self.target is not None or self.language.model is not None:
            problem, _ = pose_problem(
                self.target, self.language, Settings(), query=self.query,
                candidates=self.candidates, without_proxies=self.without_proxies,
            )  # fmt: skip
        with joined() as ranks:
            is_first = ranks is None or ranks.is_first
            if is_first:  # refused before it takes long
                store.claim_summary(self.out, [store.INFLUENCE])
            found = stream_influence(self.folder, problem, ranks=ranks)
            if is_first:
                write_scores(found, self.out)
