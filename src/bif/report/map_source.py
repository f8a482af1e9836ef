"""What a map of items shows, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """Items at one checkpoint.

    Attributes:
        name: Of the checkpoint; empty where there is one alone.
        places: Of each layout by its name, `[N, 2]`.
        neighbours: Positions of each item's nearest by the kernel, the nearest first, `[N, k]`.
        similarity: Their correlations, `[N, k]`.
        mean_loss: Of each item over the draws, `[N]`.
        loss_variance: `[N]`; self-influence is minus it.
        kept: Share of the neighbours that both halves of the chains name, `[N]`.
        stable: Whether that is more than by chance, `[N]`; the others are grey.
    """

    name: str
    places: Mapping[str, np.ndarray]
    neighbours: np.ndarray
    similarity: np.ndarray
    mean_loss: np.ndarray
    loss_variance: np.ndarray
    kept: np.ndarray
    stable: np.ndarray

    @property
    def by_chance(self) -> float:
        """What `kept` is by chance."""
        return self.neighbours.shape[1] / max(1, len(self.kept) - 1)


@dataclass(frozen=True, eq=False)
class ItemMap:
    """A map of items: as a page, a picture and a table.

    Attributes:
        ids: Names of the items, N of them.
        labels: What is known of each in words, by what it says.
        by: The labels that are the classes; None where there are none.
        texts: Of the items, where they are texts.
        pictures: uint8, `[N, row, column]` or `[N, row, column, channel]`, where they are.
        frames: Items at one checkpoint after the other; all of the same layouts.
        others: Positions of each item's nearest by further measures, `[N, k]`, by their names.
        failed_gates: Of the run: what says that it is not trusted.
        figures: Numbers about the map, by their names.

    Raises:
        ValueError: Other shapes; no frame; layouts that differ between frames; neighbours that are
            no positions; an unknown label.
    """

    ids: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    by: str | None
    texts: Sequence[str] | None
    pictures: np.ndarray | None
    frames: tuple[Frame, ...]
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    failed_gates: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise ValueError(f"the items have no label {self.by!r}: they have {known}.")
        if not self.frames or any(list(f.places) != self.layouts for f in self.frames):
            raise ValueError("expected one or more frames, all of the same layouts.")
        given: dict[str, Any] = {f"labels {name!r}": some for name, some in self.labels.items()}
        given |= {"texts": self.texts, "pictures": self.pictures}
        given |= {f"neighbours by {name}": some for name, some in self.others.items()}
        for frame in self.frames:
            given |= {f"layout {name}": places for name, places in frame.places.items()}
            given |= {"neighbours": frame.neighbours, "similarity": frame.similarity}
            given |= {"losses": frame.mean_loss, "variances": frame.loss_variance}
            given |= {"kept": frame.kept, "stable": frame.stable}
            self._refuse(given)
            self._refuse_positions({"kernel": frame.neighbours, **self.others})
            self._refuse_shapes(frame)

    def _refuse(self, given: Mapping[str, Any]) -> None:
        for name, values in given.items():
            if values is not None and len(values) != len(self):
                raise ValueError(
                    f"{name}: {len(values)}, expected one for each of {len(self)} items."
                )

    def _refuse_shapes(self, frame: Frame) -> None:
        for name, places in frame.places.items():
            if places.shape != (len(self), 2) or not np.isfinite(places).all():
                raise ValueError(
                    f"layout {name} is {places.shape}, or not finite: expected [{len(self)}, 2]."
                )
        expected = self.frames[0].neighbours.shape
        if not frame.neighbours.shape == frame.similarity.shape == expected:
            raise ValueError(
                f"neighbours are {frame.neighbours.shape} with correlations "
                f"{frame.similarity.shape}, expected {expected}, as of the first frame: describe "
                "all with the same number of neighbours."
            )

    def _refuse_positions(self, neighbours: Mapping[str, np.ndarray]) -> None:
        for name, found in neighbours.items():
            found = np.asarray(found)
            if found.ndim != 2 or found.dtype.kind not in "iu" or not found.shape[1]:
                raise ValueError(
                    f"neighbours by {name} are {found.dtype} {found.shape}, expected positions "
                    f"of items, [{len(self)}, k]."
                )
            if found.min() < 0 or found.max() >= len(self):
                raise ValueError(
                    f"neighbours by {name} are {found.min()} to {found.max()}, expected positions "
                    f"of {len(self)} items."
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layouts(self) -> list[str]:
        """Names of the layouts, the one shown first first."""
        return list(self.frames[0].places)

    @property
    def classes(self) -> Sequence[str] | None:
        """The class of each item, where there are classes."""
        return None if self.by is None else self.labels[self.by]

    def settled(self) -> np.ndarray:
        """Return the first frame since which an item has half of its last neighbours, `[N]`."""
        last = self.frames[-1].neighbours
        shares = np.array([
            (frame.neighbours[:, :, None] == last[:, None, :]).any(axis=2).mean(axis=1)
            for frame in self.frames
        ])  # fmt: skip
        below = shares < 0.5
        return len(self.frames) - np.argmax(np.vstack([below[::-1], np.ones(len(self), bool)]), 0)

    def page(self) -> str:
        """Return one HTML page, which needs no network, of at most 60 MB.

        Raises:
            ImportError: Pillow is missing (extra `maps`), and there are pictures.
        """
        from bif.report.map_page import render_map

        return render_map(self)

    def figure(self, kind: Literal["svg", "png"] = "svg") -> bytes:
        """Return the map of the last frame as a picture for papers.

        Raises:
            ImportError: matplotlib is missing (extra `maps`).
        """
        from bif.report.map_figure import draw_map

        return draw_map(self, kind)

    def table(self) -> bytes:
        """Return the last frame as a parquet file, which embedding-atlas opens.

        Raises:
            ImportError: pyarrow is missing (extra `maps`).
        """
        from bif.report.map_table import map_table

        return map_table(self)
