"""Choose step size, friction, burn-in and thinning by the extreme curvatures of U.

By the laws of the samplers on quadratics (the docs page "Samplers"), the largest curvature sets the
step; the smallest, which is gamma, sets friction and burn-in.
"""

from __future__ import annotations

from math import ceil, sqrt

from bif.calibration.damping import FLATTEST
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.settings import RunSettings, Settings

ROUND_STEP = 0.6
"""Step in the coordinates of a mass, in units of 1 / sqrt(largest curvature).  All directions are
about as steep there, so a step that biases one direction biases all: at 1.4 scores of small
networks were a tenth too large."""
ROUND_FRICTION = 0.4
"""Friction in the coordinates of a mass, where curvatures are about 1: all directions steeper than
.04, the square of its half, forget at half of it."""
OPEN_DRAWS = 2
"""Draws of complete settings until draws are chosen."""
LOW_FRICTION = 1.4
"""Friction in units of sqrt(smallest curvature) without gradient noise: losses forget fastest."""
CRITICAL_FRICTION = 2.0
"""Friction in the same units with gradient noise, which lower friction multiplies."""


def smallest_curvature(settings: Settings) -> float:
    """Return the smallest relevant curvature of U, in the coordinates of the mass."""
    assert settings.nbeta is not None and settings.gamma is not None
    if settings.mass == "kronecker":
        return ((settings.friction or ROUND_FRICTION) / 2) ** 2
    return settings.gamma + settings.nbeta * settings.weight_decay


def relaxation_steps(settings: RunSettings, k_min: float) -> float:
    """Return the steps in which a direction of curvature `k_min` forgets all but 1/e."""
    return settings.traits.relaxation_steps(settings.step_size, settings.friction, k_min)


def burn_in_steps(settings: Settings, relaxation: float) -> int:
    """Return the steps of a burn-in, from the relaxation time in steps."""
    return ceil(_burn_in_times(settings) * relaxation)


def _burn_in_times(settings: Settings) -> int:
    """Return the relaxation times of a burn-in: ten underdamped ones shrink a start by e^-10."""
    if settings.mass == "kronecker":
        return 6
    return 10 if settings.traits.underdamped else 5


def choose_steps(
    problem: Problem, settings: Settings, k_max: float, choices: Choices
) -> tuple[RunSettings, float]:
    """Choose step size, friction, burn-in and thinning from the extreme curvatures of U.

    Args:
        problem: What is to be attributed.
        settings: Complete but for these; open draws are for `choose_draws` to choose.
        k_max: Largest curvature of U in the coordinates of the mass.
        choices: Gets what is chosen.

    Returns:
        Complete settings, and the steps in which the slowest direction forgets.
    """
    assert settings.nbeta is not None and settings.gamma is not None
    white = settings.mass == "kronecker"
    k_min = max(smallest_curvature(settings), FLATTEST * k_max * (not white))
    traits = settings.traits
    length = ROUND_STEP if white else traits.default_step
    if traits.underdamped:
        step = settings.step_size or length / sqrt(k_max)
        # Low friction decorrelates losses fastest, but multiplies gradient noise.
        damped = LOW_FRICTION if settings.gradient == "full" else CRITICAL_FRICTION
        friction = settings.friction or (ROUND_FRICTION if white else damped * sqrt(k_min))
        why = (
            f"{length:g} / sqrt(largest curvature of U, {k_max:.4g}); stable below "
            f"{2 / sqrt(k_max):.4g}"
        )
        if settings.friction is None:
            choices.choose(
                "friction",
                friction,
                "in the coordinates of the mass, where curvatures are about 1"
                if white
                else f"{damped:g} sqrt(smallest curvature of U, {k_min:.4g})",
            )
    else:
        friction = settings.friction
        step = settings.step_size or length / k_max
        why = f"{length:g} / largest curvature of U, {k_max:.4g}"
    if settings.step_size is None:
        choices.choose("step_size", step, why)
    slowest = settings.traits.relaxation_steps(step, friction, k_min)
    times, burn_in = _burn_in_times(settings), burn_in_steps(settings, slowest)
    part, words = (4, "a fourth") if white else (3, "a third")
    thin = max(1, round(slowest / part))
    reason = f"{words} of the relaxation time, since the losses come with the gradient"
    if settings.gradient != "full":
        assert settings.batch_size is not None
        passes = 6 if settings.gradient == "control_variate" else 3
        by_cost = ceil(problem.num_train / (passes * settings.batch_size))
        if by_cost > thin:
            thin, reason = by_cost, "steps that cost as much as the draw's own pass over the data"
    choices.choose("relaxation", f"{slowest:.1f} steps", "in the slowest direction")
    if settings.burn_in is None:
        choices.choose("burn_in", burn_in, f"{times} relaxation times")
    if settings.thin is None:
        choices.choose("thin", thin, reason)
    chosen = RunSettings.completing(
        settings,
        step_size=step,
        friction=friction,
        burn_in=burn_in if settings.burn_in is None else settings.burn_in,
        thin=settings.thin or thin,
        draws=settings.draws or OPEN_DRAWS,
    )
    return chosen, slowest
