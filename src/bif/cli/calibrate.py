"""The commands that choose settings and say why, or what a run will take, without sampling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bif import store
from bif.cli.language import Language, pose_problem
from bif.cli.options import Target
from bif.problem.columns import Tokens
from bif.problem.problem import Problem
from bif.runs.retention import Keep
from bif.sampling.choices import Choice, Choices
from bif.sampling.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Choose what the settings leave open, from model and data, and say why.

    With --budget or --reliability a short pilot forecasts draws, seconds and reliability.
    `bif attribute` with the same options does the same before it samples.
    """

    target: Target = None
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


@dataclass(frozen=True)
class LanguageOrSizes(Language):
    """A language model and documents; or, of a plan by sizes, tokens alone."""

    tokens: Tokens | int | None = None  # type: ignore[assignment]
    """Score every token in its own column, as bif attribute has it; or, with --items, the number of
    tokens of an item and of a query, 1 if left out."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run of a live module will take, of a problem or by sizes alone.

    Of a problem: bytes on the device and seconds, by short measurements, memory and files;
    `bif attribute` with the same options says the same before it samples.  By sizes (--items …):
    draws, time, memory, disk, network, and where the limit is.
    """

    target: Target = None
    """FILE.py:FUNCTION, unless there is a --model."""
    items: float | None = None
    """Train items and candidates; with it, no problem is named."""
    model_params: float | None = None
    """Weights of the model, all of which move."""
    queries: float = 1000
    """Queries."""
    gpus: int = 1
    """GPUs that share the chains."""
    gpu_memory: float = 80.0
    """GiB of a GPU."""
    gpu_tflops: float = 445.0
    """TFLOP/s of a GPU that passes of the model reach; the default is .45 of an H100's peak."""
    keep: Keep = "traces"
    """What is kept of the draws."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: LanguageOrSizes = field(default_factory=LanguageOrSizes)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        if self.items is not None or self.model_params is not None:
            self._plan_sizes()
            return
        from bif.calibration.memory_plan import plan
        from bif.runs.retention import forecast, in_words
        from bif.sampling.factory import make_posterior

        if isinstance(self.language.tokens, int):
            raise ValueError(
                f"--tokens {self.language.tokens} is for a plan by sizes: give --items."
            )
        language = Language(**vars(self.language))
        problem, settings = pose_problem(self.target, language, self.settings, query=self.query)
        found = plan(problem, settings)
        posterior = make_posterior(problem, found.settings)
        sizes = forecast(problem, posterior, found.settings, self.keep)
        _print_lines([*found.in_words(), *in_words(sizes, on_disk=True)])

    def _plan_sizes(self) -> None:
        from bif.runs.size_plan import Sizes, plan_sizes

        tokens = 1 if self.language.tokens is None else self.language.tokens
        if not isinstance(tokens, int):
            raise ValueError(f"--tokens {tokens} is of a problem: give the tokens of an item.")
        if self.target is not None or self.language.model is not None:
            raise ValueError(
                "--items and --model-params plan by sizes: name no problem beside them."
            )
        if self.items is None or self.model_params is None:
            raise ValueError("a plan by sizes needs both --items and --model-params.")
        counts = {"items": self.items, "tokens": tokens, "queries": self.queries,
                  "model_params": self.model_params}  # fmt: skip
        for name, count in counts.items():
            if not count >= 1 or count != count // 1:
                raise ValueError(f"{name} is {count:g}: expected a whole number of at least 1.")
        sizes = Sizes(
            **{name: int(count) for name, count in counts.items()}, gpus=self.gpus,
            gpu_bytes=self.gpu_memory * 2**30, gpu_flops=self.gpu_tflops * 1e12,
        )  # fmt: skip
        found = plan_sizes(sizes, self.settings, keep=self.keep)
        budget = self.settings.budget
        _print_lines([*found.in_words(), *found.limits(None if budget is None else float(budget))])
