"""The command that makes the loss kernel of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from bif import store
from bif.terminal import escape_controls, say

if TYPE_CHECKING:
    from bif.kernel import Agreement

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
    hierarchy: str | None = None
    """Tree of the classes that the kernel is held against: a file of networkx.node_link_data."""
    seed: int = 0
    """Of the example, and of what is drawn at random for --hierarchy."""

    def run(self) -> None:
        if (self.folder is None) == (self.example is None):
            raise ValueError("expected a run's folder, or --example two-tasks.")
        if self.example is not None:
            if self.hierarchy is not None:
                raise ValueError("--hierarchy goes with a run's folder, not with an --example.")
            self._run_example()
            return
        from bif.kernel import agreement, describe, loss_kernel, read_tree
        from bif.runs.run import load

        assert self.folder is not None
        tree = None if self.hierarchy is None else read_tree(self.hierarchy)
        run = load(self.folder)
        kernel = loss_kernel(run, self.sides, observable=self.observable)
        dataset, figures = describe(kernel, count=self.neighbours, label=self.label)
        found = tree and agreement(kernel, tree, label=self.label or "label", seed=self.seed)
        held = {} if found is None else {"hierarchy": found.to_dict()}
        about = {"trusted": bool(run.summary.trusted), "failed_gates": run.failed_gates}
        store.write_summary(
            self.out, figures | held | about, datasets={KERNEL: dataset.assign_attrs(about)}
        )
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): neighbours may be those of noise."])
        self._print(figures | ({} if found is None else _main_figures(found)))

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


def _main_figures(found: Agreement) -> dict[str, object]:
    """Return each figure with its interval and p value in words, and what could be seen."""
    shown: dict[str, object] = {
        name: f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f}), by chance {one.null_mean:.3f}, "
        f"p {one.p:.2g}"
        for name, one in found.figures.items()
    }
    return shown | {
        "least_p": found.least_p,
        "detectable_correlation": found.detectable_correlation,
    }
