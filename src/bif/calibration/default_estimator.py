"""Choose between sampling, solving and both where nothing was said, by what each is to cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bif.problem.problem import Problem
from bif.sampling.choices import Choice
from bif.sampling.settings import SHARED_BY_ESTIMATORS, EstimatorName, Settings

MANY_WEIGHTS = 50_000
"""Weights up to which pilot draws are taken: of more, draws see too few directions to tell."""
RELIABILITY = 0.9
"""Reliability of the scores that draws are counted for."""
LEAST_WORTH = 4.0
"""Plain draws that one with anchors must be worth: at less, what they take is hardly won back."""


@dataclass(frozen=True)
class Forecast:
    """What scores are expected to cost, solved for and sampled.

    Attributes:
        queries: Query columns, each of which has a linear system.
        steps: Products with the curvature that a system takes.
        product: Seconds of a product.
        draws: Draws that a reliability of .9 needs.
        draw: Seconds of a draw.
    """

    queries: int
    steps: float
    product: float
    draws: float
    draw: float

    @property
    def to_solve(self) -> float:
        """Return the seconds of all systems."""
        return self.queries * self.steps * self.product

    @property
    def to_sample(self) -> float:
        """Return the seconds of the draws."""
        return self.draws * self.draw

    def __str__(self) -> str:
        return (
            f"to solve for {self.queries:,} query columns by {self.steps:.3g} products of "
            f"{self.product:.2g} s takes {self.to_solve:.2g} s, and {self.draws:,.0f} draws of "
            f"{self.draw:.2g} s, for a reliability of {RELIABILITY:g}, take {self.to_sample:.2g} s"
        )


@dataclass(frozen=True)
class LinearPart:
    """What pilot draws with anchors tell of the part of scores that is solved for.

    Attributes:
        missed: Root mean square of what a solve misses, in units of the scores; the pilot's own
            noise is in it.
        noise: Root mean square error of a whole run's plain covariances, in these units.
        variance_left: Median share of the observables' variance that anchors leave.
        worth: Plain draws that have the errors of one with anchors.
    """

    missed: float
    noise: float
    variance_left: float
    worth: float


def settled_estimator(problem: Problem, settings: Settings) -> EstimatorName | None:
    """Return the estimator that settings or a path ask for; None where it is to be forecast."""
    if settings.estimator is not None:
        return settings.estimator
    if for_chains(settings):
        return "covariance"
    return "response" if problem.path else None


def default_estimator(forecast: Forecast, part: LinearPart | None) -> Choice:
    """Return the estimator that gives scores as good in less time, and why.

    Draws serve all queries at once; a solve takes a linear system for each:

        solve where  queries · steps · product < draws · draw  (seconds),

    and where the linear part is all that draws would tell.  Where it is not, both are joined if
    anchors leave so little to sample that a draw is worth four or more.

    Args:
        forecast: What either costs.
        part: What a pilot found; None where no draws were taken, since too many would be needed.
    """
    name: EstimatorName = "covariance"
    if forecast.to_solve >= forecast.to_sample:
        why = "draws serve all queries"
    elif part is None:
        name, why = "response", "draws see few directions of so many weights"
    elif part.missed <= part.noise:
        name = "response"
        why = (
            f"the solve alone is as good: it misses {part.missed:.2g} of the scores, where a run's "
            f"draws have errors of {part.noise:.2g}"
        )
    else:
        beside = (
            f"a solve misses {part.missed:.2g} of the scores, which takes draws, and with anchors, "
            f"which leave {part.variance_left:.2g} of the variance, one is worth {part.worth:.3g}"
        )
        saved = (1 - 1 / part.worth) * forecast.to_sample if part.worth > 0 else 0.0
        joined = part.worth >= LEAST_WORTH and forecast.to_solve < saved
        name, why = ("anchored" if joined else "covariance"), beside
    other = "covariance" if name != "covariance" else "response"
    return Choice("estimator", name, f"{forecast}; {why}; say estimator={other!r} for the other")


def for_chains(settings: Settings) -> bool:
    """Return whether settings say something that only chains have a use for."""
    usual = Settings()
    return any(
        getattr(settings, f.name) != getattr(usual, f.name)
        for f in fields(settings)
        if f.name not in SHARED_BY_ESTIMATORS
    )
