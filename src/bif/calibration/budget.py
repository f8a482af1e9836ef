"""Forecast by a short pilot how many draws a reliability needs and a budget allows.

A run that aims at a reliability ends when its draws have it: the forecast is of one pilot.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from math import ceil, floor

import torch

from bif.calibration.measured_mass import make_engine
from bif.estimate.diagnostics import reliability
from bif.estimate.traces import LossTraces
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.engine import Engine
from bif.sampling.factory import wait_for
from bif.sampling.settings import RunSettings, Settings

MIN_RELAXATIONS = 50
"""A chain is at least this many relaxation times long: shorter ones fail the gate of mixing."""
MOST_DRAWS = 100_000
"""Draws of a chain at most: a forecast from a weak signal must not ask for ever more."""
_FEWEST_CHAINS = 8
"""Chains below which a small budget does not go: R-hat compares chains with each other."""
_SLACK = 2.0
"""Draws that a run may take for a reliability, in units of the draws forecast: pilots err."""
_PILOT_CHAINS = 16
"""Chains of the pilot that measures a draw's signal, in two halves that are compared."""
_PILOT_DRAWS = 24
"""Draws of each of the pilot's chains, few beside the draws of a run."""
_PILOT_SHARE = 0.15
"""Part of a budget that the pilot may take where no reliability is asked for."""
_TIMED_STEPS = 4
"""Steps that are timed, the first of which is warm-up and does not count."""
_FEWEST_TIMED = 3
"""Steps that are timed even where they are long: the least that give one time without warm-up."""
_TIMED_SHARE = 0.1
"""Part of a budget after which no further step is timed."""
_SAMPLING_SHARE = 0.8
"""Part of the budget left after the pilot that sampling takes; set-up and results take the rest."""


@dataclass(frozen=True)
class Goal:
    """The reliability that ends a run at the first check that finds it.

    Attributes:
        reliability: Reliability of scores, as in the summary.
        fewest: Draws of each chain before the first check.
    """

    reliability: float
    fewest: int


@dataclass(frozen=True)
class Pace:
    """The seconds and the signal that a pilot measured.

    Attributes:
        step: Seconds of a step of a block of chains.
        record: Seconds that a draw of a block takes beyond its step.
        signal: Signal of one draw: T draws in all have reliability `T·signal / (1 + T·signal)`; NaN
            where it was not measured.
        spent: Seconds of calibration, the pilot's among them.
        num_ranks: Processes that take blocks side by side.
    """

    step: float
    record: float
    signal: float
    spent: float
    num_ranks: int = 1

    def reliability(self, total: float) -> float:
        """Return the reliability forecast for so many draws in all, by Spearman and Brown."""
        return total * self.signal / (1 + total * self.signal)

    def total_for(self, target: float) -> float:
        """Return how many draws in all reach a reliability."""
        return target / ((1 - target) * self.signal)


class TooSmallBudget(ValueError):
    """Raised when not even the fewest chains come to an end within a budget.

    Attributes:
        pace: Seconds of a step and a draw, as measured.
        needed: Seconds that would do.
    """

    def __init__(self, message: str, *, pace: Pace, needed: float) -> None:
        super().__init__(message)
        self.pace, self.needed = pace, needed


@dataclass(frozen=True)
class Aim:
    """The reliability, the budget or both that decide how many draws a run takes.

    Attributes:
        reliability: Reliability of scores, as in the summary.
        budget: Seconds, calibration included.
        num_ranks: Processes that share the chains, by whole blocks.
    """

    reliability: float | None
    budget: float | None
    num_ranks: int = 1

    @classmethod
    def of(cls, settings: Settings, num_ranks: int = 1) -> Aim | None:
        """Return the aim of settings as they were asked for; None if draws were."""
        if settings.reliability is None and settings.budget is None:
            return None
        budget = None if settings.budget is None else float(settings.budget)
        return cls(settings.reliability, budget, num_ranks)


def choose_draws(
    problem: Problem,
    settings: RunSettings,
    aim: Aim,
    *,
    relaxation: float,
    choices: Choices,
    started: float,
    of_chain: float = 0.0,
) -> tuple[RunSettings, Goal | None]:
    """Choose draws, and where a budget is small fewer chains, for a reliability or a budget.

    With both, the draws that the reliability needs, as far as the budget allows.  Chains of one
    block may take twice as many as forecast, and end at the goal; several blocks, one after
    another, take what is forecast.

    Args:
        problem: What is to be attributed.
        settings: Complete, with whatever draws.
        aim: Reliability, budget or both that the draws are for.
        relaxation: Steps in which the slowest direction forgets.
        choices: Gets what is chosen.
        started: Start by `time.perf_counter`; what has been spent since is taken from the budget.
        of_chain: Seconds of a gradient of one chain, 0 where they are not known: a stack whose
            timing would outlast its share of a budget is not timed.

    Returns:
        Settings whose draws are the most that are taken, and where to end before.

    Raises:
        TooSmallBudget: It has no room for burn-in and the fewest draws.
    """
    least, asked = fewest_draws(settings, relaxation), settings.chains
    settings = _with_timeable_block(settings, aim, of_chain)
    pace = measure_pace(problem, settings, aim, least=least, started=started)
    chosen, goal, why = settings, None, list[str]()
    draws = least
    if aim.reliability is not None:
        needed = pace.total_for(aim.reliability)
        slack = _SLACK if settings.chains <= settings.block_size else 1.0
        draws = min(MOST_DRAWS, max(least, ceil(slack * needed / settings.chains)))
        why.append(f"reliability {aim.reliability:g} needs about {needed:,.0f} draws in all")
    if aim.budget is not None:
        chosen, allowed, pace = _within(problem, settings, aim.budget, pace, least)
        draws = allowed if aim.reliability is None else min(draws, allowed)
        why.append(f"a budget of {aim.budget:,.0f} s allows {allowed} of {chosen.chains} chains")
    expected = draws
    if aim.reliability is not None and chosen.chains == chosen.block_size:
        goal = Goal(aim.reliability, least)
        needed = ceil(pace.total_for(goal.reliability) / chosen.chains)
        expected = min(draws, max(least, needed))
        why.append("the run ends where it has it")
    if chosen.chains != asked:
        reason = f"{asked} do not come to an end within the budget"
        choices.choose("chains", chosen.chains, reason)
    choices.choose(
        "draws",
        f"{'at most ' if goal else ''}{draws} of each chain",
        f"{'; '.join(why)}. Forecast: {_forecast(chosen, pace, expected)}",
    )
    return replace(chosen, draws=draws), goal


def _within(
    problem: Problem, settings: RunSettings, budget: float, pace: Pace, least: int
) -> tuple[RunSettings, int, Pace]:
    """Return settings with the chains that fit into a budget, the draws of each, and the pace."""
    chains, allowed = affordable(settings, budget, pace, least)
    if chains < min(settings.block_size, settings.chains) and not settings.compiled:
        # A device that is not full takes as long for fewer.
        settings = replace(settings, chains=chains, block_size=chains)
        pace = measure_pace_again(problem, settings, budget, pace)
        chains, allowed = affordable(settings, budget, pace, least)
    block_size = min(settings.block_size, chains)
    return replace(settings, chains=chains, block_size=block_size), allowed, pace


def _forecast(settings: RunSettings, pace: Pace, draws: int) -> str:
    """Return the seconds and the reliability of so many draws of each chain, in words."""
    seconds = _sampling_seconds(settings, pace, settings.chains, draws)
    found = pace.reliability(draws * settings.chains)
    if math.isfinite(found):
        return f"{seconds:,.0f} s of sampling, reliability {found:.2f}"
    return (
        f"{seconds:,.0f} s of sampling, of reliability none: to measure it would take too much of "
        "the budget"
    )


def _with_timeable_block(settings: RunSettings, aim: Aim, of_chain: float) -> RunSettings:
    """Return settings with as many chains as can be timed within a share of the budget."""
    if aim.budget is None or not of_chain:
        return settings
    fitting = int(_TIMED_SHARE * aim.budget / (_FEWEST_TIMED * of_chain))
    if settings.block_size <= max(fitting, _FEWEST_CHAINS):
        return settings
    block = max(_FEWEST_CHAINS, fitting)
    return replace(settings, chains=min(settings.chains, block), block_size=block)


def measure_pace(
    problem: Problem, settings: RunSettings, aim: Aim, *, least: int, started: float
) -> Pace:
    """Measure seconds and signal by a few chains that start at w* and stop early.

    Args:
        problem: What is to be attributed.
        settings: Complete, with whatever draws.
        aim: Reliability, budget or both that the draws are for.
        least: Draws of a chain below which no run is made.
        started: Start by `time.perf_counter`, when calibration began.

    Raises:
        TooSmallBudget: Not even these are made within it: the pilot itself could outlast it.
    """
    timed = replace(settings, draws=2)
    step, record = _time_steps(make_engine(problem, timed), settings.block_size, aim.budget)
    if aim.budget is not None:
        spent = time.perf_counter() - started
        pace = Pace(step, record, math.nan, spent, aim.num_ranks)
        affordable(settings, aim.budget, pace, least)
    few = min(_PILOT_CHAINS, max(2, settings.block_size))
    size = min(settings.block_size, few)
    pilot = replace(
        timed, chains=few, draws=_PILOT_DRAWS, burn_in=settings.burn_in // 2, compiled=False,
        block_size=size,
    )  # fmt: skip
    if aim.budget is not None and aim.reliability is None:  # its figure is for the reader alone
        expected = _sampling_seconds(pilot, Pace(step, record, math.nan, 0.0), few, _PILOT_DRAWS)
        expected *= size / settings.block_size  # stacks of fewer chains step faster
        if expected > _PILOT_SHARE * aim.budget:
            return Pace(step, record, math.nan, time.perf_counter() - started, aim.num_ranks)
    signal = signal_of_draw(short_traces(make_engine(problem, pilot), few))
    return Pace(step, record, signal, time.perf_counter() - started, aim.num_ranks)


def signal_of_draw(traces: LossTraces) -> float:
    """Return the signal of one draw, as in `Pace`, by the agreement of a pilot's halves."""
    found = reliability(traces, num_queries=32, num_train=512)
    found = min(max(found, 0.02), 0.999) if found == found else 0.02
    return found / (1 - found) / traces.total_draws


def seconds_of_draw(engine: Engine) -> float:
    """Return the seconds of a draw of one chain, by a few steps of a block."""
    size = engine.settings.block_size
    step, record = _time_steps(engine, size, None)
    return (engine.settings.thin * step + record) / size


def measure_pace_again(problem: Problem, settings: RunSettings, budget: float, pace: Pace) -> Pace:
    """Return the same signal, with the seconds of a block of another size.

    Args:
        problem: What is to be attributed.
        settings: Complete, with that block.
        budget: Budget in seconds.
        pace: Pace of the other block.
    """
    started = time.perf_counter()
    alone = make_engine(problem, replace(settings, draws=2))
    step, record = _time_steps(alone, settings.block_size, budget - pace.spent)
    spent = pace.spent + time.perf_counter() - started
    return replace(pace, step=step, record=record, spent=spent)


def _time_steps(engine: Engine, chains: int, budget: float | None) -> tuple[float, float]:
    """Return the seconds of a step and of a record, the first of each left out."""
    start = engine.start(0, chains)
    longest = math.inf if budget is None else _TIMED_SHARE * budget
    marks, records = [], []
    for position in engine.positions(0, chains, start, last_step=_TIMED_STEPS):
        wait_for(engine.device)
        marks.append(time.perf_counter())
        engine.observed(position)
        wait_for(engine.device)
        records.append(time.perf_counter() - marks[-1])
        marks[-1] += records[-1]
        if len(marks) > 2 and marks[-1] - marks[0] > longest:
            break
    gaps = [b - a - r for a, b, r in zip(marks[1:], marks[2:], records[2:], strict=False)]
    return max(min(gaps), 1e-7), min(records[1:])


def short_traces(engine: Engine, chains: int) -> LossTraces:
    """Return the traces of a run's first chains, whole blocks of them, in memory."""
    train, query = [], []
    size = engine.settings.block_size
    for block in range(chains // size):
        drawn = [(a.cpu(), b.cpu()) for _, a, b in engine.observed_draws(block, size)]
        train.append(torch.stack([a for a, _ in drawn], dim=1))
        query.append(torch.stack([b for _, b in drawn], dim=1))
    return LossTraces.from_arrays(torch.cat(train), torch.cat(query))


def fewest_draws(settings: RunSettings, relaxation: float) -> int:
    """Return the draws of a chain that is long enough."""
    return max(20, ceil(MIN_RELAXATIONS * relaxation / settings.thin))


def affordable(settings: RunSettings, budget: float, pace: Pace, least: int) -> tuple[int, int]:
    """Return the chains and their draws that fit into a budget: fewer chains before short ones.

    Args:
        settings: Complete, with whatever draws.
        budget: Budget in seconds.
        pace: Seconds of a step and a draw.
        least: Draws of a chain below which no run is made.

    Raises:
        TooSmallBudget: Not even the fewest chains come to an end.
    """
    left = _SAMPLING_SHARE * (budget - pace.spent)
    chains = settings.chains
    while True:
        of_a_chain = left / _blocks(settings, chains, pace)
        draws = floor((of_a_chain - settings.burn_in * pace.step) / _draw(settings, pace))
        if draws >= least:
            return chains, min(draws, MOST_DRAWS)
        if chains <= _FEWEST_CHAINS:
            break
        chains = max(_FEWEST_CHAINS, chains // 2)
    needed = _sampling_seconds(settings, pace, chains, least)
    whole = 1.1 * (needed / _SAMPLING_SHARE + pace.spent)
    raise TooSmallBudget(
        f"a budget of {budget:,.1f} s is too small to converge: {settings.burn_in} steps "
        f"of burn-in and {least} draws of {chains} chains take {needed:,.1f} s, at {pace.step:.3g} "
        f"s a step of {settings.block_size} chains, and calibration took {pace.spent:,.1f} s. Give "
        f"budget='{ceil(whole)}s', raise gamma, which shortens both, or use a faster device.",
        pace=pace,
        needed=whole,
    )


def _blocks(settings: RunSettings, chains: int, pace: Pace) -> float:
    """Return blocks of a rank in units of a full one: a small one takes its share of the time."""
    blocks = chains / settings.block_size
    return ceil(ceil(blocks) / pace.num_ranks) if blocks > 1 else blocks


def _draw(settings: RunSettings, pace: Pace) -> float:
    return settings.thin * pace.step + pace.record


def _sampling_seconds(settings: RunSettings, pace: Pace, chains: int, draws: int) -> float:
    one = settings.burn_in * pace.step + draws * _draw(settings, pace)
    return _blocks(settings, chains, pace) * one
