"""What a response needs before its first step: a request that makes sense, complete settings."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import inf

import torch

from bif import tensors
from bif.calibration.calibrate import Calibration, calibrate
from bif.calibration.steps import CRITICAL_FRICTION, LOW_FRICTION
from bif.linear_response.pairs import Curvature, bregman_problem
from bif.problem.items import map_batch
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.sampling.factory import moving_center, run_device
from bif.sampling.oracles import vmap_refusal
from bif.sampling.settings import Settings

SAMPLERS = ("baoab", "sgld")
"""Rules that move both chains of a pair alike; adaptive ones would answer to the perturbation."""


@dataclass(frozen=True)
class Request:
    """How `bif.respond` was asked, checked.

    Raises:
        ValueError: Arguments out of range, or that contradict each other.
    """

    settings: Settings
    temperature: float
    curvature: Curvature
    h: float | None
    steps: int | None
    replicates: int

    def __post_init__(self) -> None:
        if self.temperature not in (0.0, 1.0):
            raise ValueError(
                f"temperature is {self.temperature!r}: expected 1.0 (the posterior) or 0.0 (its "
                "minimum). For temperatures between them change nbeta and gamma alike."
            )
        require_literal("curvature", self.curvature, Curvature)
        if self.h is not None and not 0 < self.h < inf:
            raise ValueError(f"h is {self.h!r}: expected a finite number > 0, or None to choose.")
        for name in ("steps", "replicates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value!r}: expected at least 1.")
        if (self.settings.budget, self.settings.reliability) != (None, None):
            raise ValueError(
                "budget and reliability choose the draws of bif.attribute; a response's length is "
                "steps: pass steps and leave the two out."
            )
        self._refuse_contradictions()

    @property
    def cold(self) -> bool:
        """Whether it is the response of the minimum."""
        return self.temperature == 0

    @property
    def num_mirrors(self) -> int:
        """Runs of each replicate: with its noise and with the negative of it; without any, one."""
        return 1 if self.cold else 2

    def _refuse_contradictions(self) -> None:
        s = self.settings
        if s.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler is {s.sampler!r}, whose state answers to the perturbation too: expected "
                f"one of {', '.join(SAMPLERS)}."
            )
        if s.oracle == "live":
            raise ValueError(
                "oracle='live' has one chain and a response needs pairs: use 'sequential', which "
                "takes any model, or 'stacked'."
            )
        if not self.cold and self.curvature == "bregman":
            raise ValueError(
                "curvature='bregman' belongs to temperature 0, where its minimum is w*: pass "
                "temperature=0.0, or curvature='hessian'."
            )
        gradient = s.gradient or "full"
        if self.cold and (s.sampler != "baoab" or gradient != "full" or self.replicates != 1):
            raise ValueError(
                "temperature 0 has neither noise nor replicates: it needs sampler='baoab', "
                f"gradient='full' and replicates=1, got {s.sampler!r}, {gradient!r} and "
                f"{self.replicates}."
            )


def of_observable(problem: Problem, name: str | None) -> Problem:
    """The problem with a single one of its observables, the first by default.

    Raises:
        KeyError: There is none of that name.
    """
    problem.refuse_tokens("a response")
    known = {observable.name: observable for observable in problem.observables}
    chosen = problem.observables[0].name if name is None else name
    if chosen not in known:
        raise KeyError(f"no observable {name!r}; there are {list(known)}.")
    alone = copy(problem)
    alone.observables = (known[chosen],)
    return alone


def complete(problem: Problem, request: Request) -> Calibration:
    """Complete settings: those of `bif.calibrate`, for pairs of chains and for the temperature.

    Raises:
        ValueError: A model that vmap cannot take with `oracle="stacked"`; a loss without a known
            Bregman divergence; what `calibrate` raises.
    """
    said: list[str] = []
    s = _with_oracle(problem, request.settings, said)
    if request.cold:  # losses at the two ends of a pair differ by little
        s = replace(
            s,
            gradient_precision=s.gradient_precision or "float32",
            loss_precision=s.loss_precision or "float32",
        )
    each = 2 * request.num_mirrors * request.replicates
    if s.mass == "kronecker":  # its steps are in units of other coordinates
        s = replace(s, step_size=None, friction=None, burn_in=None, thin=None)
    # The perturbation's size is chosen by the step of unit mass.
    chains = each * max(len(items) for items in problem.query_groups.values())
    s = replace(s, mass="identity", chains=chains)
    found = calibrate(problem, s)
    said += found.explanations
    if request.curvature == "bregman":
        # The same posterior, but a step for its own largest curvature.
        other = bregman_problem(problem, s)
        s = replace(s, nbeta=found.settings.nbeta, gamma=found.settings.gamma)
        found = calibrate(other, replace(s, oracle=found.settings.oracle))
        said += [f"Bregman divergence: {line}" for line in found.explanations]
    settings = found.settings
    if request.cold and request.settings.friction is None:
        assert settings.friction is not None
        critical = settings.friction * CRITICAL_FRICTION / LOW_FRICTION
        settings = replace(settings, friction=critical)
        said.append(f"friction = {critical:.4g}: critical, for a descent")
    return Calibration(settings, tuple(said))


def _with_oracle(problem: Problem, settings: Settings, said: list[str]) -> Settings:
    """Sequential chains where vmap cannot take the gradient of each chain's own query."""
    if settings.oracle == "sequential":
        return settings
    device = run_device(problem, settings)
    groups: Sequence = list(problem.query_groups.values())
    refusal = vmap_refusal(
        problem.evaluation_copy(device),
        problem.observables[0].recorded,
        params=tensors.stacked(moving_center(problem, settings), 2),
        batch=map_batch(lambda leaf: leaf.to(torch.device(device)), groups[0].first(1)),
        per_chain=True,
    )
    if refusal is None:
        return settings
    if settings.oracle == "stacked":
        raise ValueError(
            f"the gradient of the observable cannot be stacked by torch.func.vmap: {refusal}. Use "
            "oracle='sequential', which runs one chain after another and takes any model."
        )
    said.append(f"oracle = sequential: vmap cannot take the observable's gradient ({refusal})")
    return replace(settings, oracle="sequential")
