"""The result of a run that keeps the strongest scores only: the same questions, a part of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from bif.estimate.dataset import axes_dataset, summed_influence
from bif.estimate.top_k import Strongest, strongest_influences
from bif.estimate.traces import LossTraces
from bif.problem.columns import Tokens
from bif.results.group_sums import Side, columns_of_items, members_of
from bif.results.influence import Influence
from bif.results.ranking import Ranking, Score
from bif.terminal import as_bytes

if TYPE_CHECKING:
    import torch
    import xarray as xr

MOST_SCORE_BYTES = 8 * 2**30
"""Of the scores of tokens, all at once, while they are estimated."""
BYTES_A_SCORE = 56
"""Four float32 views, a group's float64 covariance, and two compensated float64 totals."""
KINDS, SIDES = ("certain", "strongest"), ("positive", "negative")
_AXES = ("observable", "query", "kind", "side", "rank")
_MOST_PAIRS, _MOST_QUERIES = 2**22, 8


def strongest_dataset(
    traces: LossTraces,
    top: int,
    *,
    nbeta: float,
    observables: Mapping[str, str | None],
    query_ids: Sequence[str] | np.ndarray,
    train_ids: Sequence[str] | np.ndarray,
    query_groups: Sequence[str] | np.ndarray | None,
    num_train: int,
    device: torch.device | None = None,
) -> xr.Dataset:
    """The strongest influences of every query, in memory of O(Q·top + N) besides the traces.

    Args: as for `bif.estimate.estimate_influence`.
        top: Train columns either way.

    Returns:
        `influence`, `derivative`, `correlation`, `standard_error` and `column`, the position on the
        axis `train`, on (`observable`, `query`, `kind`, `side`, `rank`), strongest first: `kind`
        "certain" has those whose sign is certain at 95 %, "strongest" all; NaN and -1 where there
        are fewer.  Means and self-influence on the axes they have.
    """
    found = strongest_influences(traces, top, device=device)
    dataset = axes_dataset(
        found,
        nbeta=nbeta,
        observables=observables,
        query_ids=query_ids,
        train_ids=train_ids,
        query_groups=query_groups,
        num_train=num_train,
        num_chains=traces.num_chains,
        num_draws=traces.total_draws,
    )
    shape = (dataset.sizes["observable"], dataset.sizes["query"], len(KINDS), len(SIDES))

    def placed(name: str) -> np.ndarray:
        """`[A, Q, kind, side, rank]` of the four lists `[A·Q, rank]`."""
        kinds: list[tuple[Strongest, Strongest]] = [found.certain, found.strongest]
        lists = [getattr(side, name).numpy() for sides in kinds for side in sides]
        return np.stack(lists, axis=1).reshape(*shape, -1)

    column, influence = placed("column"), placed("influence")
    scale = found.row_variance.sqrt().numpy().reshape(*shape[:2], 1, 1, 1)
    scale = scale * found.column_variance.sqrt().numpy()[column]
    correlation = np.divide(influence, scale, out=0.0 * influence, where=scale > 0)
    values = {
        "influence": influence,
        "derivative": nbeta / num_train * influence,
        "correlation": correlation,
        "standard_error": placed("standard_error"),
    }
    return dataset.assign(
        {name: (_AXES, x.astype(np.float32)) for name, x in values.items()} | {
            "column": (_AXES, column)
        }
    ).assign_coords(kind=list(KINDS), side=list(SIDES))  # fmt: skip


class StrongestInfluence(Influence):
    """Influence scores of which a run kept the strongest of every query only.

    What needs other scores takes them from the traces, some at a time.

    Args:
        dataset: From `strongest_dataset`.
        traces: The traces behind it, where at hand.
    """

    @property
    def kept(self) -> int:
        """How many train columns each query has either way, at most."""
        return self.dataset.sizes["rank"]

    def top(
        self,
        query: str | int,
        k: int | None = None,
        *,
        observable: str | None = None,
        unresolved: bool = False,
    ) -> Ranking:
        """The k most positive and the k most negative items of a query, as of all scores.

        Args: as for `Influence.top`; k is 10 by default, or all that were kept if that is less.

        Raises:
            KeyError: No such query or observable.
            ValueError: More than were kept.
        """
        k = min(10, self.kept) if k is None else k
        if k > self.kept:
            raise ValueError(
                f"the run kept the {self.kept} strongest either way, and {k} were asked for: "
                f"run.top_k({k}) finds them from the traces."
            )
        name, position = self._observable(observable), self._position(query)
        found = self.dataset.isel(query=position).sel(observable=name)
        labels = self.dataset.coords.get("train_text", self.dataset.coords.get("train_label"))
        names = self.dataset["train_id"].values
        quantile = self.error_quantile if self.trusted else float("inf")
        columns, scores, errors = (
            found[n].values[..., :k] for n in ("column", "influence", "standard_error")
        )

        def listed(side: int) -> tuple[Score, ...]:
            if not (self.trusted or unresolved):
                return ()
            kind = KINDS.index("strongest" if unresolved else "certain")
            place = (kind, side)
            return tuple(
                Score(
                    str(names[i]), float(score), float(error),
                    None if labels is None else str(labels.values[i]), quantile,
                )
                for i, score, error in zip(
                    columns[place], scores[place], errors[place], strict=True
                )
                if i >= 0
            )  # fmt: skip

        strongest = KINDS.index("strongest")
        ratios = np.abs(scores[strongest]) / errors[strongest]
        there = columns[strongest] >= 0
        open_ = ratios[there & self._uncertain(scores[strongest], errors[strongest])]
        left_out = [] if unresolved else open_
        return Ranking(
            query_id=str(self.dataset["query_id"].values[position]),
            observable=name,
            better=str(self.dataset["better"].sel(observable=name).values),
            positive=listed(0),
            negative=listed(1),
            unresolved=len(left_out),
            draws_to_resolve=self._draws_to_resolve(open_) if len(left_out) else 0.0,
            trusted=self.trusted,
        )

    def sum_over(self, groups: Sequence[str] | Mapping[str, Sequence[int]]) -> Influence:
        """All influences of groups of train items, from the traces; as `Influence.sum_over`.

        Raises:
            ValueError: The traces are not at hand.
        """
        members = members_of(groups, self.dataset.sizes["train"])
        return self._dense(self.dataset.sizes["query"], len(members)).sum_over(members)

    def by_item(self, side: Tokens = "both") -> Influence:
        """All influences of and on whole items, from the traces; as `Influence.by_item`.

        Raises:
            ValueError: The traces are not at hand, or no side has token columns.
        """
        if {f"{s}_item" for s in ("train", "query")}.isdisjoint(self.dataset.coords):
            raise ValueError(
                "columns and rows are items already, of which the strongest were kept: use "
                "part(query=…, train=…) for all scores of some of them."
            )
        sizes = self.dataset.sizes
        rows, columns = (
            sizes[f"{s}_parent" if side in (s, "both") and f"{s}_parent" in sizes else s]
            for s in ("query", "train")
        )
        return self._dense(rows, columns).by_item(side)

    def part(
        self, *, query: Sequence[int] | np.ndarray, train: Sequence[int] | np.ndarray
    ) -> Influence:
        """All scores of some queries and some train columns, from the traces.

        Args:
            query: Positions of queries (or of their tokens).
            train: Positions of train columns.

        Raises:
            ValueError: The traces are not at hand.
        """
        rows, columns = np.asarray(query, dtype=int), np.asarray(train, dtype=int)
        traces, axes = self._traces(), self._axes().isel(query=rows, train=columns)
        for side in ("train", "query"):
            if f"{side}_item" in axes.coords:
                of_part = axes[f"{side}_parent_id"].isin(np.unique(axes[f"{side}_item"].values))
                axes = axes.isel({f"{side}_parent": np.flatnonzero(of_part.values)})
        first = np.arange(axes.sizes["observable"])[:, None] * self.dataset.sizes["query"]
        chosen = traces.selected(train=columns, query=(first + rows).ravel())
        dataset, _ = summed_influence(axes, chosen, None)
        lost = [n for n in axes.data_vars if n not in dataset]  # pictures
        return Influence(dataset.assign(axes[lost].data_vars), chosen)

    def excerpt(self) -> Influence:
        """All scores of the clearest queries and of whole items among their strongest columns.

        Of at most eight queries and four million pairs, for a page.
        """
        strongest = self.dataset.isel(observable=0).sel(kind="strongest")
        column = strongest["column"].values.reshape(self.dataset.sizes["query"], -1)
        ratio = np.abs(strongest["influence"].values) / strongest["standard_error"].values
        clarity = np.nan_to_num(ratio.reshape(column.shape), nan=-1, posinf=-1).max(axis=1)
        items = [self._columns_of_items(side) for side in get_args(Side)]
        owner = np.empty(self.dataset.sizes["train"], dtype=int)
        for item, columns in enumerate(items[0]):
            owner[columns] = item
        clearest = sorted((q for q in items[1] if q), key=lambda q: -clarity[q].max())
        rows: list[int] = []
        for place, queries in enumerate(clearest[:_MOST_QUERIES]):
            if place and len(rows) + len(queries) > _MOST_PAIRS**0.5:
                break
            rows += queries
        # Rank by rank: the strongest of every row first.
        by_rank = column[rows].reshape(len(rows), len(SIDES), -1).transpose(2, 0, 1).ravel()
        train: list[int] = []
        for item in dict.fromkeys(owner[by_rank[by_rank >= 0]].tolist()):
            if train and (len(train) + len(items[0][item])) * len(rows) > _MOST_PAIRS:
                break
            train += items[0][item]
        found = self.part(query=sorted(rows), train=sorted(train or items[0][0]))
        sizes = self.dataset.sizes
        found.dataset.attrs["excerpt"] = (
            f"An excerpt: of {sizes['query']:,} rows of queries and {sizes['train']:,} train "
            f"columns, the run kept the {self.kept} strongest pairs of each row either way. This "
            "page shows the clearest queries and what moves them most."
        )
        return found

    def _columns_of_items(self, side: Side) -> list[list[int]]:
        """Positions of every item's columns: its tokens', or its own."""
        members = columns_of_items(self.dataset, side)
        if members is None:
            return [[i] for i in range(self.dataset.sizes[side])]
        return [list(columns) for columns in members.values()]

    def _dense(self, num_rows: int, num_columns: int) -> Influence:
        """Names and traces, as if there were all scores: for sums, which come from the traces.

        Args:
            num_rows: Of the sums that are to come.
            num_columns: Theirs, too.
        """
        empty, traces = self._axes(), self._traces()
        _refuse_vast_sums(empty.sizes["observable"] * num_rows, num_columns)
        shape = [empty.sizes[n] for n in ("observable", "query", "train")]
        # One number that looks like all of them: sums never read it.
        blank = np.broadcast_to(np.float32(np.nan), shape)
        names = ("influence", "derivative", "correlation", "standard_error")
        axes = ("observable", "query", "train")
        return Influence(empty.assign(dict.fromkeys(names, (axes, blank))), traces)

    def _refuse_layout(self, dataset: xr.Dataset) -> None:
        if "rank" not in dataset.dims:
            raise ValueError("the dataset holds all scores: use bif.Influence.")

    def _axes(self) -> xr.Dataset:
        """What is known of rows and columns, without scores."""
        return self.dataset.drop_dims(["kind", "side", "rank"])

    def _traces(self) -> LossTraces:
        if self.traces is None:
            raise ValueError(
                "the strongest scores alone are kept here, and sums and other scores need the "
                "traces: use the run itself, bif.load(folder).influence."
            )
        return self.traces

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"The {self.kept} strongest either way of every query. {text}"


def _refuse_vast_sums(num_rows: int, num_columns: int) -> None:
    """Raise where that many sums of scores would take more than `MOST_SCORE_BYTES` all at once."""
    needed = BYTES_A_SCORE * num_rows * num_columns
    if needed > MOST_SCORE_BYTES:
        raise ValueError(
            f"{num_columns:,} sums over train columns on {num_rows:,} rows of queries would take "
            f"{as_bytes(needed)}, above {as_bytes(MOST_SCORE_BYTES)}: sum over both sides "
            "(by_item('both')), or choose some rows and columns first with "
            "part(query=…, train=…)."
        )


def influence_of(dataset: xr.Dataset, traces: LossTraces | None = None) -> Influence:
    """The result that a dataset holds: all scores, or the strongest."""
    kind = StrongestInfluence if "rank" in dataset.dims else Influence
    return kind(dataset, traces)
