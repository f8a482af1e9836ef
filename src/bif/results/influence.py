"""The result: scores that keep their rows' identity, their sign and their errors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from bif.estimate.dataset import SIGN
from bif.estimate.traces import LossTraces
from bif.problem.columns import Tokens
from bif.problem.problem import observable_position
from bif.results.group_sums import (
    Side,
    columns_of_items,
    members_of,
    named_sources,
    summed,
    with_items,
)
from bif.results.ranking import Ranking, Score
from bif.store import load_dataset, save_dataset

if TYPE_CHECKING:
    import xarray as xr

    from bif.estimate.top_k import Strongest, TopInfluences


class Influence:
    """Influence scores as an `xarray.Dataset` with methods for the usual questions.

    Args:
        dataset: `influence`, `derivative`, `correlation`, `standard_error` on
            (`observable`, `query`, `train`), with coordinates `query_id`, `query_group`,
            `train_id`; see the docs page "Scale and sign".
        traces: The traces behind it, where at hand: sums over groups then get errors.
    """

    def __init__(self, dataset: xr.Dataset, traces: LossTraces | None = None) -> None:
        missing = {"influence", "derivative", "correlation", "standard_error"} - set(dataset)
        if missing:
            raise ValueError(f"not an influence dataset: it lacks {sorted(missing)}.")
        self._refuse_layout(dataset)
        self.dataset = dataset
        self.traces = traces

    def top(
        self,
        query: str | int,
        k: int = 10,
        *,
        observable: str | None = None,
        unresolved: bool = False,
    ) -> Ranking:
        """The k most positive and the k most negative items of a query.

        Items whose sign is not certain at 95 % are left out and counted, unless asked for.  About
        one in twenty items without any influence passes; scores without errors all do.  Of a run
        that is not trusted no sign is certain.

        Args:
            query: A query's id, or its position.
            k: Items on either side.
            observable: The first one by default.
            unresolved: List the strongest items whether their sign is certain or not.

        Raises:
            KeyError: No such query or observable.
        """
        name = self._observable(observable)
        position = self._position(query)
        scores = self.dataset["influence"].sel(observable=name).isel(query=position).values
        errors = self.dataset["standard_error"].sel(observable=name).isel(query=position).values
        order = np.argsort(scores, kind="stable")
        labels = self.dataset.coords.get("train_text", self.dataset.coords.get("train_label"))
        quantile = self.error_quantile if self.trusted else float("inf")

        def score(i: int) -> Score:
            label = None if labels is None else str(labels.values[i])
            train_id = str(self.dataset["train_id"].values[i])
            return Score(train_id, float(scores[i]), float(errors[i]), label, quantile)

        open_ = self._uncertain(scores, errors)
        strongest = [i for i in order[::-1][:k] if scores[i] > 0]
        strongest += [i for i in order[:k] if scores[i] < 0]
        left_out = [] if unresolved else [i for i in strongest if open_[i]]
        listed = order if unresolved else order[~open_[order]]
        return Ranking(
            query_id=str(self.dataset["query_id"].values[position]),
            observable=name,
            better=str(self.dataset["better"].sel(observable=name).values),
            positive=tuple(score(i) for i in listed[::-1][:k] if scores[i] > 0),
            negative=tuple(score(i) for i in listed[:k] if scores[i] < 0),
            unresolved=len(left_out),
            draws_to_resolve=self._draws_to_resolve(np.abs(scores[left_out]) / errors[left_out])
            if left_out
            else 0.0,
            trusted=self.trusted,
        )

    @property
    def trusted(self) -> bool:
        """Whether the run behind the scores passed its gates; True where that is not known."""
        return bool(self.dataset.attrs.get("trusted", True))

    @property
    def error_quantile(self) -> float:
        """Half-width of a 95 % interval in standard errors: Student's t of the groups of chains."""
        return float(self.dataset.attrs.get("error_quantile", 2.0))

    def interval(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Lower and upper end of the 95 % interval of every score, `[A, Q, N]` each."""
        score, error = self.dataset["influence"], self.dataset["standard_error"]
        return score - self.error_quantile * error, score + self.error_quantile * error

    def resolved(self) -> xr.DataArray:
        """Whether the sign of every score is certain at 95 %, bool `[A, Q, N]`.

        Of a run that is not trusted, none.
        """
        error = self.dataset["standard_error"]
        return (abs(self.dataset["influence"]) > self.error_quantile * error) & self.trusted

    def _uncertain(self, scores: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Which of some scores have no certain sign; one without an error counts as certain."""
        return (np.abs(scores) <= self.error_quantile * errors) | (not self.trusted)

    def _draws_to_resolve(self, ratios: np.ndarray) -> float:
        """Further draws until the weakest of these scores, in standard errors, is resolved.

        Infinite for a run that is not trusted: draws alone do not mend it.
        """
        if not self.trusted:
            return float("inf")
        draws = float(self.dataset.attrs.get("num_draws", np.nan))
        smallest = float(ratios.min())
        if not smallest > 0:
            return float("inf")
        return draws * ((self.error_quantile / smallest) ** 2 - 1)

    def self_influence(self) -> xr.DataArray:
        """`-Var(l_i)` of every train item, `[N]`: how freely its loss moves."""
        return self.dataset["self_influence"]

    def sum_over(self, groups: Sequence[str] | Mapping[str, Sequence[int]]) -> Influence:
        """Influence of groups of train items: the sums of their items' influences.

        The errors of sums need the traces, for the items' errors are correlated; without traces
        (a loaded result) they are NaN.

        Args:
            groups: A group name for every train item, or group names to positions.

        Returns:
            The same kind of result, with groups in the place of train items.
        """
        members = members_of(groups, self.dataset.sizes["train"])
        return Influence(*summed(self.dataset, self.traces, train=members))

    def by_item(self, side: Tokens = "both") -> Influence:
        """Influence of and on whole items, where tokens have columns: the sums over their tokens.

        Exactly the scores of a run without token columns, where the masks leave out no token with a
        loss.  Errors, as of all sums, need the traces.

        Args:
            side: Whose tokens are summed: those of "train" items, of the "query" items, or "both".

        Returns:
            The same kind of result; a side without token columns is left as it is.
        """
        sides: list[Side] = [s for s in get_args(Side) if side in (s, "both")]
        members = {s: columns_of_items(self.dataset, s) for s in sides}
        if all(m is None for m in members.values()):
            return self
        dataset, traces = summed(self.dataset, self.traces, **members)
        for s in sides:
            if members[s] is not None:
                dataset = with_items(dataset, self.dataset, s)
        return Influence(dataset, traces)

    def by_group(self, labels: str | Sequence[str] = "group") -> Influence:
        """Influence of sources: the sums over the train items, or tokens, of each.

        Args:
            labels: A name for every train item (or column), or which of their texts names it:
                "label", "group", or a name given in `Items(about=…)`.

        Returns:
            The same kind of result, with sources in the place of train items.

        Raises:
            KeyError: The train items have no such text.
            ValueError: Another number of names than there are items.
        """
        return self.sum_over(named_sources(self.dataset, labels))

    def save(self, path: str | Path) -> Path:
        """Write `influence.zarr` (or any other folder name); an existing one is refused."""
        save_dataset(self.dataset, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Influence:
        """Read what `save` wrote, or the `influence.zarr` of a run's folder."""
        return cls(load_dataset(path, name="influence.zarr"))

    def __repr__(self) -> str:
        sizes = self.dataset.sizes
        names, better_of = self.dataset["observable"].values, self.dataset["better"].values
        through = self.dataset.coords.get("through")
        proxies = [""] * len(names) if through is None else through.values
        better = ", ".join(
            f"{o}{f' through the {p}' if p else ''} ({b or 'no'} better)"
            for o, b, p in zip(names, better_of, proxies, strict=True)
        )
        return (
            f"Influence of {sizes['train']} train items on {sizes['query']} queries; "
            f"observables: {better}\n{SIGN}"
        )

    def _repr_html_(self) -> str:
        head, sign = repr(self).split("\n")
        return f"<p><strong>{escape(head)}</strong><br>{escape(sign)}</p>" + (
            self.dataset._repr_html_()
        )

    def _refuse_layout(self, dataset: xr.Dataset) -> None:
        if "rank" in dataset.dims:
            raise ValueError(
                "the dataset holds the strongest scores of every query only, of a run with top=…: "
                "use bif.load(folder).influence."
            )

    def _observable(self, name: str | None) -> str:
        names = [str(n) for n in self.dataset["observable"].values]
        return names[observable_position(names, name)]

    def _position(self, query: str | int) -> int:
        ids = [str(i) for i in self.dataset["query_id"].values]
        if not isinstance(query, str):
            position = operator.index(query)  # NumPy's integers, too
            if not -len(ids) <= position < len(ids):
                raise KeyError(f"no query at position {position}: there are {len(ids)}.")
            return position
        if query in self.dataset["query_group"].values and query not in ids:
            raise KeyError(f"{query!r} is a group of queries: name one of it, as '{query}/ID'.")
        if query not in ids:
            raise KeyError(f"no query with id {query!r}; the first ids are {ids[:5]}.")
        return ids.index(query)


def rankings(influence: Influence, found: TopInfluences, *, observable: str) -> list[Ranking]:
    """What `top_influences` found for every query of a result, with names and labels."""
    dataset = influence.dataset
    quantile = found.error_quantile if influence.trusted else float("inf")
    labels = dataset.coords.get("train_text", dataset.coords.get("train_label"))
    names = dataset["train_id"].values
    draws = float(dataset.attrs.get("num_draws", np.nan))
    better = str(dataset["better"].sel(observable=observable).values)

    def scores(side: Strongest, row: int) -> tuple[Score, ...]:
        parts = (x[row].tolist() for x in (side.column, side.influence, side.standard_error))
        return tuple(
            Score(
                str(names[i]), score, error, None if labels is None else str(labels.values[i]),
                quantile,
            )
            for i, score, error in zip(*parts, strict=True) if i >= 0
        )  # fmt: skip

    return [
        Ranking(
            str(query), observable, better,
            positive=scores(found.positive, row), negative=scores(found.negative, row),
            unresolved=int(found.left_out[row]),
            draws_to_resolve=draws * ((found.error_quantile / float(found.weakest[row])) ** 2 - 1)
            if found.left_out[row] else 0.0,
            trusted=influence.trusted,
        )
        for row, query in enumerate(dataset["query_id"].values)
    ]  # fmt: skip
