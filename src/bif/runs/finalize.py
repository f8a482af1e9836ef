"""From what has been recorded to a run: scores, diagnostics, figures, warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bif import __version__
from bif.calibration.calibrate import Calibration
from bif.calibration.pilot import RUN_OFF
from bif.calibration.remedies import Remedies
from bif.estimate.covariance import estimate_covariance
from bif.estimate.dataset import influence_dataset
from bif.estimate.diagnostics import diagnose
from bif.estimate.traces import LossTraces
from bif.problem.provenance import hardware, versions
from bif.results.top_influence import influence_of, strongest_dataset
from bif.runs.controls import controls
from bif.runs.item_metadata import described
from bif.runs.recording import Recording
from bif.runs.retention import subset_of
from bif.runs.run import Run
from bif.runs.summary import figures_of, judge, short_of
from bif.sampling.settings import RunSettings

if TYPE_CHECKING:
    import xarray as xr


def concluded(
    calibration: Calibration,
    recording: Recording,
    *,
    top: int | None,
    identity: Mapping[str, Any],
    started: float,
    forecast: Sequence[str],
) -> Run:
    """Estimates from what has been recorded.

    Args:
        calibration: Complete settings and why they were chosen.
        recording: Ended.
        top: How many scores of every row are kept either way, or None for all.
        identity: What makes it this run, as it was before the sampling.
        started: By `time.perf_counter`, as if there had been no interruption.
        forecast: Of memory and disk, in words.

    Raises:
        RuntimeError: Fewer than two chains survive.
        KeyboardInterrupt: It was stopped before there was anything to estimate from.
    """
    engine, settings, keep = recording.engine, calibration.settings, recording.keep
    problem, traces = engine.problem, recording.traces()
    fix = Remedies.of(settings, identity, problem.num_train)
    known = [warning for warning in calibration.warnings if warning.startswith(RUN_OFF)]
    warnings = _warnings(recording, settings, "" if known else f": {fix.smaller_step()}")
    if traces.num_chains < 2:
        if recording.interrupted and recording.folder is not None:
            raise KeyboardInterrupt(recording.progress_in_words())
        advice = "" if recording.diverged else " Let it run longer."
        said = "; ".join([*known, *warnings])
        raise RuntimeError(
            f"only {traces.num_chains} of {settings.chains} chains survived, and a covariance "
            f"with errors needs two: {said}.{advice}"
        )
    dataset = described(_scores(recording, traces, settings.nbeta, top), engine).assign_attrs(
        gamma=settings.gamma, complete=int(not recording.interrupted)
    )
    if settings.controls:
        found, missing = controls(engine, traces)
        warnings += missing
        axes = ("observable", "query", "train")
        dataset = dataset.assign({f"control_{name}": (axes, x) for name, x in found.items()})
    center = engine.train_center.double()
    if keep == "sums":
        center = center[subset_of(engine.panels).train]
    diagnostics = diagnose(
        traces, center_mean_loss=float(center.mean()), diverged=sorted(recording.diverged)
    )
    figures = figures_of(
        traces, diagnostics, thin=settings.thin or 1, seconds=time.perf_counter() - started
    )
    judged = judge(
        traces, figures, checks=recording.looked_at, diverged=len(recording.diverged),
        fix=fix,
    )  # fmt: skip
    warnings += short_of(calibration.reliability, figures, fix)
    summary = {
        "trusted": judged.trusted,
        **figures,
        **judged.figures,
        "sampling_seconds": recording.seconds_before + recording.seconds,
        "complete": not recording.interrupted,
        "diverged_chains": sorted(recording.diverged),
    }
    manifest = {
        "identity": dict(identity),
        "keep": keep,
        "top": top,
        "settings": settings.as_dict(),
        "explanations": list(calibration.explanations),
        "forecast": list(forecast),
        "gates": [gate.as_dict() for gate in judged.gates],
        "warnings": [*judged.reasons, *judged.warnings, *calibration.warnings, *warnings],
        "complete": not recording.interrupted,
        "versions": {"bif": __version__, **versions()},
        "hardware": hardware(engine.device),
        "device": str(engine.device),
        "num_train": problem.num_train,
        "num_queries": problem.num_queries,
        "num_moving_weights": engine.posterior.num_moving,
        "num_weights": sum(leaf.numel() for leaf in problem.parameters().values()),
        "weight_types": sorted(
            {str(x.dtype).removeprefix("torch.") for x in engine.posterior.center.values()}
        ),
        "panels": asdict(engine.panels),
        "left_out": sorted({*recording.diverged, *recording.taken_along}),
    }
    scores = influence_of(dataset, None if keep == "sums" else traces)
    return Run(scores, traces, diagnostics, summary, manifest)


def _scores(recording: Recording, traces: LossTraces, nbeta: float, top: int | None) -> xr.Dataset:
    """All scores, or the strongest of every row."""
    engine = recording.engine
    problem = engine.problem
    observables: dict[str, str | None] = {o.name: o.better for o in problem.observables}
    if top is not None:
        return strongest_dataset(
            traces,
            top,
            nbeta=nbeta,
            observables=observables,
            query_ids=problem.query_ids,
            query_groups=problem.query_group_names,
            train_ids=problem.scored_ids,
            num_train=problem.num_train,
            device=engine.device,
        )
    covariance = (
        recording.covariance()
        if recording.keep == "sums"
        else estimate_covariance(traces, device=engine.device)
    )
    return influence_dataset(
        covariance,
        nbeta=nbeta,
        observables=observables,
        query_ids=problem.query_ids,
        query_groups=problem.query_group_names,
        train_ids=problem.scored_ids,
        num_train=problem.num_train,
        num_chains=traces.num_chains,
        num_draws=traces.total_draws,
    )


def _warnings(recording: Recording, settings: RunSettings, advice: str) -> list[str]:
    said = []
    if recording.diverged:
        lost = sorted(recording.diverged)
        first = settings.burn_in + min(recording.diverged.values()) * settings.thin
        named = ", ".join(str(chain) for chain in lost[:8]) + (", …" if len(lost) > 8 else "")
        said.append(
            f"{len(lost)} of {settings.chains} chains ({named}) diverged, the first by step "
            f"{first} with step_size={settings.step_size:.4g}, and were left out{advice}"
        )
    if recording.taken_along:
        said.append(
            f"chains {recording.taken_along} were left out too: they shared their sums with one "
            "that diverged; --keep traces would have kept them"
        )
    if recording.interrupted:
        said.append(f"interrupted {recording.progress_in_words()}: the result is partial")
    return said + list(dict.fromkeys(recording.notes))
