"""Rank the items that move a query most, strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bif.results.tables import html_line, html_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True)
class Score:
    """One train item's influence on one query.

    Attributes:
        train_id: The item.
        influence: The score.
        standard_error: Standard error of the influence.
        label: The item's, where it has one.
        quantile: Half-width of the 95 % interval in standard errors.
    """

    train_id: str
    influence: float
    standard_error: float
    label: str | None = None
    quantile: float = 2.0

    @property
    def resolved(self) -> bool:
        """Return whether the sign is certain: whether the 95 % interval leaves 0 out."""
        return abs(self.influence) > self.quantile * self.standard_error

    def __str__(self) -> str:
        label = "" if self.label is None else f" ({self.label})"
        return f"{self.train_id}{label}: {self.influence:+.4g} ± {self.standard_error:.2g}"


@dataclass(frozen=True)
class Ranking:
    """The most helpful and most harmful items of a query, strongest first.

    Where the observable has no better direction, `positive` and `negative` are all there is.

    Attributes:
        query_id: The query.
        observable: The observable that the items influence.
        better: "lower", "higher" or "".
        positive: Items that raise the observable as they gain weight.
        negative: Items that lower it.
        unresolved: Number of items among the strongest of either side were left out because the
            sign of their score is not certain.
        draws_to_resolve: Further draws after which these would be, as far as errors fall as one
            over the root of the draws; NaN where errors or draws are not known, infinite for a
            run that is not trusted.
        trusted: Whether the run behind the scores is; if not, no sign is certain, and all that is
            listed was asked for.
    """

    query_id: str
    observable: str
    better: str
    positive: tuple[Score, ...]
    negative: tuple[Score, ...]
    unresolved: int = 0
    draws_to_resolve: float = float("nan")
    trusted: bool = True

    @property
    def helpful(self) -> tuple[Score, ...]:
        """Return items that move the observable the better way as they gain weight."""
        self._refuse_without_direction()
        return self.negative if self.better == "lower" else self.positive

    @property
    def harmful(self) -> tuple[Score, ...]:
        """Return items that move the observable the worse way as they gain weight."""
        self._refuse_without_direction()
        return self.positive if self.better == "lower" else self.negative

    def _refuse_without_direction(self) -> None:
        if not self.better:
            raise ValueError(
                f"observable {self.observable!r} does not say whether lower or higher is better, "
                "so nothing is helpful or harmful: use .positive and .negative, or declare better="
            )

    def to_dataframe(self) -> pd.DataFrame:
        """Return the listed items as a table, an item a row.

        Columns: query_id, observable, side ("helpful" and "harmful", or "positive" and "negative"
        of an observable without a better direction), train_id, label, influence, standard_error,
        certain.
        """
        import pandas as pd

        names = ["query_id", "observable", "side", "train_id", "label", "influence",
                 "standard_error", "certain"]  # fmt: skip
        rows = [
            (self.query_id, self.observable, side, s.train_id, s.label, s.influence,
             s.standard_error, s.resolved)
            for side, scores in self._sides.items() for s in scores
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=names)

    @property
    def _sides(self) -> dict[str, tuple[Score, ...]]:
        if self.better:
            return {"helpful": self.helpful, "harmful": self.harmful}
        return {"positive": self.positive, "negative": self.negative}

    def _repr_html_(self) -> str:
        title = f"query {self.query_id}, {self.observable}"
        rows = [
            (side, s.train_id, s.label or "", f"{s.influence:+.3g} ± {s.standard_error:.1g}")
            for side, scores in self._sides.items() for s in scores
        ]  # fmt: skip
        listed = (
            html_table(("", "item", "label", "influence"), rows)
            if rows
            else html_line("no item whose sign is certain")
        )
        return html_line(title, strong=True) + listed + "".join(map(html_line, self._remarks))

    @property
    def _remarks(self) -> list[str]:
        """Return sentences on trust, and on what is left out."""
        remarks = [] if self.trusted else ["the run is not trusted: no sign is certain"]
        if self.unresolved:
            more = self.draws_to_resolve
            needed = f"; {more:,.0f} more draws would resolve them" if more < np.inf else ""
            remedy = needed if self.trusted else "; unresolved=True lists them"
            remarks.append(
                f"{self.unresolved} among the strongest are left out: the sign of their score is "
                f"not certain{remedy}"
            )
        return remarks

    def __str__(self) -> str:
        lines = [f"query {self.query_id}, {self.observable}"]
        remarks = [f"  {remark}" for remark in self._remarks]
        if not self.trusted:
            lines.append(remarks.pop(0))
        for kind, scores in self._sides.items():
            lines += [f"  {kind}"] + ([f"    {score}" for score in scores] or ["    none"])
        return "\n".join([*lines, *remarks])


class Listed(NamedTuple):
    """Train columns of one sign, strongest first, `[k]` each; -1 and NaN where there are fewer."""

    column: np.ndarray
    influence: np.ndarray
    standard_error: np.ndarray


def strongest_of_row(score_N: np.ndarray, error_N: np.ndarray, k: int) -> list[Listed]:
    """Return the k most positive and the k most negative scores of a row; NaN ones are passed.

    Equal ones are in the order of the columns.
    """
    up, down = (np.argsort(sign * score_N, kind="stable") for sign in (-1, 1))
    columns = up[score_N[up] > 0][:k], down[score_N[down] < 0][:k]
    return [Listed(i, score_N[i], error_N[i]) for i in columns]


def ranked(
    dataset: xr.Dataset,
    position: int,
    observable: str,
    *,
    certain: Sequence[Listed],
    strongest: Sequence[Listed],
    unresolved: bool,
) -> Ranking:
    """Name what was found for a query, and count what is left out.

    Args:
        dataset: An influence dataset.
        position: Position of the query.
        observable: Name of the observable.
        certain: Columns whose sign is certain, positive and negative ones.
        strongest: The strongest, whether their sign is certain or not.
        unresolved: List the strongest, whatever their sign.
    """
    trusted = bool(dataset.attrs.get("trusted", True))
    quantile = float(dataset.attrs.get("error_quantile", 2.0)) if trusted else np.inf
    labels = dataset.coords.get("train_text", dataset.coords.get("train_label"))
    names = dataset["train_id"].values
    num_draws = float(dataset.attrs.get("num_draws", np.nan))

    def scores(side: Listed) -> tuple[Score, ...]:
        return tuple(
            Score(
                str(names[i]), float(score), float(error),
                None if labels is None else str(labels.values[i]), quantile,
            )
            for i, score, error in zip(*side, strict=True) if i >= 0
        )  # fmt: skip

    column, score, error = (np.concatenate(x) for x in zip(*strongest, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(score) / error
    # A score without an error counts as certain, unless the run is not trusted.
    open_ = ratio[(column >= 0) & ((ratio <= quantile) | (not trusted))]
    if unresolved:
        open_ = open_[:0]
    shown = strongest if unresolved else certain if trusted else ()
    positive, negative = (scores(side) for side in shown) if shown else ((), ())
    return Ranking(
        query_id=str(dataset["query_id"].values[position]),
        observable=observable,
        better=str(dataset["better"].sel(observable=observable).values),
        positive=positive,
        negative=negative,
        unresolved=len(open_),
        draws_to_resolve=_draws_to_resolve(open_, num_draws, quantile),
        trusted=trusted,
    )


def _draws_to_resolve(ratios: np.ndarray, num_draws: float, quantile: float) -> float:
    """Return further draws until the weakest of these scores, in standard errors, is resolved.

    Infinite for a run that is not trusted, whose quantile is: draws alone do not mend it.
    """
    if not len(ratios):
        return 0.0
    if not num_draws:  # what is solved has none
        return float("nan")
    smallest = float(ratios.min())
    if not smallest > 0 or quantile == np.inf:
        return float("inf")
    return num_draws * ((quantile / smallest) ** 2 - 1)
