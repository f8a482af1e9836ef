"""Check a sampler by chains of their own: at half the step, and with the other estimator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bif import store
from bif.calibration.remedies import Remedies
from bif.estimate.covariance import estimate_covariance
from bif.estimate.response import Ratio, fluctuation_over_response
from bif.estimate.traces import LossTraces, chain_groups
from bif.linear_response.perturbation import pilot_queries
from bif.problem.identity import identity
from bif.problem.items import Items
from bif.problem.problem import UNNAMED, Problem
from bif.runs.attribute import attribute
from bif.runs.gates import Gate, cross_gates
from bif.runs.records import refuse_solved
from bif.runs.respond import respond
from bif.runs.run import Run, load
from bif.sampling.samplers import names_of
from bif.sampling.settings import RunSettings, Settings
from bif.store.signals import termination_raises

_CHAINS = 8
"""Chains of the run at half the step, at most."""
_GROUPS = 8
"""Groups of chains whose spread gives the error of a slope."""
_RESPONSE_RUNS = 2
"""Responses with seeds of their own, whose spread adds to that error."""


@dataclass(frozen=True)
class CrossChecks:
    """Two ratios from further chains, both 1 where a run's sampler samples the posterior.

    Attributes:
        half_step: Variance of the losses, summed over items, over that at half the step: above 1 by
            as much as the step is too large.
        response: Slope of the scores on those of the response estimator, for a few queries.
        seconds: Seconds that both took.
    """

    half_step: Ratio
    response: Ratio
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        """Return the ratios and their errors for a run's summary."""
        return {
            "half_step": self.half_step.value,
            "half_step_error": self.half_step.standard_error,
            "response_slope": self.response.value,
            "response_slope_error": self.response.standard_error,
        }


def cross_check(problem: Problem, run: Run) -> CrossChecks:
    """Sample once more at half the step, and score a few queries by their response.

    Costs about as much as the run itself.

    Args:
        problem: The run's own.
        run: A run with the traces of all items.

    Raises:
        ValueError: A run without such traces, of another problem, or by a sampler that adapts.
    """
    started = time.perf_counter()
    settings = _settings_of(problem, run)
    half = attribute(
        problem,
        replace(
            settings,
            step_size=0.5 * (settings.step_size or 0.0),
            burn_in=2 * (settings.burn_in or 0),
            thin=2 * (settings.thin or 1),
            chains=min(_CHAINS, settings.chains or _CHAINS),
            block_size=min(_CHAINS, settings.block_size or _CHAINS),
            seed=settings.seed + 1,
        ),
    )
    variances = [_variances(traces, problem.num_train) for traces in (run.traces, half.traces)]
    return CrossChecks(
        _ratio(*variances), _response_slope(problem, run, settings), time.perf_counter() - started
    )


def check_on_disk(folder: str | Path, problem: Problem) -> Run:
    """Cross-check a complete run on disk, and write the figures and gates into its results.

    Args:
        folder: The run's.
        problem: The run's own.

    Raises:
        FolderInUse: The folder holds a run of another problem, or has another writer.
        FileNotFoundError: There is no run.
        ValueError: As `cross_check`; a run that is not complete.
    """
    with termination_raises(), store.reopen_run(folder) as opened:
        if not opened.complete:
            raise ValueError(f"{folder} holds a run that is not complete: let it end first.")
        refuse_another(opened.manifest["identity"], problem, str(folder))
        run = load(folder)
        found = cross_check(problem, run)
        checked = with_gates(
            run,
            cross_gates(found.half_step, found.response, _remedies(problem, run)),
            found.figures,
        )
        checked.write(opened)
    return checked


def with_gates(run: Run, added: list[Gate], figures: Mapping[str, float]) -> Run:
    """Return the run with further gates and their figures; those of the same name are replaced."""
    names = {gate.name for gate in added}
    there = [Gate(**gate) for gate in run.manifest.gates]
    stale = {gate.as_warning for gate in there if gate.name in names}
    gates = [*(gate for gate in there if gate.name not in names), *added]
    warnings = [gate.as_warning for gate in added if gate.failed]
    warnings += [w for w in run.manifest.warnings if w not in stale]
    trusted = not any(gate.failed for gate in gates)
    return replace(
        run,
        summary=run.summary.with_entries(trusted=trusted, **figures),
        manifest=replace(run.manifest, gates=[gate.as_dict() for gate in gates], warnings=warnings),
    )


def _settings_of(problem: Problem, run: Run) -> RunSettings:
    problem.refuse_tokens("a cross-check")
    refuse_solved(run.manifest, "cross-checked: its residuals say how far it is solved")
    settings = RunSettings.from_dict(run.manifest.settings)
    if run.manifest.keep == "sums" or not run.traces.blocks:
        raise ValueError(
            "the run keeps sums: cross-checks need the traces of all items. Attribute with "
            "keep='traces'."
        )
    if settings.traits.adaptive:
        raise ValueError(
            f"the sampler is {settings.sampler!r}, whose step adapts: cross-checks are for "
            f"{names_of(lambda traits: not traits.adaptive)}."
        )
    ids = run.influence.dataset["train_id"].values.tolist()
    if ids != problem.scored_ids.tolist():
        raise ValueError("the run has other train items than the problem: pass the run's own.")
    return replace(settings, controls=False)


def _remedies(problem: Problem, run: Run) -> Remedies:
    identity = run.manifest.identity
    return Remedies.of(_settings_of(problem, run), identity, problem.num_train)


def refuse_another(then: Mapping[str, Any], problem: Problem, folder: str) -> None:
    """Raise unless a problem is the one that a run was asked for with.

    Raises:
        FolderInUse: It is another; names the first difference.
    """
    requested = Settings.from_dict(then["settings"]).as_dict()
    changed = store.differences(then, store.plain(identity(problem, requested)))
    if changed:
        raise store.FolderInUse(
            f"{folder} is of another problem, with another {store.in_words(changed[:1])}."
        )


def _variances(traces: LossTraces, num_train: int) -> Tensor:
    """Return the variance within each chain, summed over train items, `[C]`."""
    return torch.stack(
        [train[:, :num_train].double().var(dim=0).sum() for _, train, _ in traces.each_chain()]
    )


def _ratio(x: Tensor, y: Tensor) -> Ratio:
    """Return the ratio of two means, with the error that both have."""
    value = float(x.mean() / y.mean())
    relative = [float(v.std() / len(v) ** 0.5 / v.mean()) for v in (x, y)]
    return Ratio(value, value * (relative[0] ** 2 + relative[1] ** 2) ** 0.5)


def _response_slope(problem: Problem, run: Run, settings: Settings) -> Ratio:
    first = torch.as_tensor(run.influence.dataset["query_center"].values[0])
    group, chosen, columns = pilot_queries(list(problem.query_groups.values()), first)
    few = problem.asking({UNNAMED: Items(group.take(chosen))})
    responses = [
        torch.as_tensor(
            respond(few, settings.reopened(draws=None, chains=None, block_size=None,
                                 seed=settings.seed + 2 + r),
                    steps=(settings.draws or 0) * (settings.thin or 1)).scores
        )
        for r in range(_RESPONSE_RUNS)
    ]  # fmt: skip
    groups = []
    for places in chain_groups(run.traces, _GROUPS):
        part = LossTraces(tuple(run.traces.blocks[b].only(rows) for b, rows in places))
        few_columns = part.selected(
            train=np.arange(part.blocks[0].train.shape[2]), query=columns.numpy()
        )
        groups.append(-estimate_covariance(few_columns, num_groups=2).value.cpu())
    return fluctuation_over_response(torch.stack(groups), torch.stack(responses))
