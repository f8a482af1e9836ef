"""The composer: from a problem to traces to influence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bif import __version__, store
from bif.calibrate import Calibration, calibrate
from bif.estimate.covariance import estimate_covariance
from bif.estimate.diagnostics import diagnose, reliability
from bif.estimate.influence import influence_dataset
from bif.influence import Influence
from bif.interrupts import termination_raises
from bif.keep import Keep, as_bytes, forecast, in_words, subset_of
from bif.manifest import identity
from bif.panels import Panels
from bif.problem import Problem
from bif.progress import say
from bif.provenance import hardware, versions
from bif.recording import Recording, deal
from bif.run import Run, load
from bif.sampling import Sampling
from bif.settings import Settings

if TYPE_CHECKING:
    import xarray as xr

COMMIT_EVERY = 10.0
"""Seconds of sampling from one commit to the next."""


def attribute(
    problem: Problem,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    keep: Keep = "traces",
    on_existing: store.OnExisting = "resume",
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
) -> Run:
    """Sample around the trained weights and estimate every query's influences.

    With `out`, the run lives in that folder and survives whatever ends the process: the same call
    goes on where it stopped, to the last bit on the same device, and returns at once what is
    complete.  Ctrl-C ends the sampling and keeps what there is, marked as incomplete.

    Args:
        problem: Model, loss, items, queries and observables.
        settings: What to sample and how; the library chooses whatever is None.
        out: A path or fsspec URL; in memory only if None.
        keep: "traces": all losses. "sums": covariances alone and the traces of 256 items for the
            diagnostics; no further queries, groups or kernels. "weights": all losses and the
            weights of every draw, so that new queries cost forward passes only.
        on_existing: "resume" goes on with this very run and refuses another; "replace" begins
            anew.
        commit_every: Seconds from one commit to the next.
        show_progress: Draw a progress bar on the terminal.

    Returns:
        The scores with their errors and everything that stands behind them.

    Raises:
        ValueError: Losses that are NaN or infinite at w*; settings that contradict each other;
            too little room on the disk.
        RuntimeError: Fewer than two chains survive.
        FolderInUse: `out` holds another run, other files, or has another writer.
        DamagedRun: What is in `out` cannot be used.
        Preempted: SIGTERM came; what is recorded is in `out`.
    """
    requested = settings or Settings()
    if out is None:
        if keep == "weights":
            raise ValueError("keep='weights' needs a folder to keep them in: pass out.")
        return attributed(problem, requested, keep=keep, show_progress=show_progress)
    manifest = {"identity": identity(problem, requested), "keep": keep}
    with (
        termination_raises(),
        store.open_run(out, manifest, on_existing=on_existing) as folder,
    ):
        if not folder.complete:
            run = attributed(
                problem, requested, folder=folder, keep=keep, commit_every=commit_every,
                show_progress=show_progress,
            )  # fmt: skip
            run.write(folder)
            return run
    return load(out)


def extend(
    folder: str | Path,
    problem: Problem,
    *,
    draws: int | None = None,
    chains: int | None = None,
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
) -> Run:
    """Add draws, chains, groups of queries or of candidates to a run that is on disk.

    The run becomes the one that had them from the start.  Further draws and chains are sampled.
    Further groups are observed at the draws that are there: by forward passes alone where the
    weights were kept, else by walking the same steps once more.

    Args:
        folder: The run's.
        problem: The run's own, with further groups of queries or candidates after those it had:
            `problem.extended(…)`.
        draws: Of each chain, at least as many as there are.
        chains: At least as many as there are.
        commit_every: As for `attribute`.
        show_progress: As for `attribute`.

    Raises:
        FolderInUse: The folder holds another run than the problem's, or has another writer.
        ValueError: Fewer draws or chains than there are; what a run of its kind cannot be given.
        ReplayDeparts: The steps cannot be walked again, on another device for example.
        FileNotFoundError: There is no run.
    """
    with termination_raises(), store.reopen_run(folder) as opened:
        requested = _grown(opened, problem, draws=draws, chains=chains)
        if not opened.complete:
            if show_progress:
                say(_cost_of_new_groups(opened, problem))
            run = attributed(
                problem, requested, folder=opened, keep=opened.manifest["keep"],
                commit_every=commit_every, show_progress=show_progress,
            )  # fmt: skip
            run.write(opened)
            return run
    return load(folder)


def attributed(
    problem: Problem,
    requested: Settings,
    *,
    folder: store.RunFolder | None = None,
    keep: Keep = "traces",
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
) -> Run:
    """Sample, into an open folder if there is one, and estimate; results are not written.

    Args and raises: as for `attribute`.
    """
    started = time.perf_counter()
    calibration = _calibrated(problem, requested, folder)
    settings = calibration.settings
    sampling = Sampling(problem, settings)
    sizes = forecast(problem, sampling.posterior, settings, keep)
    sizes_in_words = in_words(sizes, on_disk=folder is not None)
    if show_progress:
        say([*calibration.explanations, *sizes_in_words])
    assert settings.chains is not None and settings.block_size is not None
    dealt = [range(*b) for b in folder.manifest.get("blocks", [])] if folder else []
    blocks = deal(settings.chains, settings.block_size, dealt=dealt)
    recording = Recording(sampling, keep, folder, commit_every, blocks)
    if folder is not None:
        _refuse_full_disk(folder, sizes)
        _refuse_other_losses(folder, sampling)
        folder.update({
            "settings": settings.as_dict(),
            "explanations": list(calibration.explanations),
            "blocks": [[b.start, b.stop] for b in blocks],
            "hardware": hardware(sampling.device),
            "arrays": folder.manifest.get("arrays") or recording.arrays,
        })  # fmt: skip
    recording.run(show_progress=show_progress)
    if folder is not None and not recording.interrupted:
        folder.update({"arrays": recording.arrays})
    run = _concluded(calibration, recording, requested, started)
    return replace(run, manifest={**run.manifest, "forecast": sizes_in_words})


def _calibrated(
    problem: Problem, requested: Settings, folder: store.RunFolder | None
) -> Calibration:
    """What was chosen when the run was begun, or a fresh choice."""
    found = folder.manifest.get("settings") if folder else None
    if folder is None or not isinstance(found, dict):
        return calibrate(problem, requested)
    try:
        settings = Settings.from_dict(found)
    except ValueError as error:
        raise store.DamagedRun(f"the settings in {folder.folder}'s manifest: {error}") from error
    said = folder.manifest.get("explanations", [])
    return Calibration(settings, tuple(str(line) for line in said))


def _grown(
    folder: store.RunFolder, problem: Problem, *, draws: int | None, chains: int | None
) -> Settings:
    """The settings asked for after growth; notes in the manifest what the run is to become."""
    found = folder.manifest
    then, keep = found["identity"], found["keep"]
    requested = Settings.from_dict(then["settings"])
    chosen = Settings.from_dict(found.get("settings", then["settings"]))
    for name, there, wanted in (
        ("draws", chosen.draws, draws), ("chains", chosen.chains, chains)
    ):  # fmt: skip
        if wanted is not None and there is not None and wanted < there:
            raise ValueError(f"the run has {there} {name} already: {wanted} would be fewer.")
    growth = {
        name: wanted
        for name, wanted in (("draws", draws), ("chains", chains))
        if wanted is not None and wanted != getattr(chosen, name)
    }
    requested, chosen = replace(requested, **growth), replace(chosen, **growth)
    now = store.plain(identity(problem, requested))
    new_groups = []
    for kind in ("queries", "candidates"):
        there, wanted = list(then[kind]), list(now[kind])
        if wanted[: len(there)] != there:
            raise store.FolderInUse(
                f"{folder.folder} has the {kind} {there}, the problem {wanted}: keep the run's own "
                "first, and add others after them."
            )
        new_groups += [f"{kind}.{name}" for name in wanted[len(there) :]]
    changed = [
        name
        for name in store.differences(then, now)
        if name not in new_groups and name.removeprefix("settings.") not in growth
    ]
    if changed:
        raise store.FolderInUse(
            f"{folder.folder} is of another problem, with another {', '.join(changed)}."
        )
    if keep == "sums" and (new_groups or "chains" in growth):
        raise ValueError(
            f"{folder.folder} keeps sums, not traces: it can be given more draws, but neither "
            "further queries or candidates nor chains. Begin a run with --keep traces or weights."
        )
    if not found.get("resumable", True):
        raise ValueError(
            f"{folder.folder} was saved from memory and holds no state to go on from: runs can "
            "grow that were made with attribute(…, out=…)."
        )
    if new_groups or growth:
        folder.update({"identity": now, "settings": chosen.as_dict(), "complete": False})
    return requested


def _cost_of_new_groups(folder: store.RunFolder, problem: Problem) -> list[str]:
    """What observing new groups at old draws will take, before it begins."""
    there = folder.manifest.get("arrays") or []
    names = [n for n in Panels.of(problem).names if n not in there]
    if not names:
        return []
    settings = folder.manifest["settings"]
    commits = [folder.block(i).commits() for i in range(len(folder.manifest.get("blocks", [])))]
    draws = sum(c[0].draws for c in commits if c)
    if folder.manifest["keep"] == "weights":
        return [f"new groups: forward passes at {draws:,} kept draws of each block's chains"]
    steps = sum(c[0].step for c in commits if c)
    seconds = sum(c[0].seconds for c in commits if c)
    return [
        f"new groups: the run kept no weights, so its {steps:,} steps ({settings['gradient']} "
        f"gradients, {draws:,} draws) are walked once more; they took {seconds:,.0f} s. Runs with "
        "--keep weights need forward passes only."
    ]


def _refuse_full_disk(folder: store.RunFolder, sizes: Mapping[str, int]) -> None:
    """Before hours of work, not after them."""
    free = folder.folder.free_bytes()
    needed = sizes["traces"] + sizes["weights"] + sizes["checkpoints"]
    if not folder.begun and free is not None and needed > free:
        raise ValueError(
            f"the run needs up to {as_bytes(needed)} on the disk of {folder.folder}, where "
            f"{as_bytes(free)} are free: use keep='sums', fewer draws, or another folder."
        )


def _refuse_other_losses(folder: store.RunFolder, sampling: Sampling) -> None:
    """The losses at w* tell of changes that no fingerprint sees, such as a global variable."""
    now = dict(zip(sampling.panels.names, sampling.center_values(), strict=True))
    same = folder.manifest.get("hardware") == hardware(sampling.device)
    for name, then in folder.center_values().items():
        if name not in now:
            continue
        tolerance = 0.0 if same else 1e-3
        close = then.shape == now[name].shape and bool(
            ((then - now[name]).abs() <= tolerance * (1 + then.abs())).all()
        )
        if not close:
            what = "losses of the train items" if name == "train_loss-0" else f"values of {name}"
            raise store.FolderInUse(
                f"{folder.folder} was begun with other {what} at w*, although fingerprints agree: "
                "something that the model, the data or the loss depend on has changed."
            )
    folder.keep_center_values(now)


def _concluded(
    calibration: Calibration, recording: Recording, requested: Settings, started: float
) -> Run:
    """Estimates from what has been recorded."""
    sampling, settings, keep = recording.sampling, calibration.settings, recording.keep
    problem, traces = sampling.problem, recording.traces()
    warnings = _warnings(recording, settings)
    if traces.num_chains < 2:
        if recording.interrupted and recording.folder is not None:
            raise KeyboardInterrupt(recording.progress_in_words())
        advice = (
            f"Lower step_size (it was {settings.step_size:.4g}; try half), raise gamma, or lower "
            "nbeta."
            if recording.diverged
            else "Let it run longer."
        )
        raise RuntimeError(
            f"only {traces.num_chains} of {settings.chains} chains survived, and a covariance "
            f"with errors needs two: {'; '.join(warnings)}. {advice}"
        )
    assert settings.nbeta is not None
    covariance = (
        recording.covariance()
        if keep == "sums"
        else estimate_covariance(traces, device=sampling.device)
    )
    dataset = influence_dataset(
        covariance,
        nbeta=settings.nbeta,
        observables={o.name: o.better for o in problem.observables},
        query_ids=problem.query_ids,
        query_groups=problem.query_group_names,
        train_ids=problem.scored_ids,
        num_train=problem.num_train,
        num_chains=traces.num_chains,
        num_draws=traces.total_draws,
    )
    del covariance
    dataset = _described(dataset, sampling).assign_attrs(
        gamma=settings.gamma, complete=int(not recording.interrupted)
    )
    center = sampling.train_center.double()
    if keep == "sums":
        center = center[subset_of(problem).train]
    diagnostics = diagnose(
        traces, center_mean_loss=float(center.mean()), diverged=sorted(recording.diverged)
    )
    rhat, ess = diagnostics["rhat"].values, diagnostics["ess"].values
    seconds = time.perf_counter() - started + recording.seconds_before
    summary = {
        "draws": traces.total_draws,
        "chains": traces.num_chains,
        "seconds": seconds,
        "draws_per_second": traces.total_draws / seconds,
        "ess_median": _or_nan(np.nanmedian, ess),
        "rhat_max": _or_nan(np.nanmax, rhat),
        "reliability": reliability(traces),
        "complete": not recording.interrupted,
        "diverged_chains": sorted(recording.diverged),
    }
    if not summary["rhat_max"] <= 1.05:
        warnings.append(
            f"R-hat is {summary['rhat_max']:.3f} for some item losses: the chains have not mixed, "
            "and drift looks like influence. Raise burn_in and draws, or raise gamma."
        )
    manifest = {
        "identity": store.plain(identity(problem, requested)),
        "keep": keep,
        "settings": settings.as_dict(),
        "explanations": list(calibration.explanations),
        "warnings": warnings,
        "complete": not recording.interrupted,
        "versions": {"bif": __version__, **versions()},
        "hardware": hardware(sampling.device),
        "device": str(sampling.device),
        "num_train": problem.num_train,
        "num_queries": problem.num_queries,
        "num_moving_weights": sampling.posterior.num_moving,
        "panels": asdict(sampling.panels),
        "left_out": sorted({*recording.diverged, *recording.taken_along}),
    }
    scores = Influence(dataset, None if keep == "sums" else traces)
    return Run(scores, traces, diagnostics, summary, manifest)


def _warnings(recording: Recording, settings: Settings) -> list[str]:
    assert settings.burn_in is not None and settings.thin is not None
    said = [
        f"chain {chain} diverged by step {settings.burn_in + draw * settings.thin} with "
        f"step_size={settings.step_size:.4g} and was left out: lower step_size (try half) or "
        "raise gamma"
        for chain, draw in sorted(recording.diverged.items())
    ]
    if recording.taken_along:
        said.append(
            f"chains {recording.taken_along} were left out too: they shared their sums with one "
            "that diverged; --keep traces would have kept them"
        )
    if recording.interrupted:
        said.append(f"interrupted {recording.progress_in_words()}: the result is partial")
    return said + list(dict.fromkeys(recording.notes))


def _described(dataset: xr.Dataset, sampling: Sampling) -> xr.Dataset:
    """Add values at w*, groups, labels and pictures."""
    problem = sampling.problem
    shape = (len(problem.observables), problem.num_queries)
    dataset = dataset.assign(
        train_center_loss=("train", sampling.train_center.numpy()),
        query_center=(("observable", "query"), sampling.query_center.reshape(shape).numpy()),
    )
    if problem.candidate_groups:
        dataset = dataset.assign_coords(train_group=("train", problem.scored_group_names))
    axes = ("row", "column", "channel")
    for side, groups in (
        ("train", list(problem.scored_groups.values())),
        ("query", list(problem.query_groups.values())),
    ):
        if all(items.labels is not None for items in groups):
            labels = np.concatenate([np.asarray(items.labels) for items in groups])
            dataset = dataset.assign_coords({f"{side}_label": (side, labels)})
        shapes = {None if i.images is None else i.images.shape[1:] for i in groups}
        expected = problem.train.images
        if expected is not None and shapes == {expected.shape[1:]}:
            pictures = np.concatenate([np.asarray(items.images) for items in groups])
            named = (side, *axes[: pictures.ndim - 1])
            dataset = dataset.assign({f"{side}_image": (named, pictures)})
    return dataset


def _or_nan(function: Any, values: np.ndarray) -> float:
    return float(function(values)) if np.isfinite(values).any() else float("nan")
