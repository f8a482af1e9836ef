"""Choose the open settings of a response, whose chains come in pairs and may be cold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bif import tensors
from bif.calibration.calibrate import Calibration, calibrate
from bif.calibration.steps import CRITICAL_FRICTION, LOW_FRICTION
from bif.linear_response.pairs import bregman_problem
from bif.linear_response.request import Request
from bif.problem.items import to_device
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.factory import moving_center, run_device
from bif.sampling.oracles import vmap_refusal
from bif.sampling.settings import Settings


def calibrate_pairs(problem: Problem, request: Request) -> Calibration:
    """Fill in every setting that is None, for pairs of chains and for the temperature.

    Raises:
        ValueError: A model that vmap cannot take with `oracle="stacked"`; a loss without a known
            Bregman divergence; what `calibrate` raises.
    """
    choices = Choices()
    s = _with_oracle(problem, request.settings, choices)
    if request.cold:  # losses at the two ends of a pair differ by little
        s = replace(
            s,
            gradient_precision=s.gradient_precision or "float32",
            loss_precision=s.loss_precision or "float32",
        )
    each = 2 * request.num_mirrors * request.replicates
    if s.mass == "kronecker":  # its steps are in units of other coordinates
        s = s.reopened(step_size=None, friction=None, burn_in=None, thin=None)
    # The perturbation's size is chosen by the step of unit mass.
    chains = each * max(len(items) for items in problem.query_groups.values())
    s = replace(s, mass="identity", chains=chains)
    found = calibrate(problem, s)
    choices.extend(found.choices)
    if request.curvature == "gauss_newton":
        # The same posterior, but a step for its own largest curvature.
        other = bregman_problem(problem, s)
        s = replace(s, nbeta=found.settings.nbeta, gamma=found.settings.gamma)
        found = calibrate(other, replace(s, oracle=found.settings.oracle))
        choices.extend(found.choices, under="Bregman divergence")
    settings = found.settings
    if request.cold and request.settings.friction is None:
        assert settings.friction is not None
        critical = settings.friction * CRITICAL_FRICTION / LOW_FRICTION
        settings = replace(settings, friction=critical)
        choices.choose("friction", critical, "critical, for a descent")
    return Calibration(settings, tuple(choices))


def _with_oracle(problem: Problem, settings: Settings, choices: Choices) -> Settings:
    """Return settings of sequential chains where vmap cannot take each chain's own query."""
    if settings.oracle == "sequential":
        return settings
    device = run_device(problem, settings)
    groups: Sequence = list(problem.query_groups.values())
    refusal = vmap_refusal(
        problem.evaluation_copy(device),
        problem.observables[0].recorded,
        params=tensors.stacked(moving_center(problem, settings), 2),
        batch=to_device(groups[0].first(1), torch.device(device)),
        per_chain=True,
    )
    if refusal is None:
        return settings
    if settings.oracle == "stacked":
        raise ValueError(
            f"the gradient of the observable cannot be stacked by torch.func.vmap: {refusal}. Use "
            "oracle='sequential', which runs one chain after another and takes any model."
        )
    reason = f"vmap cannot take the observable's gradient ({refusal})"
    choices.choose("oracle", "sequential", reason)
    return replace(settings, oracle="sequential")
