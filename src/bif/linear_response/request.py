"""What is asked of a response: arguments that make sense, and one observable."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from math import inf

from bif.curvature.products import require_curvature
from bif.problem.problem import Problem, find_observable
from bif.sampling.samplers import names_of
from bif.sampling.settings import Settings


@dataclass(frozen=True)
class Request:
    """How `bif.respond` was asked, checked; words of earlier versions for a curvature still do.

    Raises:
        ValueError: Arguments out of range, or that contradict each other.
    """

    settings: Settings
    temperature: float
    curvature: str
    h: float | None
    steps: int | None
    replicates: int

    def __post_init__(self) -> None:
        self.settings.require_chains("bif.respond")
        if self.temperature not in (0.0, 1.0):
            raise ValueError(
                f"temperature is {self.temperature!r}: expected 1.0 (the posterior) or 0.0 (its "
                "minimum). For temperatures between them change nbeta and gamma alike."
            )
        object.__setattr__(self, "curvature", require_curvature(self.curvature))
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
        if s.traits.adaptive:
            raise ValueError(
                f"sampler is {s.sampler!r}, whose state answers to the perturbation too: expected "
                f"one of {names_of(lambda traits: not traits.adaptive)}."
            )
        if s.oracle == "live":
            raise ValueError(
                "oracle='live' has one chain and a response needs pairs: use 'sequential', which "
                "takes any model, or 'stacked'."
            )
        if not self.cold and self.curvature == "gauss_newton":
            raise ValueError(
                "curvature='gauss_newton' belongs to temperature 0, where its minimum is w*: pass "
                "temperature=0.0, or curvature='hessian'."
            )
        gradient = s.gradient or "full"
        exact = s.traits.underdamped and gradient == "full" and self.replicates == 1
        if self.cold and not exact:
            able = names_of(lambda traits: traits.underdamped and not traits.adaptive)
            raise ValueError(
                "temperature 0 has neither noise nor replicates: it needs an underdamped sampler "
                f"({able}), gradient='full' and replicates=1, got {s.sampler!r}, {gradient!r} and "
                f"{self.replicates}."
            )


def of_observable(problem: Problem, name: str | None) -> Problem:
    """The problem with a single one of its observables, the first by default.

    Raises:
        KeyError: There is none of that name.
        ValueError: The problem has columns of tokens or a path.
    """
    problem.refuse_tokens("a response")
    problem.refuse_path("a response by pairs of chains")
    alone = copy(problem)
    alone.observables = (find_observable(problem, name),)
    return alone
