"""Choose nbeta and gamma by how well short runs predict a few retrained networks.

Reliability cannot choose them: with gamma → ∞ a run is perfectly reliable, and its scores are the
gradient product.  Nor is a short run's LDS that of the run to come, since noise in the scores costs
less damped candidates more; so each LDS is forecast to the length of that run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bif.calibration.budget import short_traces
from bif.calibration.calibrate import DEFAULT_DRAWS, Calibration, calibrate
from bif.calibration.damping import SHARE
from bif.calibration.measured_mass import make_engine
from bif.calibration.temperature import untempered
from bif.calibration.tune_solver import tune_solver
from bif.estimate import estimate_covariance
from bif.estimate.correlation import correlation
from bif.estimate.traces import LossTraces
from bif.evaluate import lds, predict
from bif.evaluate.retraining import BankPart
from bif.problem.items import Items
from bif.problem.problem import UNNAMED, Problem
from bif.sampling.choices import Choice, Choices
from bif.sampling.settings import Settings, as_settings
from bif.types import Batch

NBETA_FACTOR = 4.0
"""Factor on nbeta from one candidate of the search to the next."""
DAMPING_FACTOR = 3.0
"""Factor on gamma/nbeta from one candidate to the next."""
MIN_SUBSETS = 8
"""Subsets of the tuning part at least: an LDS is a correlation over subsets."""
_CHAINS = 8
"""Chains of a pilot."""
_DRAWS = 60
"""Draws of each chain of a pilot."""
_MOST_DRAWS = 600
"""Draws of each chain of a pilot at most, where a budget has time for longer ones."""
_MOST_STEPS = 4
"""Candidates that are tried into one direction at most."""
_NOISE = 0.03
"""Part by which a forecast may be lower and the search still goes on: it may be noise."""
_FEWEST = 4
"""Chains of a pilot at least, where pilots take too much of a budget."""
_SHARE = 0.45
"""Part of a budget that all pilots may take together; the run to come needs the rest."""
_PILOT_SHARE = 0.06
"""Part of a budget that one pilot should take."""


@dataclass(frozen=True)
class Tried:
    """A candidate and how well its pilot predicts retraining.

    Attributes:
        nbeta: Inverse temperature times n.
        gamma: Precision of the Gaussian around w*.
        lds: LDS of the pilot's scores, mean over queries and observables.
        reliability: Agreement of the predictions of two halves of the chains, stepped up to all.
        forecast: LDS of a run of the length to come.
        seconds: Seconds of the pilot, calibration included.
    """

    nbeta: float
    gamma: float
    lds: float
    reliability: float
    forecast: float
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The settings with nbeta and gamma, what was tried, and what was chosen."""

    settings: Settings
    tried: tuple[Tried, ...]
    choices: tuple[Choice, ...]


def tune(
    problem: Problem,
    settings: Settings | None = None,
    *,
    part: BankPart,
    queries: Items | Batch,
) -> Tuned:
    """Choose the nbeta and gamma whose scores predict retraining best in a full-length run.

    The search goes uphill: nbeta by factors of 4, colder with gamma fixed or warmer with
    gamma/nbeta fixed, then gamma by factors of 3.  Networks retrained from scratch end further away
    than those from w*.  So for them it starts from a warm posterior, a fourth of the untempered
    nbeta, and else from a cold one, four times that.  The forecast is `lds · sqrt(R_k / R_1)`:
    noise in predictions of reliability R_1 lowers a correlation by `sqrt(R_1)`, and k times the
    draws have `R_k = k R_1 / (1 + (k - 1) R_1)`.

    Args:
        problem: Model, train items and observables; its queries play no part.
        settings: Settings of the run to come, with nbeta and gamma open.  If they say what networks
            are retrained from, it must be what the bank's are.  With a budget, at most 45 % of it
            goes into pilots; the run gets the rest.
        part: The tuning part of a bank: never what is reported.
        queries: The tuning queries that its outcomes are of.

    Returns:
        Settings for `attribute`.

    Raises:
        ValueError: nbeta or gamma given; networks retrained from elsewhere; a reported part, too
            few subsets, outcomes of other queries or items, or of none of the observables.

    Source: Spearman 1904, Brown 1910 for the reliability of longer tests.
    """
    started = time.perf_counter()
    settings = as_settings(settings)
    asked = problem.asking({UNNAMED: queries})
    _check(asked, settings, part)
    settings = replace(settings, retrained_from=None)
    if settings.estimator == "response":
        return _tune_solver(asked, settings, part)
    pilots = _Pilots(asked, settings, part)
    left = None if settings.budget is None else _SHARE * float(settings.budget)

    def may_go_on() -> bool:
        """Return whether one more pilot, a quarter longer than the last, still fits."""
        spent = time.perf_counter() - started
        return left is None or spent + 1.25 * pilots.tried[-1].seconds < left

    n, _ = untempered(problem)
    damping = pilots.default_damping(n)

    def at(step: int) -> Tried:
        """Try a colder posterior with the same gamma, or a warmer one in a wider ball."""
        return pilots.run(n * NBETA_FACTOR**step, damping * n * NBETA_FACTOR ** min(step, 0))

    outwards = -1 if part.target == "scratch" else 1
    start = _climb(lambda step: at(outwards * (1 + step)), may_go_on)
    best = _climb(
        lambda step: pilots.run(start.nbeta, start.gamma * DAMPING_FACTOR**step), may_go_on
    )
    choices = Choices()
    for p in pilots.tried:
        choices.remark(
            f"tried nbeta = {p.nbeta:g}, gamma = {p.gamma:.4g}: LDS {p.lds:.3f} on the tuning "
            f"part, forecast {p.forecast:.3f} ({p.seconds:.1f} s)"
        )
    choices.choose(
        "nbeta, gamma", f"{best.nbeta:g}, {best.gamma:.4g}", "the best forecast of "
        f"{len(pilots.tried)} candidates, by {part.num_networks} retrained networks and "
        f"{len(part.query_ids)} queries",
    )  # fmt: skip
    chosen = replace(settings, nbeta=best.nbeta, gamma=best.gamma)
    if settings.budget is not None:
        spent = time.perf_counter() - started
        chosen = replace(chosen, budget=max(float(settings.budget) - spent, 1e-3))
    return Tuned(chosen, tuple(pilots.tried), tuple(choices))


def _tune_solver(asked: Problem, settings: Settings, part: BankPart) -> Tuned:
    """Return the damping and the steps of a solve, with the dampings that were tried."""
    found = tune_solver(asked, settings, [part])
    nbeta = found.settings.nbeta or 1.0
    tried = (Tried(nbeta, nbeta * t.damping, t.lds, 1.0, t.lds, 0.0) for t in found.tried)
    return Tuned(found.settings, tuple(tried), found.choices)


def forecast(value: float, reliability: float, times: float) -> float:
    """Return the LDS at `times` as many draws, from that of predictions with a reliability."""
    reliability = min(max(reliability, 1e-3), 1.0)
    longer = times * reliability / (1 + (times - 1) * reliability)
    return value * (longer / reliability) ** 0.5


def _climb(run: Callable[[int], Tried], may_go_on: Callable[[], bool]) -> Tried:
    """Return the best candidate uphill from step 0: onwards and, without success, back."""
    best = run(0)
    for direction in (1, -1):
        climbed = False
        for step in range(1, 1 + _MOST_STEPS):
            if not may_go_on():
                break
            found = run(direction * step)
            if found.forecast < (1 - _NOISE) * best.forecast:
                break
            if found.forecast > best.forecast:
                best, climbed = found, True
        if climbed:
            break
    return best


class _Pilots:
    """Short runs with their forecasts; each pair of nbeta and gamma runs once."""

    def __init__(self, problem: Problem, settings: Settings, part: BankPart) -> None:
        self._problem, self._part = problem, part
        self._names = [o.name for o in problem.observables]
        self._outcomes = {n: part.outcomes[n] for n in self._names if n in part.outcomes}
        chains = min(_CHAINS, settings.chains or _CHAINS)
        self._plain = replace(
            settings, chains=chains, draws=_DRAWS, budget=None, reliability=None, compiled=False,
            mass=settings.mass or "identity",  # to measure one takes longer than a pilot
            block_size=None if settings.block_size is None else min(chains, settings.block_size),
        )  # fmt: skip
        self._settings = settings
        self.tried: list[Tried] = []
        self._found: dict[tuple[float, float], Tried] = {}
        self._curvatures: dict[tuple[float, float], float] = {}  # by nbeta and gamma

    def default_damping(self, nbeta: float) -> float:
        """Return the default ratio of gamma to nbeta, which depends on w* alone."""
        complete = calibrate(self._problem, replace(self._plain, nbeta=nbeta))
        gamma = complete.settings.gamma
        assert complete.curvature is not None
        self._curvatures[nbeta, gamma] = complete.curvature
        return max(gamma / nbeta, 1e-12 / SHARE)

    def run(self, nbeta: float, gamma: float) -> Tried:
        key = float(f"{nbeta:.6g}"), float(f"{gamma:.6g}")
        if key not in self._found:
            tried = self._run_pilot(*key)
            if not self.tried and self._lengthen(tried.seconds):
                tried = self._run_pilot(*key)
            self._spare(tried.seconds)
            self._found[key] = tried
            self.tried.append(tried)
        return self._found[key]

    def _run_pilot(self, nbeta: float, gamma: float) -> Tried:
        started = time.perf_counter()
        complete = self._calibrate(nbeta, gamma)
        # The start that half a burn-in leaves is small beside the pilot's noise.
        brief = replace(complete.settings, burn_in=complete.settings.burn_in // 2)
        engine = make_engine(self._problem, brief)
        sampled = time.perf_counter()
        traces = short_traces(engine, complete.settings.chains)
        ended = time.perf_counter()
        value, agreement = self._judge(traces)
        times = self._times(traces.total_draws, ended - sampled)
        return Tried(
            nbeta, gamma, value, agreement, forecast(value, agreement, times),
            time.perf_counter() - started,
        )  # fmt: skip

    def _calibrate(self, nbeta: float, gamma: float) -> Calibration:
        """Calibrate with the curvature that a posterior as wide met: measuring it takes long."""
        known = self._curvatures.items()
        wide = [found for (n, g), found in known if n <= nbeta and g <= gamma * (1 + 1e-5)]
        asked = replace(self._plain, nbeta=nbeta, gamma=gamma)
        complete = calibrate(self._problem, asked, curvature=max(wide, default=None))
        if not wide and complete.curvature is not None:
            self._curvatures[nbeta, gamma] = complete.curvature
        return complete

    def _lengthen(self, seconds: float) -> bool:
        """Lengthen pilots to their share of a budget; return whether this was needed."""
        if self._settings.budget is None or self._plain.draws is None:
            return False
        times = _PILOT_SHARE * float(self._settings.budget) / seconds
        draws = min(_MOST_DRAWS, int(times * self._plain.draws))
        if draws < 2 * self._plain.draws:
            return False
        self._plain = replace(self._plain, draws=draws)
        return True

    def _spare(self, seconds: float) -> None:
        """Take fewer chains from now on, where a pilot takes too much of a budget."""
        budget, chains = self._settings.budget, self._plain.chains or _CHAINS
        if budget is not None and seconds > _PILOT_SHARE * float(budget) and chains > _FEWEST:
            fewer = max(_FEWEST, chains // 2)
            self._plain = replace(self._plain, chains=fewer, block_size=None)

    def _times(self, draws: int, seconds: float) -> float:
        """Return how many times longer the run to come is."""
        s = self._settings
        if s.budget is not None:
            return max(1.0, (1 - _SHARE) * float(s.budget) / max(seconds, 1e-9))
        return max(1.0, (s.chains or 64) * (s.draws or DEFAULT_DRAWS) / draws)

    def _judge(self, traces: LossTraces) -> tuple[float, float]:
        """Return the mean LDS, and the reliability of the predictions."""
        halves = [self._scores(_every_other(traces, first)) for first in (0, 1)]
        values, agreements = [], []
        for name, outcomes in self._outcomes.items():
            a, b = (half[name] for half in halves)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                return 0.0, 1.0  # chains that diverged predict nothing
            whole = lds(0.5 * (a + b), self._part.masks, outcomes, num_bootstrap=1)
            values.append(whole.mean)
            agreements.append(_agreement(*(predict(x, self._part.masks) for x in (a, b))))
        agreement = max(float(np.mean(agreements)), 0.0)
        return float(np.mean(values)), 2 * agreement / (1 + agreement)

    def _scores(self, traces: LossTraces) -> dict[str, np.ndarray]:
        value = -estimate_covariance(traces, num_groups=2).value.cpu().numpy()
        shape = (len(self._names), self._problem.num_queries, -1)
        parts = value.reshape(shape)[..., : self._problem.num_train]
        return dict(zip(self._names, parts, strict=True))


def _every_other(traces: LossTraces, first: int) -> LossTraces:
    """Return every second chain, from the first or the second on."""
    blocks = [block.only(range(first, len(block.chains), 2)) for block in traces.blocks]
    return LossTraces(tuple(block for block in blocks if block.chains))


def _agreement(a_QM: np.ndarray, b_QM: np.ndarray) -> float:
    """Return the correlation of two halves' predictions over subsets, mean over queries."""
    return float(np.nan_to_num(correlation(a_QM, b_QM)).mean())


def _check(asked: Problem, settings: Settings, part: BankPart) -> None:
    part.required("tuning")
    if (settings.nbeta, settings.gamma) != (None, None):
        raise ValueError(
            f"nbeta is {settings.nbeta} and gamma {settings.gamma}: nothing is left to tune. Leave "
            "both open, or attribute with what is given."
        )
    if settings.retrained_from not in (None, part.target):
        raise ValueError(
            f"retrained_from is {settings.retrained_from!r}, but the bank's networks start from "
            f"{part.target!r}: leave it open, for the bank says so."
        )
    if len(part.masks) < MIN_SUBSETS:
        raise ValueError(
            f"the tuning part has {len(part.masks)} subsets: expected at least {MIN_SUBSETS}, and "
            "24 or more to tell candidates apart."
        )
    for what, expected, got in (
        ("train items", part.train_ids, asked.train.ids),
        ("queries", part.query_ids, asked.query_ids),
    ):
        if list(map(str, expected)) != list(map(str, got)):
            raise ValueError(
                f"the bank's tuning part is of other {what} ({len(expected)} of them, {len(got)} "
                "were passed): pass those that it was made with."
            )
    names = [observable.name for observable in asked.observables]
    if not set(names) & set(part.outcomes):
        raise ValueError(
            f"the bank has outcomes {list(part.outcomes)}, but the problem's observables are "
            f"{names}: expected at least one in common."
        )
