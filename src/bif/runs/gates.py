"""Judge a run's numbers by gates, each with its figure, its reason and its remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bif.calibration.remedies import Remedies, alternatives
from bif.estimate.independence import Independence
from bif.estimate.response import Ratio
from bif.estimate.stationarity import Drift
from bif.sampling.sampler_checks import HEAT, Checks

RHAT = 1.05
"""Limit on R-hat."""
REMOVED = 0.3
"""Limit on the share of the covariances that a straight line through every chain takes along."""
COMMON = 0.05
"""Limit on the share of the losses' variance in a drift that all chains share."""
COMMON_T = 4.0
"""That drift in standard errors below which it may be chance and does not count."""
SHARED = 1.5
"""Limit on the variance of the chains' mean trace, in units of that of independent chains."""
TWINS = 0.99
"""Limit on the correlation of two chains."""
STEP_UNDERDAMPED = 0.6
"""Limit on the step, as a share of the largest stable one."""
STEP_OVERDAMPED = 0.03
"""The same limit for an overdamped rule, whose variances are too large by that share."""
IDENTITY = 0.1
"""Limit on the departure of an identity from 1, and on the noise with which it is known."""
RANDOMNESS = 1e-3
"""Limit on the change of an item's loss from one evaluation to the next."""
DIVERGED = 0.1
"""Limit on the share of chains that diverged."""
SLOPE = 0.2
"""Limit on the departure of the slope on responses from 1."""
_ERRORS = 4.0
"""Standard errors within which a departure may be chance."""
_MOST = 4.0
"""Divisor of a step at most, where its bias goes with the square."""
_GENERAL = Remedies()
"""Remedies in general words, of a run whose settings are not known."""
_BIASES = ("step", "virial", "dilation", "temperature")
"""Gates that fail where the sampler is not at the posterior's law."""


@dataclass(frozen=True)
class Gate:
    """One condition on a run.

    Attributes:
        name: Name of the gate in tables.
        value: The figure; NaN where it is not defined, which fails.
        limit: Limit that the figure may not exceed.
        failed: Whether the figure exceeds it.
        reason: What is wrong and what to change, where the gate failed.
    """

    name: str
    value: float
    limit: float
    failed: bool
    reason: str

    @property
    def as_warning(self) -> str:
        """Return the line for a reader who should not trust the run."""
        return f"not trusted, {self.name}: {self.reason}"

    def as_dict(self) -> dict[str, object]:
        """Return the gate's entry of the manifest."""
        return {"name": self.name, "value": self.value, "limit": self.limit,
                "failed": self.failed, "reason": self.reason}  # fmt: skip


def gates(
    figures: Mapping[str, float | int],
    *,
    moving: Drift,
    together: Independence,
    checks: Checks | None = None,
    diverged: int = 0,
    fix: Remedies = _GENERAL,
) -> list[Gate]:
    """Return all gates of a run.  They judge the chains, never the scores.

    Args:
        figures: `rhat_max`, `ess_median`, `chains`, `draws`, `reliability`.
        moving: Drift of the traces.
        together: Measures of what chains have in common.
        checks: Checks of the sampler; without them their gates are left out.
        diverged: Chains that were left out.
        fix: Remedies in numbers; in general words without.
    """
    found = [
        *_of_stationarity(figures, moving, fix),
        *_of_independence(figures, together, fix),
        _of_divergence(int(figures["chains"]), diverged, fix),
    ]
    if "reliability" in figures:
        found.append(_agreement(float(figures["reliability"]), fix))
    if fix.settings is not None and (bias := fix.settings.traits.bias) is not None:
        found.append(Gate("sampler", math.nan, 0.0, True, f"{fix.settings.sampler} {bias}"))
    unsettled = any(gate.failed for gate in found if gate.name in ("mixing", "drift"))
    sampled = [] if checks is None else _of_the_sampler(checks, fix, unsettled=unsettled)
    biased = any(gate.failed for gate in sampled if gate.name in _BIASES) and not unsettled
    return [*found, _of_outliers(moving, fix, biased=biased), *sampled]


def _of_stationarity(
    figures: Mapping[str, float | int], moving: Drift, fix: Remedies
) -> list[Gate]:
    """Return the gates of mixing and drift."""
    rhat = float(figures["rhat_max"])
    return [
        _gate(
            "mixing",
            rhat,
            RHAT,
            "R-hat is {value:.3f} for some items' losses or queries: the chains have not mixed, "
            f"and drift looks like influence. {_for_longer_chains(_excess(rhat), fix)}",
            "R-hat is not defined: no loss moves, or chains have fewer than 4 draws. Look at the "
            f"loss, or {fix.more_draws()}",
        ),
        _gate(
            "drift",
            moving.common if abs(moving.common_t) > COMMON_T else 0.0,
            COMMON,
            "a drift that all chains share holds {value:.0%} of the losses' variance: they have "
            "not levelled off, and items that drift alike look mutually helpful. "
            f"{alternatives(fix.longer_burn_in(), fix.tighter_ball())}",
        ),
        _gate(
            "detrending",
            moving.removed,
            REMOVED,
            "taking a straight line from every chain takes {value:.0%} of the covariances along: "
            "the chains are too short for how slowly they move. "
            f"{_for_longer_chains(moving.removed / REMOVED, fix)}",
            "the share of the covariances that lies in straight lines is not defined: no loss or "
            "no query moves. Look at the loss",
        ),
    ]


def _of_independence(
    figures: Mapping[str, float | int], together: Independence, fix: Remedies
) -> list[Gate]:
    """Return the gates of what chains have in common."""
    chains, ess = int(figures["chains"]), float(figures["ess_median"])
    # Independent moments of a chain: with few of them a ratio of variances is rough.
    moments = ess / chains if ess > 0 else math.nan
    rough = _ERRORS * math.sqrt(2 / moments) if moments > 0 else 0.0
    return [
        _gate(
            "independence",
            together.shared,
            SHARED + rough,
            "chains move together: their mean trace varies {value:.2g} times as much as that of "
            "independent chains. They share mini-batches or random numbers, or still relax from "
            f"their start: give each chain its own, or {fix.longer_burn_in()}",
        ),
        _gate(
            "twins",
            together.alike,
            TWINS,
            f"chains {together.twins[0]} and {together.twins[1]} are the same (correlation "
            "{value:.3f}): one of them counts for nothing. Give every run a seed of its own",
        ),
    ]


def _of_divergence(chains: int, diverged: int, fix: Remedies) -> Gate:
    """Return the gate of the chains that were left out."""
    return _gate(
        "divergence",
        diverged / (chains + diverged) if chains + diverged else 0.0,
        DIVERGED,
        f"{diverged} chains diverged, {{value:.0%}} of all: those that are left are a "
        f"selection. {alternatives(fix.smaller_step())}",
    )


def _of_outliers(moving: Drift, fix: Remedies, *, biased: bool) -> Gate:
    """Return the gate of chains apart from the rest.

    Args:
        moving: Drift of the traces.
        fix: Remedies.
        biased: Whether chains that have settled fail a gate of the sampler's law.
    """
    mended = [fix.longer_chains(), fix.tighter_ball()]
    if biased:
        mended = [fix.all_items()] if fix.is_noisy else [fix.smaller_step()]
    return _gate(
        "outliers",
        float(len(moving.outliers)),
        0.0,
        f"chains {list(moving.outliers)} have another level or slope than the rest: they drift "
        f"or sit in another basin. {alternatives(*mended)}",
    )


def _agreement(reliability: float, fix: Remedies) -> Gate:
    """Return the gate of reliability: scores on which two halves disagree are noise."""
    reason = ""
    if math.isnan(reliability):
        reason = "it is not defined: it takes at least three train items whose losses move"
    elif reliability <= 0:
        reason = (
            f"two halves of the run do not agree on the scores ({reliability:.2f}): they are "
            f"noise. {alternatives(fix.more_draws(), fix.tighter_ball())}"
        )
    return Gate("reliability", reliability, 0.0, bool(reason), reason)


def _of_the_sampler(checks: Checks, fix: Remedies, *, unsettled: bool) -> list[Gate]:
    """Return the gates of the sampler's law; figures that do not apply have none."""
    underdamped = not math.isnan(checks.kinetic)
    found = [] if math.isnan(checks.step_share) else [_of_the_step(checks, fix, underdamped)]
    found += _identity(
        "virial",
        checks.virial,
        checks.virial_error,
        f"(w - w*)·∇U is {checks.virial:.3g} a weight, where the posterior has 1: the draws are "
        "not from it",
        fix,
        unsettled=unsettled,
    )
    if not math.isnan(checks.dilation):
        found.append(_of_dilation(checks, fix))
    if underdamped:
        found += _identity(
            "temperature",
            checks.kinetic,
            checks.kinetic_error,
            f"the kinetic temperature is {checks.kinetic:.3g}, not 1: gradient noise or the step "
            "heats the chains",
            fix,
            unsettled=False,
        )
    if not math.isnan(checks.heat):
        found.append(
            _gate(
                "gradient noise",
                checks.heat,
                HEAT,
                "gradient noise widens the draws by {value:.0%} in its worst direction: they are "
                f"too hot. {alternatives(*_for_less_noise(checks.heat / HEAT, fix))}",
            )
        )
    return [*found, _of_randomness(checks)]


def _of_the_step(checks: Checks, fix: Remedies, underdamped: bool) -> Gate:
    limit = STEP_UNDERDAMPED if underdamped else STEP_OVERDAMPED
    return _gate(
        "step",
        checks.step_share,
        limit,
        f"the step is too large: the curvature of U reaches {checks.curvature:.4g} along "
        f"the chains, where the step is {{value:.0%}} of the way to the edge of stability. "
        f"{alternatives(_step_for(checks.step_share / limit, fix))}",
    )


def _of_dilation(checks: Checks, fix: Remedies) -> Gate:
    # A ratio of second moments, far noisier than the virial where many weights hardly move the
    # loss: its noise has a share.
    limit, away = IDENTITY + 3 * _or_zero(checks.dilation_error), abs(checks.dilation - 1)
    return _gate(
        "dilation",
        away,
        limit,
        f"the mean loss varies {checks.dilation:.3g} times as much with (w - w*)·∇U as "
        "under the posterior: the step biases the draws. "
        f"{alternatives(_step_for(away / IDENTITY, fix))}",
    )


def _of_randomness(checks: Checks) -> Gate:
    return _gate(
        "randomness",
        checks.randomness,
        RANDOMNESS,
        "an item's loss changes by {value:.2g} from one evaluation to the next: dropout or "
        "another random layer is on, and its noise enters the covariances. Switch it off",
        "whether losses are drawn anew at each evaluation could not be measured",
    )


def _identity(
    name: str, value: float, error: float, what: str, fix: Remedies, *, unsettled: bool
) -> list[Gate]:
    """Return the gate of a ratio that is 1 under the posterior; one too noisy to tell fails.

    Args:
        what: Words for what is wrong where the ratio is not 1.
        unsettled: Whether the chains may still be on their way from w*, where it is too small.
    """
    away = abs(value - 1)
    if away <= IDENTITY and not error > IDENTITY:
        return [Gate(name, away, IDENTITY, False, "")]
    if error > max(away / 3, IDENTITY / 3):
        # So many draws that the limit is two and a half errors.
        times = max(4.0, (2.5 * error / IDENTITY) ** 2)
        undecided = (
            f"its figure, {value:.3g} ± {error:.2g}, is too rough to tell whether the draws are "
            f"from the posterior. {alternatives(fix.longer_chains(times))}"
        )
        return [Gate(name, away, IDENTITY, True, undecided)]
    if unsettled and value < 1:
        mended = [fix.longer_chains()]
    elif fix.is_noisy:
        mended = _for_less_noise(away / IDENTITY, fix)
    else:
        mended = [_step_for(away / IDENTITY, fix)]
    return [Gate(name, away, IDENTITY, True, f"{what}. {alternatives(*mended)}")]


def cross_gates(half_step: Ratio, response: Ratio, fix: Remedies = _GENERAL) -> list[Gate]:
    """Return the gates of what further chains found.

    Args:
        half_step: Variance of the losses over that at half the step.
        response: Slope of the scores on responses.
        fix: Remedies in numbers; in general words without.
    """
    excess, slope = abs(half_step.value - 1), abs(response.value - 1)
    noise = fix.all_items() if fix.is_noisy else None
    return [
        _gate(
            "half step",
            excess,
            max(IDENTITY, _ERRORS * _or_zero(half_step.standard_error)),
            f"the losses vary {half_step.value:.3g} times as much as at half the step: the step "
            f"biases the draws. {alternatives(_step_for(2 * excess / IDENTITY, fix))}",
        ),
        _gate(
            "response",
            slope,
            max(SLOPE, _ERRORS * _or_zero(response.standard_error)),
            f"the scores are {response.value:.3g} times those of the response estimator, which "
            "neither the step nor gradient noise biases. "
            f"{alternatives(noise, _step_for(slope / SLOPE, fix))}",
        ),
    ]


def _excess(rhat: float) -> float:
    """Return by which factor `R² - 1`, which falls as 1 / length, is too large."""
    return (rhat**2 - 1) / (RHAT**2 - 1)


def _for_longer_chains(excess: float, fix: Remedies) -> str:
    """Return remedies where a share that falls as 1 / length is too large by a factor."""
    times = max(4.0, 2 * excess) if math.isfinite(excess) else 4.0
    return alternatives(fix.longer_chains(times), fix.tighter_ball(min(times, 16.0)))


def _step_for(excess: float, fix: Remedies) -> str:
    """Return a smaller step where its bias, linear or quadratic in it, is too large by a factor."""
    times = 1.5 * excess if math.isfinite(excess) else 1.0
    # Where chains leave for elsewhere, the size of the figure tells nothing more.
    most = _MOST if fix.is_underdamped else _MOST**2
    return fix.smaller_step(min(max(2.0, times**0.5 if fix.is_underdamped else times), most))


def _for_less_noise(excess: float, fix: Remedies) -> list[str | None]:
    """Return remedies where gradient noise is too large by a factor."""
    if not math.isfinite(excess):  # noise goes with the step and with 1 / batch_size
        return [fix.all_items()]
    times = max(2.0, 1.5 * excess)
    return [fix.all_items(), fix.larger_batches(times), fix.smaller_step(times)]


def _gate(name: str, value: float, limit: float, reason: str, undefined: str = "") -> Gate:
    """Return the gate of a figure that may not exceed its limit; an undefined one has failed."""
    if math.isnan(value):
        return Gate(name, value, limit, True, undefined or "its figure is not defined")
    failed = value > limit
    return Gate(name, value, limit, failed, reason.format(value=value) if failed else "")


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x
