"""The composer: from a problem to traces to influence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bif import __version__, store
from bif.calibrate import Calibration, calibrate
from bif.estimate.diagnostics import diagnose, reliability
from bif.estimate.influence import estimate_influence
from bif.influence import Influence
from bif.manifest import identity
from bif.problem import Problem
from bif.progress import say
from bif.sampling import Sampling
from bif.settings import Settings
from bif.traces import LossTraces

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Run:
    """What a run leaves behind.

    Attributes:
        influence: The scores, with their errors.
        traces: The losses of all surviving chains at all draws.
        diagnostics: Mean-loss traces, reliability, effective sample size, R-hat.
        summary: The figures of `summary.json`.
        manifest: Settings, versions, fingerprints, choices and warnings, as in `run.json`.
    """

    influence: Influence
    traces: LossTraces
    diagnostics: xr.Dataset
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the run's folder, report included.

        Args:
            folder: Made if need be.
            overwrite: Replace a run that is in the folder; anything else is never replaced.
            extra: Further entries for `summary.json`.
        """
        from bif.report import render_report

        store.refuse_occupied(folder, overwrite=overwrite)
        summary = {**self.summary, **(extra or {})}
        report = render_report(
            self.influence.dataset,
            diagnostics=self.diagnostics,
            summary=summary,
            manifest=dict(self.manifest),
        )
        return store.write_run(
            folder,
            manifest=self.manifest,
            influence=self.influence.dataset,
            diagnostics=self.diagnostics,
            summary=summary,
            report=report,
        )

    def __repr__(self) -> str:
        s = self.summary
        return (
            f"{self.influence!r}\n{s['draws']} draws of {s['chains']} chains in "
            f"{s['seconds']:.1f} s; reliability {s['reliability']:.3f}, R-hat at most "
            f"{s['rhat_max']:.3f}, effective sample size {s['ess_median']:.0f} (median)"
            + "".join(f"\nwarning: {warning}" for warning in self.manifest["warnings"])
        )


def attribute(
    problem: Problem, settings: Settings | None = None, *, show_progress: bool = False
) -> Run:
    """Sample around the trained weights and estimate every query's influences.

    Ctrl-C ends the sampling and keeps what there is, marked as incomplete.

    Args:
        problem: Model, loss, items, queries and observables.
        settings: What to sample and how; the library chooses whatever is None.
        show_progress: Draw a progress bar on the terminal.

    Returns:
        The scores with their errors and everything that stands behind them.

    Raises:
        ValueError: Losses that are NaN or infinite at w*; settings that contradict each other.
        RuntimeError: Fewer than two chains survive.
    """
    started = time.perf_counter()
    requested = settings or Settings()
    calibration = calibrate(problem, requested)
    sampling = Sampling(problem, calibration.settings)
    if show_progress:
        say(calibration.explanations)
    sampling.record(show_progress=show_progress)
    return _finish(problem, requested, calibration, sampling, started)


def _finish(
    problem: Problem,
    requested: Settings,
    calibration: Calibration,
    sampling: Sampling,
    started: float,
) -> Run:
    traces, settings = sampling.traces(), calibration.settings
    warnings = _warnings(sampling, settings)
    if traces.num_chains < 2:
        advice = (
            f"Lower step_size (it was {settings.step_size:.4g}; try half), raise gamma, or lower "
            "nbeta."
            if sampling.diverged
            else "Let it run longer."
        )
        raise RuntimeError(
            f"only {traces.num_chains} of {settings.chains} chains survived, and a covariance "
            f"with errors needs two: {'; '.join(warnings)}. {advice}"
        )
    assert settings.nbeta is not None
    dataset = estimate_influence(
        traces,
        nbeta=settings.nbeta,
        observables={o.name: o.better for o in problem.observables},
        query_ids=problem.query_ids,
        query_groups=problem.query_group_names,
        train_ids=problem.train.ids,
        device=sampling.device,
    )
    dataset = _described(dataset, problem, sampling).assign_attrs(
        gamma=settings.gamma, complete=int(not sampling.interrupted)
    )
    diagnostics = diagnose(
        traces,
        center_mean_loss=float(sampling.train_center.double().mean()),
        diverged=sorted(sampling.diverged),
    )
    rhat, ess = diagnostics["rhat"].values, diagnostics["ess"].values
    seconds = time.perf_counter() - started
    summary = {
        "draws": traces.total_draws,
        "chains": traces.num_chains,
        "seconds": seconds,
        "draws_per_second": traces.total_draws / seconds,
        "ess_median": _or_nan(np.nanmedian, ess),
        "rhat_max": _or_nan(np.nanmax, rhat),
        "reliability": reliability(traces),
        "complete": not sampling.interrupted,
        "diverged_chains": sorted(sampling.diverged),
    }
    if not summary["rhat_max"] <= 1.05:
        warnings.append(
            f"R-hat is {summary['rhat_max']:.3f} for some item losses: the chains have not mixed, "
            "and drift looks like influence. Raise burn_in and draws, or raise gamma."
        )
    manifest = {
        **identity(problem, requested),
        "settings": settings.as_dict(),
        "explanations": list(calibration.explanations),
        "warnings": warnings,
        "complete": not sampling.interrupted,
        "versions": {"bif": __version__, **store.versions()},
        "device": str(sampling.device),
        "num_train": problem.num_train,
        "num_queries": problem.num_queries,
        "num_moving_weights": sampling.posterior.num_moving,
    }
    return Run(Influence(dataset, traces), traces, diagnostics, summary, manifest)


def _warnings(sampling: Sampling, settings: Settings) -> list[str]:
    assert settings.burn_in is not None and settings.thin is not None
    said = [
        f"chain {chain} diverged by step {settings.burn_in + (draw - 1) * settings.thin} with "
        f"step_size={settings.step_size:.4g} and was left out: lower step_size (try half) or "
        "raise gamma"
        for chain, draw in sorted(sampling.diverged.items())
    ]
    if sampling.interrupted:
        done = sum(r.recorded * len(r.chains) for r in sampling.recorders)
        total = (settings.chains or 0) * settings.draws
        said.append(f"interrupted after {done:,} of {total:,} draws: the result is partial")
    return said


def _described(dataset: xr.Dataset, problem: Problem, sampling: Sampling) -> xr.Dataset:
    """Add values at w*, labels and pictures."""
    shape = (len(problem.observables), problem.num_queries)
    dataset = dataset.assign(
        train_center_loss=("train", sampling.train_center.numpy()),
        query_center=(("observable", "query"), sampling.query_center.reshape(shape).numpy()),
    )
    axes = ("row", "column", "channel")
    groups = list(problem.query_groups.values())
    if problem.train.labels is not None:
        dataset = dataset.assign_coords(train_label=("train", problem.train.labels))
    if all(items.labels is not None for items in groups):
        labels = np.concatenate([np.asarray(items.labels) for items in groups])
        dataset = dataset.assign_coords(query_label=("query", labels))
    if problem.train.images is not None:
        images = problem.train.images
        dataset = dataset.assign(train_image=(("train", *axes[: images.ndim - 1]), images))
        if all(i.images is not None and i.images.shape[1:] == images.shape[1:] for i in groups):
            pictures = np.concatenate([np.asarray(items.images) for items in groups])
            dataset = dataset.assign(query_image=(("query", *axes[: images.ndim - 1]), pictures))
    return dataset


def _or_nan(function: Any, values: np.ndarray) -> float:
    return float(function(values)) if np.isfinite(values).any() else float("nan")
