"""What the page of tokens shows, picked from scores of tokens and from their sums over items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bif.report.source import Source, read_source, top_k

if TYPE_CHECKING:
    import xarray as xr

MAX_CELLS = 1_000_000
"""Pairs of tokens on one page, each of which takes four bytes of its text."""
Side = Literal["train", "query"]
SUMS = ("train", "query", "both")


@dataclass(frozen=True)
class Scores:
    """Scores of some rows and columns in both views, `[R, C]`, and whether their sign is certain.

    `certain` is False where there is no error.
    """

    influence: np.ndarray
    correlation: np.ndarray
    certain: np.ndarray

    def select(self, rows: Sequence[int], columns: Sequence[int]) -> Scores:
        """Return the scores of some rows and columns."""
        where = np.ix_(list(rows), list(columns))
        return Scores(self.influence[where], self.correlation[where], self.certain[where])


@dataclass(frozen=True)
class Texts:
    """The items of one side: their pieces, and which of these have a column.

    Attributes:
        pieces: The pieces of every item; an item without known pieces has none.
        columns: Positions of every item's columns among all columns of the side.
        tokens: The piece that each of these is about; empty for whole items.
        by_token: Whether columns are tokens.
    """

    pieces: list[list[str]]
    columns: list[list[int]]
    tokens: list[list[int]]
    by_token: bool


@dataclass(frozen=True)
class TokenSource:
    """Scores of tokens on tokens, of passages on tokens, of tokens on queries, and of both sums.

    Attributes:
        items: Whole items, as the usual page reads them.
        observable: The position of the observable that is shown.
        passages: The train side.
        queries: The query side.
        on_tokens: Scores of tokens on tokens; of_passages: of whole passages on tokens.
        on_queries: Scores of tokens on whole queries.
        origins: Where every passage comes from; empty where unknown.
        sources: Scores of sources on whole queries, where there are several.
    """

    items: Source
    observable: int
    passages: Texts
    queries: Texts
    on_tokens: Scores
    of_passages: Scores
    on_queries: Scores
    origins: list[str]
    sources: xr.Dataset | None

    @property
    def better(self) -> str:
        """The observable's better direction."""
        return self.items.better[self.observable]

    @property
    def helpful_sign(self) -> int:
        """The sign of helpful scores; of those that lower the observable if none is better."""
        return 1 if self.better == "higher" else -1

    def top_passages(self, query: int, *, sign: int, top: int) -> list[int]:
        """Return the passages with the largest scores of one sign on a whole query."""
        return top_k(self.items.score[self.observable, query], sign=sign, top=top)

    def num_cells(self, query: int, passages: Sequence[int]) -> int:
        """Return the number of pairs of columns of a query and some passages."""
        rows = len(self.queries.columns[query])
        return rows * sum(len(self.passages.columns[p]) for p in passages)


def read_token_source(
    influence: xr.Dataset, summed: Mapping[str, xr.Dataset], *, observable: str | None = None
) -> TokenSource:
    """Check scores of tokens and their sums.

    Args:
        influence: Scores of tokens, with `train_item` or `query_item`.
        summed: `by_item` over the tokens of "train", "query" and "both"; with "sources", too, sums
            over sources on whole queries.
        observable: The observable to show; the first one by default.

    Raises:
        ValueError: No token columns, no sums, or an observable that is not there.
    """
    if not has_tokens(influence):
        raise ValueError(
            "the influence dataset has neither 'train_item' nor 'query_item': the page of tokens "
            "needs scores of Problem(tokens=…); use render_report for whole items."
        )
    missing = [name for name in SUMS if name not in summed]
    if missing:
        raise ValueError(f"summed lacks {missing}: expected the by_item sums of {', '.join(SUMS)}.")
    items = read_source(summed["both"])
    name = items.observables[0] if observable is None else observable
    if name not in items.observables:
        raise ValueError(f"no observable {name!r}: expected one of {items.observables}.")
    place = items.observables.index(name)
    quantile = items.error_quantile if items.trusted else float("inf")
    return TokenSource(
        items,
        place,
        passages=_texts(influence, "train", len(items.train)),
        queries=_texts(influence, "query", len(items.query)),
        on_tokens=_scores(influence, place, quantile),
        of_passages=_scores(summed["train"], place, quantile),
        on_queries=_scores(summed["query"], place, quantile),
        origins=_origins(summed["both"]),
        sources=summed.get("sources"),
    )


def has_tokens(influence: xr.Dataset) -> bool:
    """Return whether rows or columns are tokens."""
    return any(f"{side}_item" in influence.coords for side in ("train", "query"))


def _origins(dataset: xr.Dataset) -> list[str]:
    found = dataset.coords.get("train_source")
    return [""] * dataset.sizes["train"] if found is None else [str(x) for x in found.values]


def _scores(dataset: xr.Dataset, observable: int, quantile: float) -> Scores:
    influence, correlation, error = (
        np.asarray(dataset[name].transpose("observable", "query", "train").values[observable])
        for name in ("influence", "correlation", "standard_error")
    )
    return Scores(influence, correlation, np.abs(influence) > quantile * error)


def _texts(dataset: xr.Dataset, side: Side, num_items: int) -> Texts:
    by_token = f"{side}_item" in dataset.coords
    kind = f"{side}_parent" if by_token else side
    found = dataset.coords.get(f"{kind}_tokens")
    pieces = (
        [[] for _ in range(num_items)]
        if found is None
        else [[str(piece) for piece in json.loads(str(text))] for text in found.values]
    )
    if not by_token:
        return Texts(pieces, [[i] for i in range(num_items)], [[] for _ in pieces], False)
    columns: dict[str, list[int]] = {str(i): [] for i in dataset[f"{kind}_id"].values}
    for position, name in enumerate(dataset[f"{side}_item"].values.tolist()):
        columns[str(name)].append(position)
    token = dataset[f"{side}_token"].values
    tokens = [[int(token[c]) for c in members] for members in columns.values()]
    return Texts(pieces, list(columns.values()), tokens, True)
