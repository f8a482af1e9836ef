"""How many draws: what a reliability needs and what a budget allows, forecast by a short pilot.

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
from bif.sampling.engine import Sampling
from bif.sampling.factory import wait_for
from bif.sampling.settings import Settings

MIN_RELAXATIONS = 50
"""A chain is at least this many relaxation times long: shorter ones fail the gate of mixing."""
MOST_DRAWS = 100_000
_FEWEST_CHAINS = 8
_SLACK = 2.0
"""Draws that a run may take for a reliability, in units of those that are forecast to be needed."""
_PILOT_CHAINS, _PILOT_DRAWS, _PILOT_SHARE = 16, 24, 0.15
"""Of the pilot that measures a draw's signal; where no reliability is aimed at, its share of a
budget at most."""
_TIMED_STEPS, _FEWEST_TIMED, _TIMED_SHARE = 4, 3, 0.1
_SAMPLING_SHARE = 0.8
"""Of what is left of a budget after the pilot; the rest is for set-up, estimates and the page."""


@dataclass(frozen=True)
class Goal:
    """A run ends at the first look at which its draws have a reliability.

    Attributes:
        reliability: Of scores, as the summary has it.
        fewest: Draws of each chain before the first look.
    """

    reliability: float
    fewest: int


@dataclass(frozen=True)
class Pace:
    """What a pilot measured.

    Attributes:
        step: Seconds of a step of a block of chains.
        record: Seconds that a draw of a block takes beyond its step.
        signal: Of one draw: a run of T draws in all has reliability `T·signal / (1 + T·signal)`;
            NaN where it was not measured.
        spent: Seconds of calibration, the pilot's among them.
    """

    step: float
    record: float
    signal: float
    spent: float

    def reliability(self, total: float) -> float:
        """Forecast for so many draws in all, by Spearman and Brown."""
        return total * self.signal / (1 + total * self.signal)

    def total_for(self, target: float) -> float:
        """Draws in all that reach a reliability."""
        return target / ((1 - target) * self.signal)


class TooSmallBudget(ValueError):
    """A budget in which not even the fewest chains come to an end.

    Attributes:
        pace: Of a step and a draw, as measured.
        needed: Seconds that would do.
    """

    def __init__(self, said: str, *, pace: Pace, needed: float) -> None:
        super().__init__(said)
        self.pace, self.needed = pace, needed


def choose_draws(
    problem: Problem,
    settings: Settings,
    *,
    relaxation: float,
    said: list[str],
    started: float,
    of_chain: float = 0.0,
) -> tuple[Settings, Goal | None]:
    """Draws, and where a budget is small fewer chains, for a reliability or a budget.

    With both, the draws that the reliability needs, as far as the budget allows.  Chains of one
    block may take twice as many as forecast, and end at the goal; several blocks, one after
    another, take what is forecast.

    Args:
        problem: What is to be attributed.
        settings: Complete but for `draws`, with `reliability`, `budget` or both.
        relaxation: Steps in which the slowest direction forgets.
        said: Gets a line for each choice.
        started: By `time.perf_counter`; what has been spent since is taken from the budget.
        of_chain: Seconds of a gradient of one chain, 0 where they are not known: a stack whose
            timing would outlast its share of a budget is not timed.

    Returns:
        Complete settings, whose draws are the most that are taken, and where to end before.

    Raises:
        TooSmallBudget: It has no room for burn-in and the fewest draws.
    """
    assert settings.thin is not None and settings.chains is not None
    least, asked = fewest_draws(settings, relaxation), settings.chains
    settings = _timely(settings, of_chain)
    assert settings.chains is not None
    pace = measure_pace(problem, settings, least=least, started=started)
    draws, chains, why = least, settings.chains, list[str]()
    if settings.reliability is not None:
        needed = pace.total_for(settings.reliability)
        slack = _SLACK if chains <= (settings.block_size or 1) else 1.0
        draws = min(MOST_DRAWS, max(least, ceil(slack * needed / chains)))
        why.append(f"reliability {settings.reliability:g} needs about {needed:,.0f} draws in all")
    if settings.budget is not None:
        chains, allowed = affordable(settings, pace, least)
        if chains < min(settings.block_size or 1, settings.chains) and not settings.compiled:
            # A device that is not full takes as long for fewer.
            settings = replace(settings, chains=chains, block_size=chains)
            pace = timed_again(problem, settings, pace)
            chains, allowed = affordable(settings, pace, least)
        draws = allowed if settings.reliability is None else min(draws, allowed)
        why.append(f"a budget of {settings.budget:,.0f} s allows {allowed} of {chains} chains")
    block_size, goal, expected = min(settings.block_size or 1, chains), None, draws
    if settings.reliability is not None and chains == block_size:
        goal = Goal(settings.reliability, least)
        expected = min(draws, max(least, ceil(pace.total_for(goal.reliability) / chains)))
        why.append("the run ends where it has it")
    seconds = _sampling_seconds(settings, pace, chains, expected)
    found = pace.reliability(expected * chains)
    agreement = f"reliability {found:.2f}" if math.isfinite(found) else (
        "of reliability none: to measure it would take too much of the budget"
    )  # fmt: skip
    if chains != asked:
        said.append(f"chains = {chains}: {asked} do not come to an end within the budget")
    said.append(
        f"draws = {'at most ' if goal else ''}{draws} of each chain: {'; '.join(why)}. Forecast: "
        f"{seconds:,.0f} s of sampling, {agreement}"
    )
    chosen = replace(
        settings, reliability=None, budget=None, draws=draws, chains=chains, block_size=block_size
    )
    return chosen, goal


def _timely(settings: Settings, of_chain: float) -> Settings:
    """With as many chains as can be timed within a share of the budget, one after another."""
    if settings.budget is None or not of_chain or not settings.block_size:
        return settings
    fitting = int(_TIMED_SHARE * float(settings.budget) / (_FEWEST_TIMED * of_chain))
    if settings.block_size <= max(fitting, _FEWEST_CHAINS):
        return settings
    block = max(_FEWEST_CHAINS, fitting)
    return replace(settings, chains=min(settings.chains or block, block), block_size=block)


def measure_pace(problem: Problem, settings: Settings, *, least: int, started: float) -> Pace:
    """Seconds and signal from a few chains that start at w* and stop early.

    Args:
        problem: What is to be attributed.
        settings: Complete but for `draws`.
        least: Draws of a chain below which no run is made.
        started: By `time.perf_counter`, when calibration began.

    Raises:
        TooSmallBudget: Not even these are made within it: the pilot itself could outlast it.
    """
    assert settings.chains is not None and settings.burn_in is not None
    assert settings.block_size is not None and settings.thin is not None
    timed = replace(settings, reliability=None, budget=None, draws=2)
    budget = None if settings.budget is None else float(settings.budget)
    step, record = _timed(make_engine(problem, timed), settings.block_size, budget)
    if settings.budget is not None:
        spent = time.perf_counter() - started
        affordable(settings, Pace(step, record, math.nan, spent), least)
    few = min(_PILOT_CHAINS, max(2, settings.block_size))
    size = min(settings.block_size, few)
    pilot = replace(
        timed, chains=few, draws=_PILOT_DRAWS, burn_in=settings.burn_in // 2, compiled=False,
        block_size=size,
    )  # fmt: skip
    # Without a goal its figure is for the reader alone.
    expected = _sampling_seconds(pilot, Pace(step, record, math.nan, 0.0), few, _PILOT_DRAWS)
    expected *= size / settings.block_size  # stacks of fewer chains step faster
    if budget is not None and settings.reliability is None and expected > _PILOT_SHARE * budget:
        return Pace(step, record, math.nan, time.perf_counter() - started)
    traces = short_traces(make_engine(problem, pilot), few)
    found = reliability(traces, num_queries=32, num_train=512)
    found = min(max(found, 0.02), 0.999) if found == found else 0.02
    signal = found / (1 - found) / traces.total_draws
    return Pace(step, record, signal, time.perf_counter() - started)


def timed_again(problem: Problem, settings: Settings, pace: Pace) -> Pace:
    """The same signal, with the seconds of a block of another size.

    Args:
        problem: What is to be attributed.
        settings: Complete but for `draws`, with that block and a budget.
        pace: Of the other block.
    """
    started = time.perf_counter()
    assert settings.block_size is not None and settings.budget is not None
    alone = replace(settings, reliability=None, budget=None, draws=2)
    left = float(settings.budget) - pace.spent
    step, record = _timed(make_engine(problem, alone), settings.block_size, left)
    return Pace(step, record, pace.signal, pace.spent + time.perf_counter() - started)


def _timed(sampling: Sampling, chains: int, budget: float | None) -> tuple[float, float]:
    """Seconds of a step and of a record, the first of each left out; few if they are long."""
    start = sampling.start(0, chains)
    longest = math.inf if budget is None else _TIMED_SHARE * budget
    marks, records = [], []
    for position in sampling.positions(0, chains, start, last_step=_TIMED_STEPS):
        wait_for(sampling.device)
        marks.append(time.perf_counter())
        sampling.observed(position)
        wait_for(sampling.device)
        records.append(time.perf_counter() - marks[-1])
        marks[-1] += records[-1]
        if len(marks) > 2 and marks[-1] - marks[0] > longest:
            break
    gaps = [b - a - r for a, b, r in zip(marks[1:], marks[2:], records[2:], strict=False)]
    return max(min(gaps), 1e-7), min(records[1:])


def short_traces(sampling: Sampling, chains: int) -> LossTraces:
    """Traces of a run's first chains, whole blocks of them, in memory."""
    train, query = [], []
    size = sampling.settings.block_size or 1
    for block in range(chains // size):
        drawn = [(a.cpu(), b.cpu()) for _, a, b in sampling.observed_draws(block, size)]
        train.append(torch.stack([a for a, _ in drawn], dim=1))
        query.append(torch.stack([b for _, b in drawn], dim=1))
    return LossTraces.from_arrays(torch.cat(train), torch.cat(query))


def fewest_draws(settings: Settings, relaxation: float) -> int:
    """Of a chain that is long enough."""
    assert settings.thin is not None
    return max(20, ceil(MIN_RELAXATIONS * relaxation / settings.thin))


def affordable(settings: Settings, pace: Pace, least: int) -> tuple[int, int]:
    """Chains and the draws of each that fit into the budget: fewer chains rather than short ones.

    Args:
        settings: Complete but for `draws`, with a budget.
        pace: Of a step and a draw.
        least: Draws of a chain below which no run is made.

    Raises:
        TooSmallBudget: Not even the fewest chains come to an end.
    """
    assert isinstance(settings.budget, float) and settings.chains is not None
    assert settings.burn_in is not None
    left = _SAMPLING_SHARE * (settings.budget - pace.spent)
    chains = settings.chains
    while True:
        of_a_chain = left / _blocks(settings, chains)
        draws = floor((of_a_chain - settings.burn_in * pace.step) / _draw(settings, pace))
        if draws >= least:
            return chains, min(draws, MOST_DRAWS)
        if chains <= _FEWEST_CHAINS:
            break
        chains = max(_FEWEST_CHAINS, chains // 2)
    needed = _sampling_seconds(settings, pace, chains, least)
    whole = 1.1 * (needed / _SAMPLING_SHARE + pace.spent)
    raise TooSmallBudget(
        f"a budget of {settings.budget:,.1f} s is too small to converge: {settings.burn_in} steps "
        f"of burn-in and {least} draws of {chains} chains take {needed:,.1f} s, at {pace.step:.3g} "
        f"s a step of {settings.block_size} chains, and calibration took {pace.spent:,.1f} s. Give "
        f"budget='{ceil(whole)}s', raise gamma, which shortens both, or use a faster device.",
        pace=pace,
        needed=whole,
    )


def _blocks(settings: Settings, chains: int) -> float:
    """Blocks in units of a full one: a small one takes its share of the time."""
    assert settings.block_size is not None
    return (
        ceil(chains / settings.block_size)
        if chains > settings.block_size
        else (chains / settings.block_size)
    )


def _draw(settings: Settings, pace: Pace) -> float:
    assert settings.thin is not None
    return settings.thin * pace.step + pace.record


def _sampling_seconds(settings: Settings, pace: Pace, chains: int, draws: int) -> float:
    assert settings.burn_in is not None
    one = settings.burn_in * pace.step + draws * _draw(settings, pace)
    return _blocks(settings, chains) * one
