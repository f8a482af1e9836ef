"""Gates: whether a run's numbers are believed, each with its figure, its reason and its remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bif.checks import Checks
from bif.estimate.independence import Independence
from bif.estimate.response import Ratio
from bif.estimate.stationarity import Drift

RHAT = 1.05
REMOVED, COMMON, COMMON_T = 0.3, 0.05, 4.0
SHARED, TWINS = 1.5, 0.99
STEP_UNDERDAMPED, STEP_OVERDAMPED = 0.9, 0.2
TEMPERATURE, HEAT, RANDOMNESS = 0.1, 0.25, 1e-3
DIVERGED, SLOPE = 0.1, 0.2
_ERRORS = 4.0


@dataclass(frozen=True)
class Gate:
    """One condition on a run.

    Attributes:
        name: In tables.
        value: The figure; NaN where it could not be measured, which passes.
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
) -> list[Gate]:
    """All gates of a run.  They judge the chains, never the scores.

    Args:
        figures: `rhat_max`, `ess_median`, `chains`, `draws`.
        moving: Drift of the traces.
        together: What chains have in common.
        checks: Of the sampler; without them those gates are left out.
        diverged: Chains that were left out.
    """
    chains, ess = int(figures["chains"]), float(figures["ess_median"])
    # Independent moments of a chain: with few of them a ratio of variances is rough.
    moments = ess / chains if ess > 0 else math.nan
    rough = _ERRORS * math.sqrt(2 / moments) if moments > 0 else 0.0
    found = [
        _gate(
            "mixing",
            float(figures["rhat_max"]),
            RHAT,
            "R-hat is {value:.3f} for some item losses: the chains have not mixed, and drift looks "
            "like influence. Raise burn_in and draws, or raise gamma",
        ),
        _gate(
            "drift",
            moving.common if abs(moving.common_t) > COMMON_T else 0.0,
            COMMON,
            "a drift that all chains share holds {value:.0%} of the losses' variance: they have "
            "not levelled off, and items that drift alike look mutually helpful. Raise burn_in, "
            "or raise gamma",
        ),
        _gate(
            "detrending",
            moving.removed,
            REMOVED,
            "taking a straight line from every chain takes {value:.0%} of the covariances along: "
            "the chains are too short for how slowly they move. Raise draws or thin, or raise "
            "gamma",
        ),
        _gate(
            "outliers",
            float(len(moving.outliers)),
            0.0,
            f"chains {list(moving.outliers)} have another level or slope than the rest: they drift "
            "or sit in another basin. Raise burn_in, lower step_size, or raise gamma",
        ),
        _gate(
            "independence",
            together.shared,
            SHARED + rough,
            "chains move together: their mean trace varies {value:.2g} times as much as that of "
            "independent chains. They share mini-batches or random numbers, or still relax from "
            "their start: give each chain its own, or raise burn_in",
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
            "selection. Lower step_size (try half) or raise gamma",
        ),
    ]
    return found + (_of_the_sampler(checks) if checks is not None else [])


def _of_the_sampler(checks: Checks) -> list[Gate]:
    underdamped = not math.isnan(checks.kinetic)
    return [
        _gate(
            "step",
            checks.step_share,
            STEP_UNDERDAMPED if underdamped else STEP_OVERDAMPED,
            f"the step is too large: the curvature of U reaches {checks.curvature:.4g} along the "
            "chains, where the step is {value:.0%} of the way to the edge of stability. Lower "
            "step_size (try half)",
        ),
        _gate(
            "virial",
            abs(checks.virial - 1),
            max(TEMPERATURE, _ERRORS * _or_zero(checks.virial_error)),
            f"(w - w*)·∇U is {checks.virial:.3g} a weight, where the posterior has 1: the draws "
            "are not from it. Lower step_size, use gradient='full' or larger batches, or raise "
            "burn_in",
        ),
        _gate(
            "temperature",
            abs(checks.kinetic - 1),
            max(TEMPERATURE, _ERRORS * _or_zero(checks.kinetic_error)),
            f"the kinetic temperature is {checks.kinetic:.3g}, not 1: gradient noise heats the "
            "chains. Use gradient='full' or 'control_variate', larger batches, or more friction",
        ),
        _gate(
            "gradient noise",
            checks.heat,
            HEAT,
            "gradient noise widens the draws by {value:.0%} in its worst direction: they are too "
            "hot. Use gradient='full' or 'control_variate', larger batches, a smaller step, or "
            "lower nbeta",
        ),
        _gate(
            "randomness",
            checks.randomness,
            RANDOMNESS,
            "an item's loss changes by {value:.2g} from one evaluation to the next: dropout or "
            "another random layer is on, and its noise enters the covariances. Switch it off",
        ),
    ]


def cross_gates(half_step: Ratio, response: Ratio) -> list[Gate]:
    """Gates of what further chains found.

    Args:
        half_step: Variance of the losses over that at half the step.
        response: Slope of the scores on responses.
    """
    return [
        _gate(
            "half step",
            abs(half_step.value - 1),
            max(TEMPERATURE, _ERRORS * _or_zero(half_step.standard_error)),
            f"the losses vary {half_step.value:.3g} times as much as at half the step: the step "
            "biases the draws. Lower step_size (try half)",
        ),
        _gate(
            "response",
            abs(response.value - 1),
            max(SLOPE, _ERRORS * _or_zero(response.standard_error)),
            f"the scores are {response.value:.3g} times those of the response estimator, which "
            "neither the step nor gradient noise biases. Lower step_size, or use gradient='full'",
        ),
    ]


def _gate(name: str, value: float, limit: float, reason: str) -> Gate:
    failed = value > limit
    return Gate(name, value, limit, failed, reason.format(value=value) if failed else "")


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x
