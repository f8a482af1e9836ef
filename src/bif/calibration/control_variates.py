"""Choose control variates where full gradients do not come to an end within a budget.

A run takes full gradients as long as it can: the losses of all items come with them, and
gradient noise biases the draws.  With a control variate, the noise is that of the change of single
items' gradients since w*, and a step costs two mini-batches.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import ceil

from bif import tensors
from bif.calibration.budget import Aim, Goal, TooSmallBudget, affordable, choose_draws, fewest_draws
from bif.calibration.measured_mass import make_engine
from bif.calibration.steps import choose_steps
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.engine import Engine
from bif.sampling.sampler_checks import HEAT, heat
from bif.sampling.settings import RunSettings, Settings
from bif.types import Params

_SHARES = (4, 6, 8, 12, 16, 24, 32)
"""Divisors of the number of train items that give a mini-batch, from the least noisy on."""
_SMALLEST = 32
"""Items of a mini-batch at least; where not even these fit, the budget is refused."""
_CHOSEN_ANEW = ("gradient", "mass", "step_size", "friction", "relaxation", "burn_in", "thin")
"""Settings whose earlier choices are dropped."""
_OF_ITS_OWN = 1.5
"""Cost of a mini-batch of each chain's own, in units of as many items that all chains share."""


def fall_back(
    problem: Problem,
    settings: Settings,
    aim: Aim,
    too_small: TooSmallBudget,
    *,
    k_max: float,
    choices: Choices,
    started: float,
) -> tuple[RunSettings, Goal | None]:
    """Complete settings with control variates, by the largest mini-batch that fits the budget.

    Args:
        problem: What is to be attributed.
        settings: What is given, with nbeta, gamma and the oracle; the rest is chosen anew.
        aim: Reliability, budget or both that the draws are for.
        too_small: The refusal of full gradients.
        k_max: Largest curvature of U.
        choices: Gets what is chosen.
        started: Start by `time.perf_counter`, when calibration began.

    Raises:
        TooSmallBudget: They do not fit either, or their noise would widen the draws too much; a
            mass is given, which is for full gradients alone.
    """
    if settings.mass not in (None, "identity"):
        raise too_small
    anew, budget = Choices(), aim.budget or 0.0
    anew.choose(
        "gradient", "control_variate", "with full gradients the budget is too small to converge, "
        f"by {too_small.needed:,.0f} s to {budget:,.0f} s",
    )  # fmt: skip
    found = _largest_batch(problem, settings, budget, too_small, k_max=k_max, choices=anew)
    if found is None:
        raise too_small
    chosen, relaxation = found
    widened = _heat_away_from_center(problem, chosen)
    if not widened <= HEAT:
        what = (
            f"their noise widens the draws by {widened:.0%} in its worst direction"
            if math.isfinite(widened)
            else "their chains run off"
        )
        raise TooSmallBudget(
            f"{too_small} Control variates with mini-batches of {chosen.batch_size} would fit, but "
            f"{what}.",
            pace=too_small.pace,
            needed=too_small.needed,
        )
    anew.remark(f"gradient noise widens the draws by {widened:.1%} in its worst direction")
    complete, goal = choose_draws(
        problem, chosen, aim, relaxation=relaxation, choices=anew, started=started
    )
    choices.forget(*_CHOSEN_ANEW)
    choices.extend(anew)
    return complete, goal


def _largest_batch(
    problem: Problem,
    settings: Settings,
    budget: float,
    too_small: TooSmallBudget,
    *,
    k_max: float,
    choices: Choices,
) -> tuple[RunSettings, float] | None:
    """Return settings with the largest mini-batch that fits, and their relaxation time in steps."""
    n, pace = problem.num_train, too_small.pace
    for share in _SHARES:
        batch = ceil(n / share)
        if batch < _SMALLEST:
            return None
        of_steps = Choices()
        asked = replace(settings, gradient="control_variate", batch_size=batch, mass="identity")
        chosen, relaxation = choose_steps(problem, asked, k_max, of_steps)
        # A backward pass costs two forward ones, and a draw now needs a forward pass of its own.
        cheaper = replace(
            pace,
            step=pace.step * 2 * _OF_ITS_OWN * batch / n,
            record=pace.record + pace.step / 3,
        )
        try:
            affordable(chosen, budget, cheaper, fewest_draws(chosen, relaxation))
        except TooSmallBudget:
            continue
        choices.choose("batch_size", batch, f"the largest share of the {n} items that fits")
        choices.extend(of_steps)
        return chosen, relaxation
    return None


def _heat_away_from_center(problem: Problem, settings: RunSettings) -> float:
    """Return the share by which gradient noise widens the draws, one burn-in away from w*."""
    few = replace(settings, draws=2, chains=2, block_size=2)
    engine = make_engine(problem, few)
    return heat(engine, _one_burn_in_away(engine))


def _one_burn_in_away(engine: Engine) -> Params:
    """Return the weights of one chain after its burn-in, `[1, *shape]`."""
    burn_in = engine.settings.burn_in
    *_, last = engine.positions(0, 2, engine.start(0, 2), last_step=burn_in)
    return {name: leaf[:1] for name, leaf in tensors.copied(last.state.params).items()}
