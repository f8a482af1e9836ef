"""Choose between sampling and solving where nothing was said."""

from __future__ import annotations

from dataclasses import fields

from bif.linear_response.rehearsal import require_derivatives
from bif.problem.problem import Problem
from bif.sampling.movable_weights import num_moving
from bif.sampling.settings import SHARED_BY_ESTIMATORS, EstimatorName, Settings

MANY_WEIGHTS = 50_000
"""Weights above which draws see too few of their directions: the response is solved for."""


def default_estimator(problem: Problem, settings: Settings) -> tuple[EstimatorName, str]:
    """Return the estimator that settings name, or the one for a model of this size.

    And why a large model is sampled all the same, if it cannot be solved for.

    Draws of chains are a random projection of the gradients to as many dimensions as there are
    draws.  With few weights they see all of influence, also what is not linear; with many they
    drown in noise, where a linear solve has none.  Settings for chains, such as draws or a budget,
    ask for the covariance, and so does a model or a loss that a solve cannot take.

    Args:
        problem: What is to be attributed.
        settings: As asked for.
    """
    if settings.estimator is not None:
        return settings.estimator, ""
    chains = for_chains(settings)
    if problem.path and not chains:
        return "response", ""
    num_weights = num_moving(problem, settings)
    if chains or num_weights <= MANY_WEIGHTS:
        return "covariance", ""
    try:
        require_derivatives(problem.with_plain_losses(), settings.reopened(estimator="response"))
    except ValueError as error:
        why = f"{num_weights:,} weights are sampled, since they cannot be solved for: {error}"
        return "covariance", why
    return "response", ""


def for_chains(settings: Settings) -> bool:
    """Return whether settings say something that only chains have a use for."""
    usual = Settings()
    return any(
        getattr(settings, f.name) != getattr(usual, f.name)
        for f in fields(settings)
        if f.name not in SHARED_BY_ESTIMATORS
    )
