"""Train items to look at: wrong labels, duplicates, and items that are out of place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bif.results.tables import html_folded, html_line, html_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True)
class Suspect:
    """A train item to look at.

    Attributes:
        train_id: The item.
        label: Its label; "" where it has none.
        score: By which it was listed, larger for what is more suspicious.
        told: What else is known: the class that it may belong to, or the other item of a pair.
    """

    train_id: str
    label: str
    score: float
    told: str = ""

    @property
    def name(self) -> str:
        """Return the id with the label, where there is one."""
        return f"{self.train_id} ({self.label})" if self.label else self.train_id

    def __str__(self) -> str:
        return f"{self.name}: {self.score:.3g}{f', {self.told}' if self.told else ''}"


@dataclass(frozen=True, eq=False)
class Suspects:
    """Train items to look at, the most suspicious first; an item is listed once at most.

    Attributes:
        mislabelled: By `loss`, the mean over the draws.  Where there are classes, `told` names the
            one whose items lose what the item gains: of a wrong label often the true class.
        duplicates: Pairs of items whose losses are the same at all draws; the score is the share
            of their spread that is common to both.
        out_of_place: By `isolation`, 1 less the mean correlation with the nearest items: the
            losses of such an item move with those of no other.
        scores: All scores of all train items, larger for what is more suspicious, by `train`.
        left_out: What could not be told of this run, and why; "" if all was.
    """

    mislabelled: tuple[Suspect, ...]
    duplicates: tuple[Suspect, ...]
    out_of_place: tuple[Suspect, ...]
    scores: xr.Dataset
    left_out: str = ""

    def to_dataframe(self) -> pd.DataFrame:
        """Return the listed items as a table, an item a row: why, train_id, label, score, told."""
        import pandas as pd

        rows = [(why, s.train_id, s.label, s.score, s.told) for why, s in self._listed()]
        return pd.DataFrame(rows, columns=["why", "train_id", "label", "score", "told"])

    def __str__(self) -> str:
        lines = []
        for heading, suspects in self._lists().items():
            lines += [heading, *([f"  {suspect}" for suspect in suspects] or ["  none"])]
        return "\n".join([*lines, *([self.left_out] if self.left_out else [])])

    def _repr_html_(self) -> str:
        tables = [
            html_line(heading, strong=True)
            + (html_table(("item", "label", "", "score"),
                          [(s.train_id, s.label, s.told, f"{s.score:.3g}") for s in suspects])
               if suspects else html_line("none"))
            for heading, suspects in self._lists().items()
        ]  # fmt: skip
        end = html_line(self.left_out) if self.left_out else ""
        return "".join(tables) + end + html_folded("all scores", self.scores._repr_html_())

    def _lists(self) -> dict[str, tuple[Suspect, ...]]:
        found = {
            "may have a wrong label, by the mean loss": self.mislabelled,
            "duplicates, by the share of their losses that is the same": self.duplicates,
        }
        if "isolation" in self.scores:
            heading = "out of place, by how little the loss moves with that of any other item"
            found[heading] = self.out_of_place
        return found

    def _listed(self) -> list[tuple[str, Suspect]]:
        lists = {"mislabelled": self.mislabelled, "duplicate": self.duplicates,
                 "out of place": self.out_of_place}  # fmt: skip
        return [(why, suspect) for why, suspects in lists.items() for suspect in suspects]


def listed_suspects(scores: xr.Dataset, k: int, *, left_out: str = "") -> Suspects:
    """Return the k most suspicious items of each kind.

    Args:
        scores: `loss` `[train]`; and, where known, `likely_label`, `isolation`, and of duplicates
            `twin` (a position, -1 of none) and `loss_gap`; coordinates `train_id`, `train_label`.
        k: Items, or pairs of them, of each list at most.
        left_out: What could not be told.

    Raises:
        ValueError: `k` below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: expected the number of items of each list, 1 or more.")
    ids = [str(name) for name in scores["train_id"].values]
    labels = scores.coords.get("train_label")

    def suspect(position: int, score: float, told: str = "") -> Suspect:
        label = "" if labels is None else str(labels.values[position])
        return Suspect(ids[position], label, float(score), told)

    pairs = _pairs(scores)[:k]
    duplicates = tuple(
        suspect(i, 1 - gap, f"the same as {suspect(j, 0).name}") for i, j, gap in pairs
    )
    taken = {i for pair in pairs for i in pair[:2]}
    wrong = _largest(scores["loss"].values, k, taken)
    likely = scores.get("likely_label")
    mislabelled = tuple(
        suspect(i, scores["loss"].values[i],
                "" if likely is None else f"perhaps {likely.values[i]}")
        for i in wrong
    )  # fmt: skip
    alone: list[int] = []
    if "isolation" in scores:
        alone = _largest(scores["isolation"].values, k, {*taken, *wrong})
    out_of_place = tuple(suspect(i, scores["isolation"].values[i]) for i in alone)
    return Suspects(mislabelled, duplicates, out_of_place, scores, left_out)


def _largest(values: np.ndarray, k: int, taken: set[int]) -> list[int]:
    """Return positions of the k largest values that are finite and not taken, largest first."""
    order = np.argsort(-values, kind="stable").tolist()
    return [i for i in order if i not in taken and np.isfinite(values[i])][:k]


def _pairs(scores: xr.Dataset) -> list[tuple[int, int, float]]:
    """Return duplicates, each pair once, the closest first."""
    if "twin" not in scores:
        return []
    found: dict[tuple[int, int], float] = {}
    for i, j in enumerate(scores["twin"].values.tolist()):
        if j >= 0:
            found.setdefault((min(i, j), max(i, j)), float(scores["loss_gap"].values[i]))
    return sorted(((i, j, gap) for (i, j), gap in found.items()), key=lambda pair: pair[2])
