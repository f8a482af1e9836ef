"""The maps of `bif kernel`: of a run, or of one run after the other of a series of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bif.terminal import say

if TYPE_CHECKING:
    import xarray as xr

    from bif.kernel import ItemMap, LossKernel
    from bif.runs.run import Run

MAP = "map"
"""Name of the map's files, without their endings."""
MAP_FILES = tuple(f"{MAP}.{ending}" for ending in ("html", "png", "svg", "parquet"))
"""The map's files: page, pictures and table."""


@dataclass(frozen=True, eq=False)
class Described:
    """What is said of a run's kernel.

    Attributes:
        name: Of the checkpoint; empty where there is one run alone.
        dataset: Their neighbours.
        figures: Of all items and of their map.
        shown: The map; None where it cannot be drawn.
        trusted: Whether the run is.
        failed_gates: Of the run.
    """

    name: str
    dataset: xr.Dataset
    figures: dict[str, Any]
    shown: ItemMap | None
    trusted: bool
    failed_gates: tuple[str, ...]


@dataclass(frozen=True)
class MapOptions:
    """How maps are drawn: the fields of the command's that they need."""

    layout: Literal["umap", "pca", "none"]
    seeds: int
    sides: Literal["train", "query", "both"]
    label: str | None
    seed: int

    def draw(
        self, run: Run, kernel: LossKernel, dataset: xr.Dataset, after: ItemMap | None
    ) -> ItemMap | None:
        """Return the map of a kernel; None, with a sentence, where it cannot be drawn."""
        from bif.kernel import find_neighbours, item_map, picture_kernel, pictures_of

        if self.layout == "none":
            return None
        if len(kernel) < 3:
            say([f"no map: it needs three items, and there are {len(kernel)}."])
            return None
        pictures, others = pictures_of(run, self.sides), {}
        if pictures is not None:
            by_pixels = picture_kernel(pictures, kernel)
            count = dataset["neighbour"].shape[1]
            others["pixels"] = find_neighbours(by_pixels, count, seed=self.seed).places
        try:
            return item_map(
                kernel, described=dataset, label=self.label,
                layouts=("umap", "pca") if self.layout == "umap" else ("pca",),
                others=others, pictures=pictures, failed_gates=run.failed_gates,
                after=after, num_seeds=self.seeds, seed=self.seed,
            )  # fmt: skip
        except ImportError as error:
            say([f"no map: {error}"])
            return None


def map_files(maps: Sequence[tuple[str, ItemMap | None]]) -> dict[str, str | bytes | None]:
    """Return the files of maps by checkpoint; None, with a sentence, without what draws them."""
    from bif.kernel import map_series

    drawn = {name: shown for name, shown in maps if shown is not None}
    if len(drawn) < len(maps):
        return dict.fromkeys(MAP_FILES)
    shown = map_series(drawn)
    writers: list[Callable[[], str | bytes]] = [
        shown.page, lambda: shown.figure("png"), shown.figure, shown.table,
    ]  # fmt: skip
    try:
        return {name: write() for name, write in zip(MAP_FILES, writers, strict=True)}
    except ImportError as error:
        say([f"no map: {error}"])
        return dict.fromkeys(MAP_FILES)
