"""The command that makes the loss kernel of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from bif import store
from bif.terminal import escape_controls, say

KERNEL = "kernel.zarr"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Make the loss kernel of a run: which items the model sees as alike.

    Writes each item's neighbours, and how many of them both halves of the chains name, to
    kernel.zarr, and figures of all to summary.json.
    """

    folder: tyro.conf.Positional[str | None] = None
    """A run's folder with the traces of its items, or its URL, unless there is an --example."""
    example: Literal["two-tasks"] | None = None
    """A small study that trains its own networks."""
    out: str
    """Folder for kernel.zarr and summary.json."""
    sides: Literal["train", "query", "both"] = "train"
    """Items of the kernel."""
    observable: str | None = None
    """Of the queries; the first one by default."""
    label: str | None = None
    """Which of the items' labels classes are; "label" by default, if there is one."""
    neighbours: int = 15
    """Nearest items of each."""
    seed: int = 0
    """Of the example."""

    def run(self) -> None:
        if (self.folder is None) == (self.example is None):
            raise ValueError("expected a run's folder, or --example two-tasks.")
        if self.example is not None:
            self._run_example()
            return
        from bif.kernel import describe, loss_kernel
        from bif.runs.run import load

        assert self.folder is not None
        run = load(self.folder)
        kernel = loss_kernel(run, self.sides, observable=self.observable)
        dataset, figures = describe(kernel, count=self.neighbours, label=self.label)
        about = {"trusted": bool(run.summary.trusted), "failed_gates": run.failed_gates}
        store.write_summary(
            self.out, figures | about, datasets={KERNEL: dataset.assign_attrs(about)}
        )
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): neighbours may be those of noise."])
        self._print(figures)

    def _run_example(self) -> None:
        from bif.kernel import two_tasks

        found = two_tasks.study(self.seed, tell=say)
        store.write_summary(self.out, found)
        self._print({
            name: found[name]
            for name in ("within_block", "cross_block", "cross_block_mean_square", "contrast_rise")
            for name in (name, f"{name}_error")
        })  # fmt: skip

    def _print(self, figures: dict[str, object]) -> None:
        for name, value in figures.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(escape_controls(f"{name}: {shown}"))
        print(escape_controls(f"written: {self.out}"))
