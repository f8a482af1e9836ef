"""The result: scores that keep their rows' identity, their sign and their errors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from bif.estimate.dataset import SIGN, summed_influence
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
from bif.results.indexes import with_id_indexes, without_id_indexes
from bif.results.ranking import Listed, Ranking, ranked, strongest_of_row
from bif.results.shrinkage import shrunk_to_linear
from bif.results.tables import html_folded, html_line
from bif.results.top_influence import KIND_AXES, KINDS, refuse_vast_sums
from bif.store import load_dataset, save_dataset

if TYPE_CHECKING:
    import xarray as xr


class Influence:
    """Influence scores as an `xarray.Dataset` with methods for the usual questions.

    It is one class because users ask one object: each method is one question about the same scores.

    Args:
        dataset: `influence`, `derivative`, `correlation`, `standard_error` on
            (`observable`, `query`, `train`), with coordinates `query_id`, `query_group`,
            `train_id`, by which `dataset.sel(query="q-3", train="row-5")` selects; see the docs
            page "Scale and sign".  Of a run made with `top`, on
            (`observable`, `query`, `kind`, `side`, `rank`) with `column`, positions on `train`.
        traces: The traces behind it, where at hand: sums over groups then get errors, and scores
            that were not kept can be had.
    """

    def __init__(self, dataset: xr.Dataset, traces: LossTraces | None = None) -> None:
        missing = {"influence", "derivative", "correlation", "standard_error"} - set(dataset)
        if missing:
            raise ValueError(
                f"not an influence dataset: it lacks {sorted(missing)}. Pass one that bif has made."
            )
        self.dataset = with_id_indexes(dataset)
        self.traces = traces

    @property
    def kept(self) -> int | None:
        """Return how many train columns each query has either way; None where all are kept."""
        return self.dataset.sizes.get("rank")

    @property
    def trusted(self) -> bool:
        """Return whether the run behind the scores passed its gates; True if not known."""
        return bool(self.dataset.attrs.get("trusted", True))

    @property
    def error_quantile(self) -> float:
        """Return the half-width of a 95 % interval in standard errors, by Student's t."""
        return float(self.dataset.attrs.get("error_quantile", 2.0))

    def top(
        self,
        query: str | int,
        k: int | None = None,
        *,
        observable: str | None = None,
        unresolved: bool = False,
    ) -> Ranking:
        """Return the k most positive and the k most negative items of a query.

        Items whose sign is not certain at 95 % are left out and counted, unless asked for.  About
        one in twenty items without any influence passes; scores without errors all do.  Of a run
        that is not trusted no sign is certain.

        Args:
            query: A query's id, or its position.
            k: Items on either side; 10 by default, or all that were kept if that is less.
            observable: The first one by default.
            unresolved: List the strongest items whether their sign is certain or not.

        Raises:
            KeyError: No such query or observable.
            ValueError: More than were kept.
        """
        kept, position = self.kept, self._position(query)
        k = min(10, kept or 10) if k is None else k
        if kept is not None and k > kept:
            raise ValueError(
                f"the run kept the {kept} strongest either way, and {k} were asked for: "
                f"run.top_k({k}) finds them from the traces."
            )
        names = [str(n) for n in self.dataset["observable"].values]
        name = names[observable_position(names, observable)]
        row = self.dataset.sel(observable=name).isel(query=position)
        score, error = row["influence"].values, row["standard_error"].values
        if kept is None:
            sure = ~(np.abs(score) <= self.error_quantile * error)
            strongest = strongest_of_row(score, error, k)
            certain = strongest_of_row(np.where(sure, score, np.nan), error, k)
        else:
            certain, strongest = (
                [
                    Listed(row["column"].values[at], score[at], error[at])
                    for at in ((kind, side, slice(k)) for side in (0, 1))
                ]
                for kind in range(len(KINDS))
            )
        return ranked(
            self.dataset, position, name, certain=certain, strongest=strongest,
            unresolved=unresolved,
        )  # fmt: skip

    def hardest(self, k: int, *, observable: str | None = None) -> list[str]:
        """Return the ids of the k queries on which the model does worst at w*, worst first.

        The first ones where the observable has no better direction, or no value there.

        Raises:
            KeyError: No such observable.
        """
        names = [str(n) for n in self.dataset["observable"].values]
        place = observable_position(names, observable)
        ids = [str(i) for i in self.dataset["query_id"].values]
        better = str(self.dataset["better"].values[place])
        if "query_center" not in self.dataset or not better:
            return ids[:k]
        values = self.dataset["query_center"].values[place] * (1 if better == "lower" else -1)
        return [ids[i] for i in np.argsort(-values, kind="stable")[:k]]

    def interval(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Return the lower and upper end of the 95 % interval of every score, `[A, Q, N]` each."""
        score, error = self.dataset["influence"], self.dataset["standard_error"]
        return score - self.error_quantile * error, score + self.error_quantile * error

    def resolved(self) -> xr.DataArray:
        """Return whether the sign of every score is certain at 95 %, bool `[A, Q, N]`.

        Of a run that is not trusted, none.
        """
        error = self.dataset["standard_error"]
        return (abs(self.dataset["influence"]) > self.error_quantile * error) & self.trusted

    def shrunk_to_linear(self) -> Influence:
        """Return scores between their linear parts and what was sampled, by empirical Bayes.

        `linear + kappa·(influence - linear)`, with kappa of each query in `dataset["kappa"]`; see
        `bif.results.shrinkage`.

        Raises:
            KeyError: The run has no linear parts.
        """
        return Influence(shrunk_to_linear(self.dataset))

    def self_influence(self) -> xr.DataArray:
        """Return the influence of every train item on its own loss, `[N]`: how freely that moves.

        `-Var(l_i)` where chains sampled it, `-(1/nbeta) g_iᵀ (C + damping)⁻¹ g_i` where it was
        solved for.

        Raises:
            ValueError: It was not solved for.
        """
        found = self.dataset["self_influence"]
        if self.dataset.attrs.get("estimator") == "response" and bool(found.isnull().all()):
            raise ValueError(
                "self-influence was not solved for, as it takes a linear system an item: attribute "
                "with Settings(estimator='response', self_influence=True)."
            )
        return found

    def sum_over(
        self,
        groups: Sequence[str] | Mapping[str, Sequence[int]] | None = None,
        *,
        query_groups: Sequence[str] | Mapping[str, Sequence[int]] | None = None,
    ) -> Influence:
        """Return the influence of groups of train items, on groups of queries: sums of influences.

        The errors of sums need the traces, for the items' errors are correlated; without traces
        (a loaded result) they are NaN.  Those of a solved run are the sums of the items' errors.

        Args:
            groups: A group name for every train item, or group names to positions; items by None.
            query_groups: The same of queries.

        Returns:
            The same kind of result, with groups in the place of train items and of queries.

        Raises:
            ValueError: The strongest scores alone are kept, and the traces are not at hand.
        """
        sizes = self.dataset.sizes
        members = {
            side: None if given is None else members_of(given, sizes[side], side)
            for side, given in (("train", groups), ("query", query_groups))
        }
        size = {side: len(m) if m is not None else sizes[side] for side, m in members.items()}
        scores, traces = self._summable(size["query"], size["train"])
        return Influence(*summed(scores, traces, **members))

    def by_item(self, side: Tokens = "both") -> Influence:
        """Return the influence of and on whole items, where tokens have columns.

        The sums over their tokens: exactly the scores of a run without token columns, where the
        masks leave out no token with a loss.  Errors, as of all sums, need the traces.

        Args:
            side: Whose tokens are summed: those of "train" items, of the "query" items, or "both".

        Returns:
            The same kind of result; a side without token columns is left as it is.

        Raises:
            ValueError: The strongest scores alone are kept, and the traces are not at hand.
        """
        sides: list[Side] = [s for s in get_args(Side) if side in (s, "both")]
        members = {s: columns_of_items(self.dataset, s) for s in sides}
        if all(m is None for m in members.values()):
            return self
        size = {s: len(members.get(s) or ()) or self.dataset.sizes[s] for s in get_args(Side)}
        scores, traces = self._summable(size["query"], size["train"])
        dataset, traces = summed(scores, traces, **members)
        for s in sides:
            if members[s] is not None:
                dataset = with_items(dataset, self.dataset, s)
        return Influence(dataset, traces)

    def by_group(self, labels: str | Sequence[str] = "group") -> Influence:
        """Return the influence of sources: the sums over the train items, or tokens, of each.

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

    def part(
        self, *, query: Sequence[int] | np.ndarray, train: Sequence[int] | np.ndarray
    ) -> Influence:
        """Return all scores of some queries and some train columns.

        Args:
            query: Positions of queries (or of their tokens).
            train: Positions of train columns.

        Raises:
            ValueError: The strongest scores alone are kept, and the traces are not at hand.
        """
        rows, columns = np.asarray(query, dtype=int), np.asarray(train, dtype=int)
        scores, traces = self._summable(len(rows), len(columns))
        scores = scores.isel(query=rows, train=columns)
        for side in get_args(Side):
            if f"{side}_item" in scores.coords:
                of_part = scores[f"{side}_parent_id"].isin(np.unique(scores[f"{side}_item"].values))
                scores = scores.isel({f"{side}_parent": np.flatnonzero(of_part.values)})
        if traces is not None:
            first = np.arange(scores.sizes["observable"])[:, None] * self.dataset.sizes["query"]
            traces = traces.selected(train=columns, query=(first + rows).ravel())
        if self.kept is None or traces is None:
            return Influence(scores, traces)
        dataset, _ = summed_influence(scores, traces, None)
        lost = [n for n in scores.data_vars if n not in dataset]  # pictures
        return Influence(dataset.assign(scores[lost].data_vars), traces)

    def save(self, path: str | Path) -> Path:
        """Write `influence.zarr` (or any other folder name); an existing one is refused."""
        save_dataset(without_id_indexes(self.dataset), path)
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
        part = "" if self.kept is None else f"The {self.kept} strongest either way of every query. "
        coords = self.dataset.coords
        train = "tokens of train items" if "train_item" in coords else "train items"
        query = "tokens of queries" if "query_item" in coords else "queries"
        return (
            f"{part}Influence of {sizes['train']} {train} on {sizes['query']} {query}; "
            f"observables: {better}\n{self.dataset.attrs.get('sign', SIGN)}"
        )

    def _repr_html_(self) -> str:
        head, sign = repr(self).split("\n")
        trust = "" if self.trusted else html_line("not trusted: no sign is certain", strong=True)
        hardest = [self.top(q, 3, unresolved=not self.trusted) for q in self.hardest(3)]
        return (
            html_line(head, strong=True) + trust
            + "".join(ranking._repr_html_() for ranking in hardest)
            + html_folded("what the sign means, and all scores",
                          html_line(sign) + self.dataset._repr_html_())
        )  # fmt: skip

    def _summable(self, num_rows: int, num_columns: int) -> tuple[xr.Dataset, LossTraces | None]:
        """Return what sums and parts of that size start from: all scores, or names and traces."""
        if self.kept is None:
            return self.dataset, self.traces
        if self.traces is None:
            raise ValueError(
                "the strongest scores alone are kept here, and sums and other scores need the "
                "traces: use the run itself, bif.load(folder).influence."
            )
        refuse_vast_sums(self.dataset.sizes["observable"] * num_rows, num_columns)
        return self.dataset.drop_dims(KIND_AXES), self.traces

    def _position(self, query: str | int) -> int:
        ids = [str(i) for i in self.dataset["query_id"].values]
        if not isinstance(query, str):
            return _counted(ids, operator.index(query))  # NumPy's integers, too
        if query in ids:
            return ids.index(query)
        groups = [str(group) for group in self.dataset["query_group"].values]
        if query in groups:
            raise KeyError(f"{query!r} is a group of queries: name one of it, as '{query}/ID'.")
        alike = [i for i, (name, group) in enumerate(zip(ids, groups, strict=True))
                 if name == f"{group}/{query}"]  # fmt: skip
        if len(alike) == 1:
            return alike[0]
        if alike:
            several = ", ".join(repr(ids[i]) for i in alike[:3])
            raise KeyError(f"several groups have a query {query!r}: name one of them, {several}.")
        raise KeyError(f"no query with id {query!r}; the first ids are {ids[:5]}.")


def _counted(ids: list[str], position: int) -> int:
    """Return a position of a query.

    Raises:
        KeyError: There is none; or the number is the id of another query, which may be meant.
    """
    if not -len(ids) <= position < len(ids):
        raise KeyError(f"no query at position {position}: there are {len(ids)}.")
    there = ids[position]
    if str(position) in ids and there != str(position):
        raise KeyError(
            f"{position} is the position of query {there!r} and the id of another: pass the id as "
            f"a string, {there!r} or '{position}'."
        )
    return position
