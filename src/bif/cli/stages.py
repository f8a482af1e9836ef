"""The command that follows influence over the checkpoints of a training."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Literal

import torch

from bif import store
from bif.cli.language import Language, pose_problem
from bif.cli.options import Target
from bif.sampling.settings import Settings
from bif.terminal import escape_controls

if TYPE_CHECKING:
    from bif.problem.problem import Problem
    from bif.problem.series import CheckpointSeries
    from bif.stages import Trajectory

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Follow influence over the checkpoints of a training: peaks, sign flips and onsets.

    Every checkpoint is run with the same items, nbeta, gamma and random numbers, in a folder of its
    own below --out; the same command goes on where it stopped.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --model or an --example."""
    checkpoints: str | None = None
    """Folder of checkpoints, with their steps in the names: files of state dicts, or folders as
    transformers saves."""
    revisions: tuple[str, ...] = ()
    """With --model: revisions of its repository, such as step1000 step2000, in the place of
    --checkpoints."""
    example: Literal["hierarchy"] | None = None
    """A small study that trains its own network."""
    out: str
    """Folder for the runs, the trajectory and summary.json."""
    second_gamma: float | None = None
    """Factor on gamma of a second pass over all checkpoints: events are those that stay."""
    jobs: int = 1
    """Processes that share the checkpoints, each with its part of the cores."""
    share: str | None = None
    """K/N: carry out every N-th checkpoint from the K-th on alone, for commands side by side on
    several machines; the same command without it joins them."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        if self.example is not None:
            self._run_example()
            return
        if bool(self.revisions) == (self.checkpoints is not None):
            raise ValueError("expected --checkpoints DIR, or --model NAME with --revisions A B C.")
        if self.jobs < 1 or (self.jobs > 1 and self.share is not None):
            raise ValueError(f"expected --jobs of 1 or more, without --share, got {self.jobs}.")
        problem, series, settings = self._posed()
        if self.jobs > 1:
            self._share_out(problem, series, settings)
        found = self._follow(problem, series, settings, share=_as_share(self.share))
        if self.share is not None:
            return
        events = found.events()
        _print(
            f"{len(found.steps)} checkpoints, {len(events):,} events, by size of influence:",
            *(event.in_words() for event in events[:_SHOWN]),
            *(f"note: {note}" for note in found.notes),
            f"report: {self.out.rstrip('/')}/{store.REPORT}",
        )

    def _posed(self) -> tuple[Problem, CheckpointSeries, Settings]:
        """Return the question, the checkpoints and the settings."""
        from bif.language import revisions
        from bif.problem.series import CheckpointSeries

        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query
        )
        if self.checkpoints is not None:
            return problem, CheckpointSeries.from_folder(self.checkpoints), settings
        assert self.language.model is not None
        series = revisions(self.language.model, self.revisions, task=self.language.task)
        return problem, series, settings

    def _follow(
        self, problem: Problem, series: CheckpointSeries, settings: Settings,
        *, share: tuple[int, int] | None,
    ) -> Trajectory:  # fmt: skip
        from bif.stages import trajectory

        return trajectory(
            problem, series, settings, second_gamma=self.second_gamma, out=self.out,
            share=share, show_progress=True,
        )  # fmt: skip

    def _share_out(self, problem: Problem, series: CheckpointSeries, settings: Settings) -> None:
        """Let processes carry out the checkpoints, and wait for them."""
        from bif.stages.run import choose_in_common

        choose_in_common(problem, series, settings, out=self.out, show_progress=True)
        jobs = min(self.jobs, len(series.usable(problem).stages))
        threads = max(1, (os.cpu_count() or 1) // jobs)
        shares = [replace(self, jobs=1, share=f"{k}/{jobs}") for k in range(jobs)]
        start = get_context("spawn")
        with ProcessPoolExecutor(jobs, start, torch.set_num_threads, (threads,)) as pool:
            for done in [pool.submit(share.run) for share in shares]:
                done.result()

    def _run_example(self) -> None:
        given = (self.target, self.checkpoints, self.language.model)
        if any(x is not None for x in given) or self.revisions or self.query:
            raise ValueError("--example trains its own network: give --out and --seed alone.")
        from bif.cli.hierarchy_example import run_hierarchy

        found = run_hierarchy(self.out, seed=self.settings.seed)
        extremes = ("dog_sparrow_most_helpful", "dog_sparrow_most_harmful", "never_flips")
        _print(
            *("{}: {:.4g} ± {:.2g} at step {}".format(name, *found[name]) for name in extremes),
            *(
                f"{name}: peak at step {split['peak_step']}, branching {split['branching_step']}"
                for name, split in found["splits"].items()
            ),
            f"written: {self.out}/{store.SUMMARY} and {self.out}/trajectories.svg",
        )


def _as_share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--share must be K/N, such as 0/4, got {text!r}.")
    return int(parts[0]), int(parts[1])


def _print(*lines: str) -> None:
    for line in lines:
        print(escape_controls(line))
