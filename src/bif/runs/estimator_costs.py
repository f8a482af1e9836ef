"""Measure the costs of both estimators, fluctuation and response, by short pilots."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from bif.calibration.calibrate import calibrate
from bif.calibration.estimator_choice import Cost
from bif.calibration.measured_mass import make_engine
from bif.estimate.covariance import estimate_covariance
from bif.estimate.traces import LossTraces
from bif.linear_response.perturbation import pilot_queries
from bif.linear_response.request import of_observable
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.runs.respond import respond
from bif.sampling.engine import Engine
from bif.sampling.factory import wait_for
from bif.sampling.settings import Settings, as_settings

_PILOT_DRAWS = 40
"""Draws of each chain of a pilot: enough to time, few beside a run's."""


def measure_costs(
    problem: Problem,
    settings: Settings | None = None,
    *,
    observable: str | None = None,
    h: float | None = None,
) -> tuple[Cost, Cost]:
    """Measure the costs of fluctuation and response by short pilots on a few queries.

    Args:
        problem: A few of its queries are scored, from the least to the largest observable.
        settings: Settings as for `attribute`.
        observable: The problem's first by default.
        h: Size of the perturbation as for `respond`; chosen if None.

    Returns:
        What `choose_estimator` takes.

    Raises: as `attribute` and `respond`.
    """
    alone = of_observable(problem, observable)
    requested = as_settings(settings).with_draws(_PILOT_DRAWS)
    calibrated = calibrate(alone, requested).settings
    engine = make_engine(alone, calibrated)
    groups = list(alone.query_groups.values())
    items, chosen, _ = pilot_queries(groups, engine.observer.query_center)
    few = alone.extended()
    few.query_groups = {"pilot": Items(items.take(chosen))}
    of_pairs = calibrated
    if calibrated.mass != "identity":  # pairs have unit mass, and steps of their own
        of_pairs = calibrate(alone, replace(requested, mass="identity")).settings
    return _fluctuation(make_engine(few, calibrated)), _response(few, of_pairs, h)


def _fluctuation(engine: Engine) -> Cost:
    chains = engine.settings.block_size
    train, query, started = [], [], time.perf_counter()
    for draw, losses, values in engine.observed_draws(0, chains):
        if draw.index == 0:
            wait_for(engine.device)
            started = time.perf_counter()
        train.append(losses)
        query.append(values)
    wait_for(engine.device)
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
