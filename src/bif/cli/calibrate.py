"""The commands that choose settings and say why, or what a run will take, without sampling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import tyro

from bif import store
from bif.cli.language import Language, pose_problem
from bif.problem.problem import Problem
from bif.sampling.choices import Choice, Choices
from bif.sampling.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Choose what the settings leave open, from model and data, and say why.

    With --budget or --reliability a short pilot forecasts draws, seconds and reliability.
    `bif attribute` with the same options does the same before it samples.
    """

    target: tyro.conf.Positional[str | None] = None
    """FILE.py:FUNCTION, unless there is a --model."""
    out: str
    """Folder or fsspec URL for calibration.json."""
    bank: str | None = None
    """Folder of a bank whose tuning part is of this target's queries: nbeta and gamma are chosen by
    how well short runs predict its networks."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.calibration.calibrate import calibrate

        store.refuse_foreign_calibration(self.out)
        problem, settings = pose_problem(
            self.target, self.language, self.settings, query=self.query
        )
        choices = Choices(_print_lines)
        if self.bank is not None:
            settings, tuned = _tune_with_bank(problem, settings, self.bank)
            choices.extend(tuned)
        found = calibrate(problem, settings, tell=_print_lines)
        found = replace(found, choices=(*choices, *found.choices))
        store.write_calibration(
            self.out, settings=found.settings.as_dict(), explanations=found.explanations
        )
        print(f"written to {self.out.rstrip('/')}/{store.CALIBRATION}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _tune_with_bank(
    problem: Problem, settings: Settings, folder: str
) -> tuple[Settings, tuple[Choice, ...]]:
    """Return settings with nbeta and gamma by the tuning part of a bank."""
    from bif.calibration.tune import tune
    from bif.evaluate.retraining import load

    part = load(folder).tuning
    if part is None:
        raise ValueError(
            f"the bank in {folder} has no tuning part: make one with "
            "Plan(num_tuning_subsets=24, …), which leaves the reported part untouched."
        )
    if len(problem.query_groups) != 1:
        raise ValueError(
            f"the target has {len(problem.query_groups)} groups of queries: expected one, the "
            "bank's tuning queries."
        )
    (queries,) = problem.query_groups.values()
    found = tune(problem, settings, part=part, queries=queries)
    return found.settings, found.choices


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run of a live module will take: bytes on the device, seconds.

    `bif attribute` with the same options says the same before it samples.
    """

    target: tyro.conf.Positional[str | None] = None
    """FILE.py:FUNCTION, unless there is a --model."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.calibration.memory_plan import plan

        found = plan(*pose_problem(self.target, self.language, self.settings, query=self.query))
        for line in found.in_words():
            print(line)
