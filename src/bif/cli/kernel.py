"""The command that makes the loss kernel of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from bif import store
from bif.terminal import escape_controls, say

if TYPE_CHECKING:
    import xarray as xr

    from bif.kernel import Agreement, LossKernel
    from bif.runs.run import Run

KERNEL = "kernel.zarr"
MAP = "map"
"""Name of the map's files, without their endings."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Make the loss kernel of a run: which items the model sees as alike.

    Writes each item's neighbours, and how many of them both halves of the chains name, to
    kernel.zarr, figures of all to summary.json, and a map of the items to map.html, map.png,
    map.svg and map.parquet.
    """

    folder: tyro.conf.Positional[str | None] = None
    """A run's folder with the traces of its items, or its URL, unless there is an --example."""
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
        files, of_map = self._map(run, kernel, dataset)
        store.write_summary(
            self.out, figures | of_map | held | about, files=files,
            datasets={KERNEL: dataset.assign_attrs(about)},
        )  # fmt: skip
        if run.failed_gates:
            say([f"NOT TRUSTED ({', '.join(run.failed_gates)}): neighbours may be those of noise."])
        self._print(figures | of_map | ({} if found is None else _main_figures(found)))

    def _map(
        self, run: Run, kernel: LossKernel, described: xr.Dataset
    ) -> tuple[dict[str, str | bytes], dict[str, float]]:
        """Return the map's files and figures; none, with a sentence, where it cannot be drawn."""
        from bif.kernel import item_map, pictures_of

        if self.layout == "none":
            return {}, {}
        if len(kernel) < 3:
            say([f"no map: it needs three items, and there are {len(kernel)}."])
            return {}, {}
        try:
            shown = item_map(
                kernel, described=described, label=self.label,
                layouts=("umap", "pca") if self.layout == "umap" else ("pca",),
                pictures=pictures_of(run, self.sides), failed_gates=run.failed_gates,
                num_seeds=self.layout_seeds, seed=self.seed,
            )  # fmt: skip
            files: dict[str, str | bytes] = {
                f"{MAP}.html": shown.page(), f"{MAP}.png": shown.figure("png"),
                f"{MAP}.svg": shown.figure("svg"), f"{MAP}.parquet": shown.table(),
            }  # fmt: skip
        except ImportError as error:
            say([f"no map: {error}"])
            return {}, {}
        return files, dict(shown.figures)

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
