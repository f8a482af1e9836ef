"""The section of suspects: train items that may be mislabelled, duplicated or out of place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bif.report.answer import moved_in_words, shortened
from bif.report.markup import MISSING, called, escape, finite, join_words, number
from bif.report.queries import picture
from bif.report.source import Source

if TYPE_CHECKING:
    import xarray as xr

NUM_SUSPECTS = 24
"""Items shown of each kind: as many as fit on a screen."""


class Suspect(Protocol):
    """A listed train item, as `bif.Run.suspects` names it."""

    @property
    def train_id(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def told(self) -> str: ...


class Suspects(Protocol):
    """What `bif.Run.suspects` returns."""

    @property
    def mislabelled(self) -> Sequence[Suspect]: ...
    @property
    def duplicates(self) -> Sequence[Suspect]: ...
    @property
    def out_of_place(self) -> Sequence[Suspect]: ...
    @property
    def scores(self) -> xr.Dataset: ...
    @property
    def left_out(self) -> str: ...


def moved_labels(source: Source, suspects: Suspects | None) -> list[str]:
    """Return sentences on labels that were moved on purpose; empty where none is known to be."""
    known = source.suspects
    if known is None or known.relabelled is None:
        return []
    score, likely = known.score, None
    if suspects is not None and len(suspects.scores["loss"]) == len(known.relabelled):
        score = suspects.scores["loss"].values
        likely = suspects.scores.get("likely_label")
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    return moved_in_words(
        known.relabelled[order],
        [known.original[i] for i in order],
        None if likely is None else likely.values[order],
    )


def suspects_section(source: Source, suspects: Suspects | None, *, summary: Mapping) -> str:
    """Return the items to look at; empty where there are no scores to tell them by."""
    shape = "items" if source.train.images is not None else "items cards"
    if suspects is None:
        parts = "" if source.suspects is None else _list(_by_suspicion(source), shape)
        left_out = ""
    else:
        place = {name: i for i, name in enumerate(source.train.ids)}
        wrong = "May have a wrong label" if any(source.train.labels) else "Fit worst"
        kinds = [
            (f"{wrong}: largest mean loss first", suspects.mislabelled, "loss"),
            ("Duplicates: their losses are the same at all draws", suspects.duplicates, ""),
            ("Out of place: their losses move with those of no other item",
             suspects.out_of_place, "isolation"),
        ]  # fmt: skip
        parts = ""
        for title, listed, score in kinds:
            tiles = [
                _tile(source, place.get(s.train_id), s, score=score) for s in listed[:NUM_SUSPECTS]
            ]
            if tiles and not parts:
                parts = f"<h3>{title}</h3>{_list(tiles, shape)}"
            elif tiles:
                parts += f"<details><summary>{title}</summary>{_list(tiles, shape)}</details>"
        left_out = f'<p class="under">{escape(suspects.left_out)}</p>' if suspects.left_out else ""
    if not parts:
        return ""
    words = _aurocs(summary)
    return (
        '<section aria-labelledby="suspects"><h2 id="suspects">Train items to look at</h2>'
        f"{parts}{f'<p>{escape(words)}</p>' if words else ''}{left_out}</section>"
    )


def _list(tiles: Sequence[str], shape: str) -> str:
    return f'<ol class="{shape} suspects">{"".join(tiles)}</ol>'


def _by_suspicion(source: Source) -> list[str]:
    suspects = source.suspects
    assert suspects is not None
    score = np.where(np.isfinite(suspects.score), suspects.score, -np.inf)
    order = [int(i) for i in np.argsort(-score, kind="stable")[:NUM_SUSPECTS]]
    return [
        _words(source, i, source.train.ids[i], source.train.labels[i], "",
               f"score {number(suspects.score[i])}")
        for i in order
        if np.isfinite(score[i])
    ]  # fmt: skip


def _tile(source: Source, i: int | None, suspect: Suspect, *, score: str = "") -> str:
    shown = f"{score} {number(suspect.score)}" if score else ""
    return _words(source, i, suspect.train_id, suspect.label, suspect.told, shown)


def _words(source: Source, i: int | None, name: str, label: str, told: str, score: str) -> str:
    """Return one item with its picture or features, its label, and what is known of it."""
    truth, kind = "", "unknown"
    suspects = source.suspects
    if i is not None and suspects is not None and suspects.relabelled is not None:
        original = suspects.original[i]
        hit = bool(suspects.relabelled[i])
        kind = "hit" if hit else "miss"
        words = (f"was {escape(original)}" if original else "moved") if hit else "label not moved"
        truth = f'<span class="truth">{words}{" ✓" if hit else ""}</span>'
    text = "" if i is None else shortened(source.train.text(i))
    return (
        f'<li class="{kind}">{"" if i is None else picture(source.train, i)}'
        f'<p class="who"><b>{_label(source, i, label)}</b> {truth}'
        + (f'<small class="what">{escape(told)}</small>' if told else "")
        + (f'<small class="what">{escape(text)}</small>' if text else "")
        + f"<small>{escape(called(name, 'item'))}</small>"
        + (f"<small>{score}</small>" if score else "")
        + "</p></li>"
    )


def _label(source: Source, i: int | None, label: str) -> str:
    target = "" if i is None else source.train.targets[i]
    return escape(label) or (f"target {escape(target)}" if target else MISSING)


def _aurocs(summary: Mapping) -> str:
    """Return one sentence on the scores that find moved labels; empty where they are not known."""
    names = {
        "mislabel_auroc": "the self-influence",
        "mislabel_auroc_loss_only": "the loss at the trained weights alone",
        "mislabel_auroc_gradient_product": "the gradient product",
    }
    known = {name: finite(summary.get(key)) for key, name in names.items()}
    said = [f"{number(v, digits=4)} by {name}" for name, v in known.items() if v is not None]
    if not said:
        return ""
    return f"Area under the ROC curve of wrong labels, 0.5 by chance: {join_words(said)}."
