"""Fluctuation or response: which of the two estimators gets there first."""

from __future__ import annotations

import time
from dataclasses import replace
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import torch

from bif.calibration.calibrate import calibrate
from bif.calibration.measured_mass import make_engine
from bif.estimate.covariance import estimate_covariance
from bif.estimate.traces import LossTraces
from bif.linear_response.perturbation import pilot_queries
from bif.linear_response.request import of_observable
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.runs.respond import respond
from bif.sampling.engine import Sampling
from bif.sampling.factory import wait_for
from bif.sampling.settings import Settings

Estimator = Literal["fluctuation", "response"]

_PILOT_DRAWS = 40


class Cost(NamedTuple):
    """What a pilot of an estimator took and reached.

    Attributes:
        seconds: Of recorded sampling, without burn-in and set-up.
        standard_error: Root mean square over its queries and items, in the scores' units.
        num_queries: Scored by those seconds.
        steps: Recorded steps behind it, of a response.
    """

    seconds: float
    standard_error: float
    num_queries: int
    steps: int = 0

    def steps_to(self, standard_error: float) -> int:
        """Recorded steps after which a response has this error: errors fall as their root."""
        return ceil(self.steps * (self.standard_error / standard_error) ** 2)


class Choice(NamedTuple):
    """An estimator, and why, in one line."""

    estimator: Estimator
    reason: str


def choose_estimator(num_queries: int, *, fluctuation: Cost, response: Cost) -> Choice:
    """The estimator that reaches a given error sooner, for this many queries.

    Errors of both fall as 1/sqrt(seconds), so what counts is `v = seconds · standard_error²`.  One
    fluctuation run serves all queries, `v_f`; a response needs two chains a query,
    `num_queries · v_r / (queries of the pilot)`.  Which is less does not depend on the error aimed
    at.  Both pilots must be of the same quantity, the covariance at temperature 1.

    Args:
        num_queries: To be scored.
        fluctuation: Of a pilot of `bif.attribute`.
        response: Of a pilot of `bif.respond`.

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
    estimator: Estimator = "response" if num_queries * each < shared else "fluctuation"
    crossing = shared / each if each else float("inf")
    return Choice(
        estimator,
        f"{estimator}: one fluctuation run serves all queries, and for the same error it takes as "
        f"long as responses of {crossing:.3g} queries; there are {num_queries}",
    )


def measure_costs(
    problem: Problem,
    settings: Settings | None = None,
    *,
    observable: str | None = None,
    h: float | None = None,
) -> tuple[Cost, Cost]:
    """Costs of both estimators by short pilots on a few queries: fluctuation, response.

    Args:
        problem: Its queries stand for themselves: a few, from the least to the largest observable.
        settings: As for `attribute`.
        observable: The problem's first by default.
        h: As for `respond`; chosen if None.

    Returns:
        What `choose_estimator` takes.

    Raises: as `attribute` and `respond`.
    """
    alone = of_observable(problem, observable)
    requested = (settings or Settings()).with_draws(_PILOT_DRAWS)
    calibrated = calibrate(alone, requested).settings
    sampling = make_engine(alone, calibrated)
    groups = list(alone.query_groups.values())
    items, chosen, _ = pilot_queries(groups, sampling.query_center)
    few = alone.extended()
    few.query_groups = {"pilot": Items(items.take(chosen))}
    of_pairs = calibrated
    if calibrated.mass != "identity":  # pairs have unit mass, and steps of their own
        of_pairs = calibrate(alone, replace(requested, mass="identity")).settings
    return _fluctuation(make_engine(few, calibrated)), _response(few, of_pairs, h)


def _fluctuation(sampling: Sampling) -> Cost:
    chains = sampling.settings.block_size
    assert chains is not None
    train, query, started = [], [], time.perf_counter()
    for draw, losses, values in sampling.observed_draws(0, chains):
        if draw.index == 0:
            wait_for(sampling.device)
            started = time.perf_counter()
        train.append(losses)
        query.append(values)
    wait_for(sampling.device)
    seconds = time.perf_counter() - started
    traces = LossTraces.from_arrays(torch.stack(train, dim=1), torch.stack(query, dim=1))
    error = estimate_covariance(traces).standard_error
    return Cost(seconds, float(error.square().mean().sqrt()), len(error))


def _response(problem: Problem, settings: Settings, h: float | None) -> Cost:
    found = respond(problem, settings, h=h)
    recorded = found.num_steps - (settings.burn_in or 0)
    seconds = found.sampling_seconds * recorded / found.num_steps
    error = float(np.sqrt(np.mean(found.standard_error.astype(np.float64) ** 2)))
    return Cost(seconds, error, problem.num_queries, recorded)
