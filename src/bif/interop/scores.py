"""Imported scores: checked, in float64, signed as the BIF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bif.problem.literals import require_literal
from bif.store import Folder, folder_at
from bif.types import Better

Sign = Literal["loss", "helpful"]
"""How a file signs: "loss" as the BIF, the derivative of the observable with respect to the weight
of the item; "helpful" larger for items that help more."""

Tokens = Literal["refuse", "sum"]
"""Whether scores of single tokens are refused, or summed to their item's."""


@dataclass(frozen=True, eq=False)
class ImportedScores:
    """Scores of another library, or of a plain file.

    Attributes:
        scores: float64 [Q, N], signed as the BIF: positive = the outcome rises with the item.
        query_ids: Q names, or None where the file has none: rows are positions then.
        train_ids: N names, or None likewise.
        source: What was read and what was done to it, in words.
    """

    scores: np.ndarray
    query_ids: tuple[str, ...] | None
    train_ids: tuple[str, ...] | None
    source: str

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if self.scores.ndim != 2 or 0 in shape:
            raise ValueError(
                f"{self.source}: scores have shape {shape}; expected [Q, N], a row for each query "
                "and a column for each train item."
            )
        bad = ~np.isfinite(self.scores)
        if bad.any():
            q, i = (int(k) for k in np.argwhere(bad)[0])
            raise ValueError(
                f"{self.source}: {int(bad.sum())} of {bad.size} scores are NaN or infinite, the "
                f"first at query {q}, item {i}; expected finite numbers. Mend them first."
            )
        for ids, count, axis in (
            (self.query_ids, shape[0], "query"),
            (self.train_ids, shape[1], "train"),
        ):
            if ids is not None and (len(ids) != count or len(set(ids)) != count):
                raise ValueError(
                    f"{self.source}: {len(ids)} {axis} ids, {len(set(ids))} of them different, "
                    f"for {count} {axis} items; expected a name of its own for each."
                )

    def aligned(self, *, query_ids: Sequence[str], train_ids: Sequence[str]) -> np.ndarray:
        """Return scores of these queries and train items, in this order, float64 [Q, N].

        An axis of the file without ids is taken by position, and must have the right length.

        Args:
            query_ids: Q names.
            train_ids: N names.

        Raises:
            ValueError: If names are missing, or the number does not fit.
        """
        rows = _positions(query_ids, self.query_ids, self.scores.shape[0], "query", self.source)
        columns = _positions(train_ids, self.train_ids, self.scores.shape[1], "train", self.source)
        return self.scores[np.ix_(rows, columns)]


def as_signed(scores: Any, sign: Sign, better: Better) -> np.ndarray:
    """Return scores in float64, signed as the BIF.

    Args:
        scores: [Q, N].
        sign: How they are signed.
        better: Which way the observable is better; helpful items push it there.

    Raises:
        ValueError: If `sign` or `better` is none of the known.
    """
    if sign not in get_args(Sign):
        raise ValueError(
            f"sign is {sign!r}; expected 'loss' (positive = the observable rises with the item, "
            "as here) or 'helpful' (positive = the item helps). A file does not say which."
        )
    require_literal("better", better, Better)
    scores = np.asarray(scores).astype(np.float64)
    return -scores if sign == "helpful" and better == "lower" else scores


def parent_and_name(path: str | Path | Folder) -> tuple[Folder, str]:
    """Return the folder that holds a file or folder, and its name in there."""
    parent, _, name = str(path).rstrip("/").rpartition("/")
    return folder_at(parent or ("/" if str(path).startswith("/") else ".")), name


def _positions(
    wanted: Sequence[str], there: Sequence[str] | None, count: int, axis: str, source: str
) -> list[int]:
    if there is None:
        if len(wanted) != count:
            raise ValueError(
                f"{source}: {count} {axis} items without ids, but {len(wanted)} are wanted; "
                "expected as many, in the same order."
            )
        return list(range(count))
    position = {name: p for p, name in enumerate(there)}
    missing = [str(name) for name in wanted if str(name) not in position]
    if missing:
        raise ValueError(
            f"{source}: no scores for {len(missing)} of {len(wanted)} {axis} items, the first is "
            f"{missing[0]!r}; the file's first ids are {list(there[:3])}."
        )
    return [position[str(name)] for name in wanted]
