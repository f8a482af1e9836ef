"""The command that judges scores by retraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from bif.cli.loading import load_function

if TYPE_CHECKING:
    from bif.benchmark import Task


@dataclass(frozen=True)
class Lds:
    """Judge the BIF and its rivals by networks that are retrained on subsets of the data.

    Writes results.json (a list of rows), task.json, table.md, plots, and the banks of retrained
    networks, which go on where they were cut short. With --scores and --bank: judge a matrix of
    scores from anywhere.
    """

    setting: tyro.conf.Positional[str | None] = None
    """logistic, digits, concrete, fashion, cifar, resnet20, stories; or FILE.py:FUNCTION that
    returns a bif.benchmark.Task."""
    data: str | None = None
    """Folder with the setting's data files."""
    out: str | None = None
    """Folder for results and banks."""
    methods: tuple[str, ...] = ()
    """Methods to compare; the setting's own choice by default."""
    fractions: tuple[float, ...] = ()
    """Further shares of the train items to retrain on, for a plot."""
    sizes: tuple[int, ...] = ()
    """Numbers of train items to repeat everything with, for a plot."""
    device: str = "cpu"
    """Where to train, retrain and sample."""
    seed: int = 0
    """Seed of split, training, subsets and sampling."""
    scores: str | None = None
    """A file of scores to judge: .npy, .npz, .csv, .safetensors, a run's folder, or a folder of
    kronfluence or bergson."""
    bank: str | None = None
    """With --scores: the folder of the bank to judge by."""
    sign: Literal["loss", "helpful"] | None = None
    """With --scores: what a positive number means: the loss rises with the item, or it helps."""
    observable: str | None = None
    """With --scores: which outcome they predict; the bank's first by default."""

    def run(self) -> None:
        if self.scores is not None or self.bank is not None:
            self._judge()
            return
        if self.setting is None or self.out is None:
            raise ValueError(
                "bif lds needs a setting and --out DIR, or --scores FILE with --bank DIR: pass "
                "either."
            )
        from bif.benchmark import benchmark, benchmark_sizes

        if self.sizes:
            benchmark_sizes(
                self._task, self.sizes, out=self.out, methods=self.methods or None,
                fractions=self.fractions, show_progress=True,
            )  # fmt: skip
        else:
            benchmark(
                self._task(None), out=self.out, methods=self.methods or None,
                fractions=self.fractions, show_progress=True,
            )  # fmt: skip
        _print_table(self.out)

    def _task(self, size: int | None) -> Task:
        from bif.benchmark import Task, named_task

        assert self.setting is not None
        if ".py:" not in self.setting:
            return named_task(
                self.setting, self.data, device=self.device, seed=self.seed, size=size
            )
        default = Lds()
        given = [n for n in ("data", "device", "seed") if getattr(self, n) != getattr(default, n)]
        if given:
            raise ValueError(
                f"{', '.join(f'--{n}' for n in given)}: these are options of the named "
                "settings: leave them out. A task of your own brings data and seed, and runs "
                "where its model is."
            )
        if size is not None:
            raise ValueError(
                "--sizes goes with the named settings, and a task of your own has one size: leave "
                "it out."
            )
        task = load_function(self.setting)()
        if not isinstance(task, Task):
            raise TypeError(
                f"{self.setting} must return a bif.benchmark.Task, got {type(task).__name__}."
            )
        return task

    def _judge(self) -> None:
        if self.scores is None or self.bank is None:
            raise ValueError("--scores and --bank go together: pass both.")
        if self.setting is not None:
            raise ValueError(
                f"--scores judges a file, so the setting {self.setting!r} has no use: drop one."
            )
        from bif.benchmark import judge_file
        from bif.benchmark.judge import table

        print(
            table([judge_file(self.scores, self.bank, sign=self.sign, observable=self.observable)])
        )


def _print_table(out: str) -> None:
    from bif import store
    from bif.benchmark.harness import TABLE

    print(store.folder_at(out).read(TABLE).decode())
    print(f"written to {out.rstrip('/')}/")
