"""Choose one nbeta and one gamma for all checkpoints: trajectories of others would be artefacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

from bif.calibration.calibrate import calibrate
from bif.calibration.solving import calibrate_solver
from bif.problem.problem import Problem
from bif.problem.series import Stage, stage_problem
from bif.sampling.choices import Choices
from bif.sampling.settings import Settings

MOST_CALIBRATED = 8
"""Checkpoints that are looked at, first and last among them; the others lie between."""
_DRAWS = 200
"""Draws of each chain, where neither they nor a reliability or a budget are asked for."""


def common_settings(
    problem: Problem,
    stages: Sequence[Stage],
    requested: Settings,
    *,
    tell: Callable[[list[str]], None] | None = None,
) -> tuple[Settings, tuple[str, ...]]:
    """Return settings with which every checkpoint is run, and the reasons.

    nbeta is what the last checkpoint gets by default; gamma the largest that any of the checkpoints
    needs at it, so that the posterior is held everywhere.  Chains get the smallest step and the
    longest burn-in and thinning of any.

    Args:
        problem: What is attributed.
        stages: Checkpoints, in order.
        requested: With an estimator.
        tell: Gets every line of explanation as it comes.
    """
    choices = Choices(tell)
    looked_at = _spread(stages)
    solves, s = requested.estimator == "response", requested
    if not solves and (s.draws, s.reliability, s.budget) == (None, None, None):
        s = replace(s, draws=_DRAWS)

    def complete(stage: Stage, asked: Settings) -> Settings:
        there = stage_problem(problem, stage)
        if solves:
            return calibrate_solver(there.with_plain_losses(), asked).settings
        return calibrate(there, asked).settings

    if s.nbeta is None:
        s = replace(s, nbeta=complete(stages[-1], s).nbeta, retrained_from=None)
        choices.choose("nbeta", f"{s.nbeta:g}", f"what {stages[-1].name} gets by default")
    if s.gamma is None:
        found = {stage.name: complete(stage, s).gamma or 0.0 for stage in looked_at}
        at = max(found, key=lambda name: found[name])
        s = replace(s, gamma=found[at])
        choices.choose(
            "gamma", f"{found[at]:.4g}",
            f"the largest that any of {len(looked_at)} of the {len(stages)} checkpoints needs, "
            f"that of {at}; the smallest is {min(found.values()):.4g}",
        )  # fmt: skip
    if not solves:
        asked = replace(s, mass="identity")
        calibrated = [calibrate(stage_problem(problem, stage), asked) for stage in looked_at]
        runs = [one.settings for one in calibrated]
        for stage, one in zip(looked_at, calibrated, strict=True):
            for warning in one.warnings:
                choices.warn(f"{stage.name}: {warning}")
        step = min(run.step_size for run in runs)
        waits = {
            name: ceil(max(getattr(run, name) * run.step_size for run in runs) / step)
            for name in ("burn_in", "thin")
        }
        first = runs[0]
        s = replace(
            s, step_size=step, friction=first.friction, mass="identity", draws=first.draws,
            chains=first.chains, reliability=None, budget=None, **waits,
        )  # fmt: skip
        choices.choose(
            "step_size, burn_in, thin",
            f"{step:.3g}, {s.burn_in}, {s.thin}",
            "the smallest step, and the longest times, of the checkpoints that were looked at",
        )
    return s, tuple(str(choice) for choice in choices)


def _spread(stages: Sequence[Stage]) -> list[Stage]:
    """Return at most `MOST_CALIBRATED` of the checkpoints, the first and the last among them."""
    count = min(MOST_CALIBRATED, len(stages))
    places = {round(k * (len(stages) - 1) / max(1, count - 1)) for k in range(count)}
    return [stages[place] for place in sorted(places)]
