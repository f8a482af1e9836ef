"""Rankings: the items that move a query most, strongest first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Score:
    """One train item's influence on one query.

    Attributes:
        train_id: The item.
        influence: The score.
        standard_error: Its error.
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
        """Whether the sign is certain: whether the 95 % interval leaves 0 out."""
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
        observable: Of which the influences are.
        better: "lower", "higher" or "".
        positive: Items that raise the observable as they gain weight.
        negative: Items that lower it.
        unresolved: How many items among the strongest of either side were left out because the
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

    def unlisted(self) -> Ranking:
        """The same without the items, which are counted instead."""
        count = len(self.positive) + len(self.negative)
        more = float("inf") if count else 0.0
        return replace(self, positive=(), negative=(), unresolved=count, draws_to_resolve=more)

    @property
    def helpful(self) -> tuple[Score, ...]:
        """Items that move the observable the better way as they gain weight."""
        self._need_direction()
        return self.negative if self.better == "lower" else self.positive

    @property
    def harmful(self) -> tuple[Score, ...]:
        """Items that move the observable the worse way as they gain weight."""
        self._need_direction()
        return self.positive if self.better == "lower" else self.negative

    def _need_direction(self) -> None:
        if not self.better:
            raise ValueError(
                f"observable {self.observable!r} does not say whether lower or higher is better, "
                "so nothing is helpful or harmful: use .positive and .negative, or declare better="
            )

    def __str__(self) -> str:
        kinds = (
            {"helpful": self.helpful, "harmful": self.harmful}
            if self.better
            else {"positive": self.positive, "negative": self.negative}
        )
        lines = [f"query {self.query_id}, {self.observable}"]
        if not self.trusted:
            lines.append("  the run is not trusted: no sign is certain")
        for kind, scores in kinds.items():
            lines += [f"  {kind}"] + ([f"    {score}" for score in scores] or ["    none"])
        if self.unresolved:
            more = self.draws_to_resolve
            needed = f"; {more:,.0f} more draws would resolve them" if more < np.inf else ""
            remedy = needed if self.trusted else "; unresolved=True lists them"
            lines.append(
                f"  {self.unresolved} among the strongest are left out: the sign of their score is "
                f"not certain{remedy}"
            )
        return "\n".join(lines)
