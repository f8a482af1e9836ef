"""Plan a run for which nobody said how: its estimator, by forecast, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bif.calibration.calibrate import Calibration, calibrate
from bif.calibration.default_estimator import (
    MANY_WEIGHTS,
    RELIABILITY,
    Forecast,
    default_estimator,
)
from bif.calibration.solving import SolverCalibration, calibrate_solver
from bif.linear_response.rehearsal import require_derivatives
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.runs.estimator_forecast import forecast_from_gradients, pilot_with_anchors
from bif.sampling.choices import Choice
from bif.sampling.movable_weights import num_moving
from bif.sampling.settings import RunSettings, Settings
from bif.terminal import in_time

_Tell = Callable[[list[str]], None] | None
_Chosen = tuple[Choice, Calibration | SolverCalibration]


@dataclass(frozen=True)
class PlannedRun:
    """An estimator, chosen by forecast, and what it is carried out with.

    Attributes:
        identity: The run's, as it was before anything was evaluated.
        solver: Of a response; None for chains.
        chains: Of chains; None for a response.
    """

    identity: Mapping[str, Any]
    solver: SolverCalibration | None = None
    chains: Calibration | None = None


def plan_run(
    problem: Problem, requested: Settings, *, tell: _Tell = None, num_ranks: int = 1
) -> PlannedRun:
    """Choose the estimator of a run for which nothing was said, and calibrate it.

    Of many weights gradients at w* forecast the draws; of few, a pilot takes some, with anchors.

    Args:
        problem: What is to be attributed.
        requested: With neither an estimator nor a setting for chains.
        tell: Gets every line of explanation as it comes.
        num_ranks: Processes that share the blocks of chains.

    Raises: as `calibrate` and `calibrate_solver`.
    """
    asked = identity(problem, requested.as_dict())
    sampled = partial(calibrate, problem, requested, tell=tell, num_ranks=num_ranks)
    choice, found = _choose(problem, requested, tell, sampled)
    if tell is not None:
        tell([str(choice)])
    found = replace(found, choices=(choice, *found.choices))
    if isinstance(found, SolverCalibration):
        return PlannedRun(asked, solver=found)
    if choice.value == "anchored":
        found = replace(found, settings=replace(found.settings, estimator="anchored"))
    return PlannedRun(asked, chains=found)


def _choose(
    problem: Problem, requested: Settings, tell: _Tell, sampled: Callable[[], Calibration]
) -> _Chosen:
    try:
        plain = problem.with_plain_losses()
        require_derivatives(plain, requested.reopened(estimator="response"))
    except ValueError as error:
        why = f"the linear part cannot be solved for: {error}"
        choice = Choice("estimator", "covariance", why)
        return choice, sampled()
    if num_moving(problem, requested) > MANY_WEIGHTS:
        return _of_many_weights(problem, requested, tell, sampled)
    return _of_few_weights(problem, requested, tell, sampled())


def _of_many_weights(
    problem: Problem, requested: Settings, tell: _Tell, sampled: Callable[[], Calibration]
) -> _Chosen:
    asked, plain = requested.reopened(estimator="response"), problem.with_plain_losses()
    found = calibrate_solver(plain, asked, tell=tell)
    try:
        choice = default_estimator(forecast_from_gradients(plain, found), None)
    except torch.OutOfMemoryError:
        why = "there is no room for chains, of which each needs a copy of the weights"
        choice = Choice("estimator", "response", why)
    if choice.value == "response":
        return choice, found
    return choice, sampled()


def _of_few_weights(
    problem: Problem, requested: Settings, tell: _Tell, found: Calibration
) -> _Chosen:
    s = found.settings
    try:
        forecast, part = pilot_with_anchors(problem, s)
    except (ValueError, RuntimeError) as error:
        choice = Choice("estimator", "covariance", f"a pilot with anchors ended: {error}")
        return choice, found
    choice = default_estimator(forecast, part)
    if choice.value != "response":
        cost = _cost_of_draws(forecast, s)
        if tell is not None:
            tell([str(cost)])
        return choice, replace(found, choices=_with(cost, found.choices))
    at_posterior = requested.reopened(
        estimator="response", nbeta=s.nbeta, gamma=s.gamma, retrained_from=None
    )
    solver = calibrate_solver(problem.with_plain_losses(), at_posterior)
    posterior = [c for c in found.choices if c.name in ("nbeta", "gamma")]
    return choice, replace(solver, choices=(*posterior, *solver.choices))


def _with(choice: Choice, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the choices with one in the place of that of the same name."""
    return tuple(choice if c.name == choice.name else c for c in choices)


def _cost_of_draws(forecast: Forecast, settings: RunSettings) -> Choice:
    total = settings.chains * settings.draws
    why = f"{total:,} draws take about {in_time(total * forecast.draw)}"
    if forecast.draws < total:
        why += (
            f"; {forecast.draws:,.0f} have a reliability of {RELIABILITY:g}, at which the run ends "
            f"by reliability={RELIABILITY:g}"
        )
    return Choice("draws", f"{settings.draws} of each chain", f"the default: {why}")
