"""Choose between fluctuation and response, by which estimator reaches an error sooner."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from bif.sampling.choices import Choice


class Cost(NamedTuple):
    """The seconds that a pilot of an estimator took and the error that it reached.

    Attributes:
        seconds: Seconds of recorded sampling, without burn-in and set-up.
        standard_error: Root mean square over its queries and items, in the scores' units.
        num_queries: Scored by those seconds.
        steps: Recorded steps behind it, of a response.
    """

    seconds: float
    standard_error: float
    num_queries: int
    steps: int = 0

    def steps_to(self, standard_error: float) -> int:
        """Return the recorded steps at which a response has this error; it falls as their root."""
        return ceil(self.steps * (self.standard_error / standard_error) ** 2)


def choose_estimator(num_queries: int, *, fluctuation: Cost, response: Cost) -> Choice:
    """Return the estimator that reaches a given error sooner, for this many queries.

    Errors of both fall as 1/sqrt(seconds), so what counts is `v = seconds · standard_error²`.  One
    fluctuation run serves all queries, `v_f`; a response needs two chains a query,
    `num_queries · v_r / (queries of the pilot)`.  Which is less does not depend on the error aimed
    at.  Both pilots must be of the same quantity, the covariance at temperature 1.

    Args:
        num_queries: To be scored.
        fluctuation: Cost of a pilot of `bif.attribute`.
        response: Cost of a pilot of `bif.respond`.

    Returns:
        Its name as the value, and why.

    Raises:
        ValueError: Numbers that are not positive and finite.
    """
    for name, cost in (("fluctuation", fluctuation), ("response", response)):
        fine = 0 < cost.seconds < float("inf") and 0 <= cost.standard_error < float("inf")
        if not fine or cost.num_queries < 1:
            raise ValueError(
                f"the cost of {name} is {cost}: expected seconds > 0, a finite standard error and "
                "at least one query. Measure it by a longer pilot."
            )
    if num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}: expected at least 1.")
    shared = fluctuation.seconds * fluctuation.standard_error**2
    each = response.seconds * response.standard_error**2 / response.num_queries
    estimator = "response" if num_queries * each < shared else "fluctuation"
    crossing = shared / each if each else float("inf")
    return Choice(
        "estimator",
        estimator,
        f"one fluctuation run serves all queries, and for the same error it takes as "
        f"long as responses of {crossing:.3g} queries; there are {num_queries}",
    )
