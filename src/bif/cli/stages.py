"""The command that follows influence over the checkpoints of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro

from bif import store
from bif.cli.language import Language, pose_problem
from bif.sampling.settings import Settings
from bif.terminal import escape_controls

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Follow influence over the checkpoints of a training: peaks, sign flips and onsets.

    Every checkpoint is run with the same items, nbeta, gamma and random numbers, in a folder of its
    own below --out; the same command goes on where it stopped.
    """

    target: tyro.conf.Positional[str | None] = None
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
        from bif.language import revisions
        from bif.stages import CheckpointSeries, trajectory

        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query
        )
        if self.checkpoints is not None:
            series = CheckpointSeries.from_folder(self.checkpoints)
        else:
            assert self.language.model is not None
            series = revisions(self.language.model, self.revisions, task=self.language.task)
        found = trajectory(problem, series, settings, out=self.out, show_progress=True)
        events = found.events()
        _print(
            f"{len(found.steps)} checkpoints, {len(events):,} events, by size of influence:",
            *(event.in_words() for event in events[:_SHOWN]),
            *(f"note: {note}" for note in found.notes),
            f"report: {self.out.rstrip('/')}/{store.REPORT}",
        )

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


def _print(*lines: str) -> None:
    for line in lines:
        print(escape_controls(line))
