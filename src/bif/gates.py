"""Gates: whether a run's numbers are believed, each with its figure, its reason and its remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bif.checks import Checks
from bif.estimate.independence import Independence
from bif.estimate.response import Ratio
from bif.estimate.stationarity import Drift
from bif.settings import Settings

RHAT = 1.05
REMOVED, COMMON, COMMON_T = 0.3, 0.05, 4.0
SHARED, TWINS = 1.5, 0.99
STEP_UNDERDAMPED, STEP_OVERDAMPED = 0.6, 0.03
"""Shares of the largest stable step; an overdamped rule's variances are too large by the share."""
IDENTITY = 0.1
"""By how much an identity may be missed, and how well it must be known, whatever the noise."""
HEAT, RANDOMNESS = 0.25, 1e-3
DIVERGED, SLOPE = 0.1, 0.2
_ERRORS = 4.0
BIASED = ("rmsprop_sgld",)
"""Samplers that do not sample the posterior."""


@dataclass(frozen=True)
class Remedies:
    """What to change, in words that can be followed as they stand.

    Attributes:
        step: A smaller step.
        gamma: A tighter ball.
        draws: More draws.
        burn_in: A longer burn-in.
    """

    step: str
    gamma: str
    draws: str
    burn_in: str

    @classmethod
    def of(cls, s: Settings | None) -> Remedies:
        """For a run with these settings, complete; in general words without."""
        if s is None:
            return cls("lower step_size", "raise gamma", "raise draws", "raise burn_in")
        white = s.mass == "kronecker"
        step = "" if s.step_size is None else f"set step_size={s.step_size / 2:.3g}"
        words = f"{step} with mass='kronecker', in whose coordinates it is" if white else step
        return cls(
            words,
            "raise gamma" if s.gamma is None else f"raise gamma (gamma={4 * s.gamma:.3g})",
            "raise draws" if s.draws is None else f"raise draws (draws={4 * s.draws})",
            "raise burn_in"
            if s.burn_in is None
            else f"raise burn_in (burn_in={max(4 * s.burn_in, 100)})",
        )


@dataclass(frozen=True)
class Gate:
    """One condition on a run.

    Attributes:
        name: In tables.
        value: The figure; NaN where it is not defined, which fails.
        limit: What it may not exceed.
        failed: Whether it does.
        reason: What is wrong and what to change, where it failed.
    """

    name: str
    value: float
    limit: float
    failed: bool
    reason: str

    @property
    def said(self) -> str:
        """As a warning."""
        return f"not trusted, {self.name}: {self.reason}"

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        return {"name": self.name, "value": self.value, "limit": self.limit,
                "failed": self.failed, "reason": self.reason}  # fmt: skip


def gates(
    figures: Mapping[str, float | int],
    *,
    moving: Drift,
    together: Independence,
    checks: Checks | None = None,
    diverged: int = 0,
    settings: Settings | None = None,
) -> list[Gate]:
    """Return all gates of a run.  They judge the chains, never the scores.

    Args:
        figures: `rhat_max`, `ess_median`, `chains`, `draws`, `reliability`.
        moving: Drift of the traces.
        together: What chains have in common.
        checks: Of the sampler; without them those gates are left out.
        diverged: Chains that were left out.
        settings: Complete, for remedies in numbers.
    """
    fix = Remedies.of(settings)
    chains, ess = int(figures["chains"]), float(figures["ess_median"])
    # Independent moments of a chain: with few of them a ratio of variances is rough.
    moments = ess / chains if ess > 0 else math.nan
    rough = _ERRORS * math.sqrt(2 / moments) if moments > 0 else 0.0
    found = [
        _gate(
            "mixing",
            float(figures["rhat_max"]),
            RHAT,
            "R-hat is {value:.3f} for some items' losses or queries: the chains have not mixed, "
            f"and drift looks like influence. {_sentence(fix.draws)} and {fix.burn_in}, or "
            f"{fix.gamma}",
            "R-hat is not defined: no loss moves, or chains have fewer than 4 draws. Look at the "
            f"loss, or {fix.draws}",
        ),
        _gate(
            "drift",
            moving.common if abs(moving.common_t) > COMMON_T else 0.0,
            COMMON,
            "a drift that all chains share holds {value:.0%} of the losses' variance: they have "
            "not levelled off, and items that drift alike look mutually helpful. "
            f"{_sentence(fix.burn_in)}, or {fix.gamma}",
        ),
        _gate(
            "detrending",
            moving.removed,
            REMOVED,
            "taking a straight line from every chain takes {value:.0%} of the covariances along: "
            f"the chains are too short for how slowly they move. {_sentence(fix.draws)}, or "
            f"{fix.gamma}",
            "the share of the covariances that lies in straight lines is not defined: no loss or "
            "no query moves. Look at the loss",
        ),
        _gate(
            "outliers",
            float(len(moving.outliers)),
            0.0,
            f"chains {list(moving.outliers)} have another level or slope than the rest: they drift "
            f"or sit in another basin. {_sentence(fix.burn_in)}, or {fix.gamma}",
        ),
        _gate(
            "independence",
            together.shared,
            SHARED + rough,
            "chains move together: their mean trace varies {value:.2g} times as much as that of "
            "independent chains. They share mini-batches or random numbers, or still relax from "
            f"their start: give each chain its own, or {fix.burn_in}",
        ),
        _gate(
            "twins",
            together.alike,
            TWINS,
            f"chains {together.twins[0]} and {together.twins[1]} are the same (correlation "
            "{value:.3f}): one of them counts for nothing. Give every run a seed of its own",
        ),
        _gate(
            "divergence",
            diverged / (chains + diverged) if chains + diverged else 0.0,
            DIVERGED,
            f"{diverged} chains diverged, {{value:.0%}} of all: those that are left are a "
            f"selection. {_sentence(fix.step)}, and half of it again where that is not enough",
        ),
    ]
    if "reliability" in figures:
        found.append(_agreement(float(figures["reliability"]), fix))
    if settings is not None and settings.sampler in BIASED:
        reason = (
            f"sampler={settings.sampler!r} as published does not sample the posterior: its step "
            "follows the gradient and a correction is missing. Use sampler='rmsprop_sgld_frozen'"
        )
        found.append(Gate("sampler", math.nan, 0.0, True, reason))
    return found + (_of_the_sampler(checks, fix) if checks is not None else [])


def _agreement(reliability: float, fix: Remedies) -> Gate:
    """Scores on which two halves of the run do not agree at all are noise."""
    reason = ""
    if math.isnan(reliability):
        reason = "it is not defined: it takes at least three train items whose losses move"
    elif reliability <= 0:
        reason = (
            f"two halves of the run do not agree on the scores ({reliability:.2f}): they are "
            f"noise. {_sentence(fix.draws)}, or {fix.gamma}"
        )
    return Gate("reliability", reliability, 0.0, bool(reason), reason)


def _of_the_sampler(checks: Checks, fix: Remedies) -> list[Gate]:
    underdamped = not math.isnan(checks.kinetic)
    found = []
    if not math.isnan(checks.step_share):
        found.append(
            _gate(
                "step",
                checks.step_share,
                STEP_UNDERDAMPED if underdamped else STEP_OVERDAMPED,
                f"the step is too large: the curvature of U reaches {checks.curvature:.4g} along "
                f"the chains, where the step is {{value:.0%}} of the way to the edge of stability. "
                f"{_sentence(fix.step)}",
            )
        )
    found += _identity(
        "virial",
        checks.virial,
        checks.virial_error,
        f"(w - w*)·∇U is {checks.virial:.3g} a weight, where the posterior has 1: the draws are "
        f"not from it. {_sentence(fix.step)}, use gradient='full' or larger batches, or "
        f"{fix.burn_in}",
        fix,
    )
    if not math.isnan(checks.dilation):
        # A ratio of second moments, far noisier than the virial where many weights hardly move the
        # loss: its noise has a share.
        limit = IDENTITY + 3 * _or_zero(checks.dilation_error)
        found.append(
            _gate(
                "dilation",
                abs(checks.dilation - 1),
                limit,
                f"the mean loss varies {checks.dilation:.3g} times as much with (w - w*)·∇U as "
                f"under the posterior: the step biases the draws. {_sentence(fix.step)}",
            )
        )
    if underdamped:
        found += _identity(
            "temperature",
            checks.kinetic,
            checks.kinetic_error,
            f"the kinetic temperature is {checks.kinetic:.3g}, not 1: gradient noise or the step "
            f"heats the chains. Use gradient='full' or larger batches, or {fix.step}",
            fix,
        )
    if not math.isnan(checks.heat):
        found.append(
            _gate(
                "gradient noise",
                checks.heat,
                HEAT,
                "gradient noise widens the draws by {value:.0%} in its worst direction: they are "
                "too hot. Use gradient='full', larger batches, a smaller step, or lower nbeta",
            )
        )
    found.append(
        _gate(
            "randomness",
            checks.randomness,
            RANDOMNESS,
            "an item's loss changes by {value:.2g} from one evaluation to the next: dropout or "
            "another random layer is on, and its noise enters the covariances. Switch it off",
            "whether losses are drawn anew at each evaluation could not be measured",
        )
    )
    return found


def _identity(name: str, value: float, error: float, reason: str, fix: Remedies) -> list[Gate]:
    """A ratio that is 1 under the posterior; one too noisy to tell is a failure of its own."""
    away = abs(value - 1)
    if away <= IDENTITY and not error > IDENTITY:
        return [Gate(name, away, IDENTITY, False, "")]
    if away > IDENTITY:
        # Where the noise alone could do it, more draws tell; a smaller step may not be needed.
        also = f"; or {fix.draws}, for it is known to ±{error:.2g} only" if error > away / 3 else ""
        return [Gate(name, away, IDENTITY, True, reason + also)]
    undecided = (
        f"its figure, {value:.3g} ± {error:.2g}, is too rough to tell whether the draws are from "
        f"the posterior. {_sentence(fix.draws)}, or give more chains"
    )
    return [Gate(name, away, IDENTITY, True, undecided)]


def cross_gates(half_step: Ratio, response: Ratio, settings: Settings | None = None) -> list[Gate]:
    """Return the gates of what further chains found.

    Args:
        half_step: Variance of the losses over that at half the step.
        response: Slope of the scores on responses.
        settings: Of the run, complete, for remedies in numbers.
    """
    fix = Remedies.of(settings)
    return [
        _gate(
            "half step",
            abs(half_step.value - 1),
            max(IDENTITY, _ERRORS * _or_zero(half_step.standard_error)),
            f"the losses vary {half_step.value:.3g} times as much as at half the step: the step "
            f"biases the draws. {_sentence(fix.step)}",
        ),
        _gate(
            "response",
            abs(response.value - 1),
            max(SLOPE, _ERRORS * _or_zero(response.standard_error)),
            f"the scores are {response.value:.3g} times those of the response estimator, which "
            f"neither the step nor gradient noise biases. {_sentence(fix.step)}, or use "
            "gradient='full'",
        ),
    ]


def _gate(name: str, value: float, limit: float, reason: str, undefined: str = "") -> Gate:
    """A figure that may not exceed its limit; one that is not defined has failed."""
    if math.isnan(value):
        return Gate(name, value, limit, True, undefined or "its figure is not defined")
    failed = value > limit
    return Gate(name, value, limit, failed, reason.format(value=value) if failed else "")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x
