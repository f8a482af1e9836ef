"""The command that makes the loss kernel of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from bif import store
from bif.cli.kernel_map import MAP_FILES, Described, MapOptions, map_files
from bif.terminal import escape_controls, say

if TYPE_CHECKING:
    from bif.kernel import Agreement, ClassTree, LossKernel

KERNEL = "kernel.zarr"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Make the loss kernel of a run: which items the model sees as alike.

    Writes each item's neighbours, how many of them both halves of the chains name, clusters and
    what may be an outlier, mislabelled or a duplicate to kernel.zarr, figures of all to
    summary.json, and a map of the items to map.html, map.png, map.svg and map.parquet.
    """

    folder: tyro.conf.Positional[str | None] = None
    """A run's folder with the traces of its items, or its URL, or a folder of bif stages, whose
    checkpoints the map goes through; unless there is an --example."""
    example: Literal["two-tasks"] | None = None
    """A small study that trains its own networks."""
    out: str
    """Folder for kernel.zarr, summary.json and the map."""
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
    layout: Literal["umap", "pca", "none"] = "umap"
    """Of the map: UMAP with principal components beside it, these alone, or no map."""
    layout_seeds: int = 2
    """Seeds of UMAP; how many neighbours in the plane they share is in summary.json."""
    seed: int = 0
    """Of the example, of the map, and of what is drawn at random for --hierarchy."""

    def run(self) -> None:
        if (self.folder is None) == (self.example is None):
            raise ValueError("expected a run's folder or --example two-tasks, and not both.")
        least = min(self.neighbours, self.layout_seeds)
        if least < 1:
            raise ValueError(f"--neighbours and --layout-seeds: expected 1 or more, got {least}.")
        if self.example is not None:
            if self.hierarchy is not None:
                raise ValueError("--hierarchy goes with a run's folder, not with an --example.")
            store.claim_summary(self.out)
            self._run_example()
            return
        from bif.kernel import agreement, read_tree, top_suspects

        assert self.folder is not None
        tree = None if self.hierarchy is None else read_tree(self.hierarchy)
        stages: list[Described] = []
        last_kernel = None
        for kernel, stage in self._described(self.folder, tree):
            last_kernel = kernel  # those before are let go
            stages.append(stage)
        assert last_kernel is not None
        last = stages[-1]
        found = tree and agreement(last_kernel, tree, label=self.label or "label", seed=self.seed)
        held = {} if found is None else {"hierarchy": found.to_dict()}
        if len(stages) > 1:
            held["checkpoints"] = {stage.name: stage.figures for stage in stages}
        gates = list(dict.fromkeys(gate for stage in stages for gate in stage.failed_gates))
        about = {"trusted": all(stage.trusted for stage in stages), "failed_gates": gates}
        files = map_files([(stage.name, stage.shown) for stage in stages])
        store.write_summary(
            self.out, last.figures | held | about, files=files,
            datasets={KERNEL: last.dataset.assign_attrs(about)},
        )  # fmt: skip
        if gates:
            say([f"NOT TRUSTED ({', '.join(gates)}): neighbours may be those of noise."])
        shown = last.figures | top_suspects(last.dataset)
        self._print(shown | ({} if found is None else _main_figures(found)))

    def _described(
        self, folder: str, tree: ClassTree | None
    ) -> Iterator[tuple[LossKernel, Described]]:
        """Yield the kernel of the run in a folder, or of each of a series of checkpoints.

        What can be refused is, before it takes long: labels that the tree has not, and the folder.
        """
        from bif.kernel import describe, loss_kernel
        from bif.runs.run import load

        options = MapOptions(self.layout, self.layout_seeds, self.sides, self.label, self.seed)
        places = store.stage_runs(folder) if store.holds_stages(folder) else {"": folder}
        shown = None
        for name, place in places.items():
            run = load(place)
            kernel = loss_kernel(run, self.sides, observable=self.observable)
            if self.label is not None:
                kernel.labels_of(self.label)
            if tree is not None:
                tree.of_classes(sorted(set(kernel.labels_of(self.label or "label"))))
            store.claim_summary(self.out, [KERNEL, *(MAP_FILES if self.layout != "none" else ())])
            dataset, figures = describe(kernel, count=self.neighbours, label=self.label)
            shown = options.draw(run, kernel, dataset, shown)
            of_map = {} if shown is None else dict(shown.figures)
            yield kernel, Described(
                name, dataset, figures | of_map, shown, bool(run.summary.trusted),
                tuple(run.failed_gates),
            )  # fmt: skip

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
