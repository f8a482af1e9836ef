"""Judge the traces: the figures of a run, its gates, and whether it is trusted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bif.calibration.remedies import Remedies
from bif.estimate.diagnostics import reliability
from bif.estimate.independence import independence, significant_pairs
from bif.estimate.stationarity import drift
from bif.estimate.traces import LossTraces
from bif.runs.gates import Gate, gates
from bif.runs.records import Summary
from bif.sampling.sampler_checks import Checks

if TYPE_CHECKING:
    import xarray as xr

_MARGIN = 1.2
"""Factor on the draws for a reliability, which is known from one run only."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a run, with its gates and figures.

    Attributes:
        gates: All gates, passed or failed.
        figures: Figures behind the gates, for the summary.
        warnings: Remarks on weaknesses that no gate judges.
    """

    gates: tuple[Gate, ...]
    figures: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Return whether no gate failed."""
        return not any(gate.failed for gate in self.gates)

    @property
    def reasons(self) -> list[str]:
        """Return the warnings of the gates that failed."""
        return [gate.as_warning for gate in self.gates if gate.failed]


def judge(
    traces: LossTraces,
    figures: Summary,
    *,
    checks: Checks | None = None,
    diverged: int = 0,
    fix: Remedies | None = None,
) -> Judgement:
    """Hold a run against the gates.

    Args:
        traces: Traces of the surviving chains.
        figures: Figures from `figures_of`.
        checks: Checks of the sampler, where they were made.
        diverged: Chains that were left out.
        fix: Remedies in numbers.
    """
    moving, together, pairs = drift(traces), independence(traces), significant_pairs(traces)
    found: dict[str, float] = {
        "drift_removed": moving.removed,
        "drift_common": moving.common,
        "drift_t": moving.common_t,
        "chains_shared_variance": together.shared,
        "chains_most_alike": together.alike,
        "significant_share": pairs.share,
        "significant_share_null": pairs.null,
    }
    warnings = []
    if checks is not None:
        found |= asdict(checks)
        if checks.center_gradient > 1:
            warnings.append(
                f"the gradient of U at w* is {checks.center_gradient**0.5:.2g} times its "
                "sampling noise: the trained weights are no minimum of U. If weight decay or "
                "weights of items were other than the settings say, give these; if training "
                "stopped early, the chains lean downhill"
            )
        if math.isnan(checks.heat):
            warnings.append("there was no room to measure how much gradient noise widens the draws")
    listed = gates(
        figures, moving=moving, together=together, checks=checks, diverged=diverged,
        fix=fix or Remedies(),
    )  # fmt: skip
    return Judgement(tuple(listed), found, tuple(warnings))


def figures_of(
    traces: LossTraces, diagnostics: xr.Dataset, *, thin: int, seconds: float
) -> Summary:
    """Return the figures of a run, without a verdict yet.

    Args:
        traces: Traces of the surviving chains.
        diagnostics: Diagnostics from `diagnose`.
        thin: Steps from one draw to the next.
        seconds: Seconds of the whole run.
    """
    names = ("rhat", "train_rhat", "query_rhat")
    rhat = np.concatenate([diagnostics[name].values for name in names])
    ess_median = _or_nan(np.nanmedian, diagnostics["ess"].values)
    return Summary(
        draws=traces.total_draws,
        chains=traces.num_chains,
        seconds=seconds,
        draws_per_second=traces.total_draws / seconds,
        ess_median=ess_median,
        autocorrelation_steps=thin * traces.total_draws / ess_median,
        rhat_max=_or_nan(np.nanmax, rhat),
        reliability=reliability(traces),
    )


def short_of(target: float | None, found: float, fix: Remedies) -> list[str]:
    """Return a warning where the reliability aimed at was not reached, with the draws it needs."""
    if target is None or not found < target:
        return []
    share = target * (1 - found) / ((1 - target) * found) if found > 0 else math.inf
    needed = f": {fix.more_draws(_MARGIN * share)}" if share < 1e6 else ""
    return [f"reliability is {found:.4g}, below the {target:g} that was aimed at{needed}"]


def _or_nan(function: Any, values: np.ndarray) -> float:
    return float(function(values)) if np.isfinite(values).any() else float("nan")
