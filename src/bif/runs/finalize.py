"""Make a run of what has been recorded: scores, diagnostics, figures, warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from bif.results.influence import Influence
from bif.results.top_influence import top_k_dataset
from bif.runs.controls import controls
from bif.runs.item_metadata import describe_items, score_axes
from bif.runs.linear_part import with_linear_part
from bif.runs.recording import Recording
from bif.runs.records import Manifest
from bif.runs.retention import subset_of
from bif.runs.run import Run
from bif.runs.summary import figures_of, judge, short_of

if TYPE_CHECKING:
    import xarray as xr


def conclude(
    calibration: Calibration,
    recording: Recording,
    *,
    top: int | None,
    identity: Mapping[str, Any],
    started: float,
    forecast: Sequence[str],
) -> Run:
    """Make a run of what has been recorded: scores, diagnostics, figures, gates.

    Args:
        calibration: Complete settings and why they were chosen.
        recording: Ended.
        top: Number of scores of every row that are kept either way, or None for all.
        identity: The run's identity, as it was before the sampling.
        started: Start by `time.perf_counter`, as if there had been no interruption.
        forecast: Forecast of memory and disk, in words.

    Raises:
        RuntimeError: Fewer than two chains survive.
        KeyboardInterrupt: It was stopped before there was anything to estimate from.
    """
    engine, settings = recording.context.engine, calibration.settings
    traces = recording.traces()
    fix = Remedies.of(settings, identity, engine.problem.num_train)
    warnings = _warnings(recording, calibration, fix)
    if traces.num_chains < 2:
        raise _too_few_chains(recording, calibration, warnings)
    dataset = describe_items(
        _scores(recording, traces, settings.nbeta, top), engine.problem, engine.observer
    ).assign_attrs(gamma=settings.gamma, complete=int(not recording.interrupted))
    anchored: dict[str, Any] = {}
    if recording.context.anchoring is not None:
        dataset, anchored, missed = with_linear_part(dataset, recording, traces)
        warnings += missed
    if settings.controls:
        found, missing = controls(engine, traces)
        warnings += missing
        axes = ("observable", "query", "train")
        dataset = dataset.assign({f"control_{name}": (axes, x) for name, x in found.items()})
    center = engine.observer.train_center.double()
    if recording.context.keep == "sums":
        center = center[subset_of(engine.panels).train]
    diagnostics = diagnose(
        traces, center_mean_loss=float(center.mean()), diverged=sorted(recording.diverged)
    )
    seconds = time.perf_counter() - started
    figures = figures_of(traces, diagnostics, thin=settings.thin, seconds=seconds)
    judged = judge(
        traces, figures, checks=recording.final_checks, diverged=len(recording.diverged), fix=fix
    )
    warnings += short_of(calibration.reliability, figures.reliability, fix)
    summary = replace(
        figures,
        trusted=judged.trusted,
        sampling_seconds=recording.seconds_before + recording.seconds,
        complete=not recording.interrupted,
        diverged_chains=sorted(recording.diverged),
        others={**judged.figures, **anchored},
    )
    manifest = Manifest(
        identity=dict(identity),
        top=top,
        settings=settings.as_dict(),
        explanations=list(calibration.explanations),
        forecast=list(forecast),
        gates=[gate.as_dict() for gate in judged.gates],
        warnings=[*judged.reasons, *judged.warnings, *calibration.warnings, *warnings],
        **_facts(recording),
    )
    scores = Influence(dataset, None if recording.context.keep == "sums" else traces)
    return Run(scores, traces, diagnostics, summary, manifest)


def _facts(recording: Recording) -> dict[str, Any]:
    """Return what a manifest says of a recording, whatever came out."""
    engine = recording.context.engine
    problem, center = engine.problem, engine.posterior.center
    return {
        "keep": recording.context.keep,
        "complete": not recording.interrupted,
        "versions": {"bif": __version__, **versions()},
        "hardware": hardware(engine.device),
        "device": str(engine.device),
        "num_train": problem.num_train,
        "num_queries": problem.num_queries,
        "num_moving_weights": engine.posterior.num_moving,
        "num_weights": sum(leaf.numel() for leaf in problem.parameters().values()),
        "weight_types": sorted({str(x.dtype).removeprefix("torch.") for x in center.values()}),
        "panels": asdict(engine.panels),
        "left_out": sorted({*recording.diverged, *recording.lost_to_others}),
    }


def _too_few_chains(
    recording: Recording, calibration: Calibration, warnings: Sequence[str]
) -> BaseException:
    """Return what to raise where fewer than two chains survive."""
    if recording.interrupted and recording.context.folder is not None:
        return KeyboardInterrupt(recording.progress_in_words())
    advice = "" if recording.diverged else " Let it run longer."
    why = "; ".join([*_run_off(calibration), *warnings])
    return RuntimeError(
        f"only {recording.traces().num_chains} of {calibration.settings.chains} chains survived, "
        f"and a covariance with errors needs two: {why}.{advice}"
    )


def _run_off(calibration: Calibration) -> list[str]:
    """Return the warning of calibration that chains run off, if it gave one."""
    return [warning for warning in calibration.warnings if warning.startswith(RUN_OFF)]


def _scores(recording: Recording, traces: LossTraces, nbeta: float, top: int | None) -> xr.Dataset:
    """Return all scores, or the strongest of every row."""
    device, axes = (
        recording.context.engine.device,
        score_axes(recording.context.engine.problem, nbeta),
    )
    if top is not None:
        return top_k_dataset(traces, top, axes, device=device)
    covariance = (
        recording.covariance()
        if recording.context.keep == "sums"
        else estimate_covariance(traces, device=device)
    )
    counts = {"num_chains": traces.num_chains, "num_draws": traces.total_draws}
    return influence_dataset(covariance, axes, **counts)


def _warnings(recording: Recording, calibration: Calibration, fix: Remedies) -> list[str]:
    """Return what a reader should know of the chains, beside calibration's own warnings."""
    settings, found = calibration.settings, list[str]()
    advice = "" if _run_off(calibration) else f": {fix.smaller_step()}"
    if recording.diverged:
        lost = sorted(recording.diverged)
        first = settings.burn_in + min(recording.diverged.values()) * settings.thin
        named = ", ".join(str(chain) for chain in lost[:8]) + (", …" if len(lost) > 8 else "")
        found.append(
            f"{len(lost)} of {settings.chains} chains ({named}) diverged, the first by step "
            f"{first} with step_size={settings.step_size:.4g}, and were left out{advice}"
        )
    if recording.lost_to_others:
        found.append(
            f"chains {recording.lost_to_others} were left out too: they shared their sums with one "
            "that diverged; --keep traces would have kept them"
        )
    if recording.interrupted:
        found.append(f"interrupted {recording.progress_in_words()}: the result is partial")
    return found + list(dict.fromkeys(recording.notes))
