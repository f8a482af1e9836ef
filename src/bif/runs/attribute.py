"""Compose a run: from a problem to traces to influence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bif import store
from bif.calibration.budget import Goal
from bif.calibration.calibrate import Calibration, calibrate
from bif.calibration.default_estimator import settled_estimator
from bif.calibration.memory_plan import forecast_live, refuse_overflow, refuse_unfit
from bif.problem.identity import identity
from bif.problem.literals import require_literal
from bif.problem.problem import Problem
from bif.problem.provenance import hardware
from bif.runs.anchoring import in_bytes, make_anchoring
from bif.runs.finalize import conclude
from bif.runs.planned_run import PlannedRun, plan_run
from bif.runs.recording import Context, Recording, deal
from bif.runs.resumption import chosen_before, refuse_other_losses
from bif.runs.retention import (
    ON_DISK,
    Keep,
    forecast,
    in_words,
    refuse_vast_scores,
    refuse_vast_traces,
)
from bif.runs.run import Run, load
from bif.runs.sharing import (
    assist,
    make_engine_together,
    note_other_size,
    refuse_different,
    refuse_shards,
    refuse_uneven,
    share_chains,
)
from bif.runs.solve import run_solver
from bif.runs.writer import Writer
from bif.sampling.choices import Choice
from bif.sampling.factory import run_device
from bif.sampling.settings import RunSettings, Settings, as_settings
from bif.store.signals import termination_raises
from bif.terminal import as_bytes, explain

if TYPE_CHECKING:
    from bif.mesh import Ranks

COMMIT_EVERY = 10.0
"""Seconds of sampling from one commit to the next."""


def attribute(
    problem: Problem,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    keep: Keep = "traces",
    top: int | None = None,
    on_existing: store.OnExisting = "resume",
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
    ranks: Ranks | None = None,
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
        top: Keep so many of the strongest scores of every query, or query token, either way, in the
            place of all, which are never held at once; None keeps all.
        on_existing: "resume" goes on with this very run and refuses another; "replace" begins
            anew.
        commit_every: Seconds from one commit to the next.
        show_progress: Draw a progress bar on the terminal.
        ranks: Processes that share the blocks of chains, or of queries that are solved for; all
            make this same call, by `bif.mesh.join`, with an `out` that they share.

    Returns:
        The scores with their errors and everything that stands behind them.

    Raises:
        TypeError: `settings` are none.
        ValueError: Losses that are NaN or infinite at w*; settings that contradict each other, or
            `top` with sums or controls; a device that is not there;
            too little room on the disk, or on the device for a live module; scores of too many
            pairs of tokens; ranks that differ, or cannot share the blocks evenly.
        RuntimeError: Fewer than two chains survive.
        FolderInUse: `out` holds another run, other files, or has another writer.
        DamagedRun: What is in `out` cannot be used.
        Preempted: SIGTERM came; what is recorded is in `out`.
        RankFailed: Another rank has failed; what is recorded is in `out`.
    """
    requested = as_settings(settings)
    run_device(problem, requested)  # before a folder is made
    require_literal("keep", keep, Keep)
    require_literal("on_existing", on_existing, store.OnExisting)
    if requested.controls and keep == "sums":
        raise ValueError(
            "controls need the traces of all items, and keep='sums' drops them: use keep='traces', "
            "or leave the controls out."
        )
    _refuse_unfit_top(top, requested, keep)
    if requested.estimator == "anchored":
        _refuse_unfit_anchors(problem, requested, keep, top)
    if requested.estimator == "response" and (keep != "traces" or top is not None):
        given = f"keep={keep!r}" if top is None else f"top={top}"
        raise ValueError(
            f"{given} is for what is sampled, and estimator='response' solves: leave it out."
        )
    refuse_shards(requested, ranks, keep)
    if not commit_every >= 0:
        raise ValueError(f"commit_every is {commit_every} seconds: expected a number ≥ 0.")
    if ranks is not None and ranks.size > 1:
        return _attribute_on_ranks(
            ranks, problem, requested, out=out, keep=keep, top=top, on_existing=on_existing,
            commit_every=commit_every, show_progress=show_progress,
        )  # fmt: skip
    if out is None:
        if keep == "weights":
            raise ValueError("keep='weights' needs a folder to keep them in: pass out.")
        return _carry_out(problem, requested, keep=keep, top=top, show_progress=show_progress)
    manifest = {"identity": identity(problem, requested.as_dict()), "keep": keep, "top": top}
    return _attribute_on_disk(
        problem, requested, manifest, out=out, on_existing=on_existing,
        commit_every=commit_every, show_progress=show_progress,
    )  # fmt: skip


def _attribute_on_ranks(
    ranks: Ranks, problem: Problem, requested: Settings, *, out: str | Path | None, keep: Keep,
    top: int | None, on_existing: store.OnExisting, commit_every: float, show_progress: bool,
) -> Run:  # fmt: skip
    """Make a run together with other ranks; each returns it, and rank 0 writes it."""
    if out is None:
        raise ValueError("ranks meet in a folder: pass an out that all of them share.")
    manifest = {"identity": identity(problem, requested.as_dict()), "keep": keep, "top": top}
    refuse_different(ranks, problem, requested, {**manifest, "on_existing": on_existing})
    ranks.split_(requested.shards)
    if not ranks.is_first:
        with termination_raises():
            assist(ranks, problem, out, commit_every=commit_every)
        return load(out)
    with ranks.leading():
        run = _attribute_on_disk(
            problem, requested, manifest, out=out, on_existing=on_existing,
            commit_every=commit_every, show_progress=show_progress, ranks=ranks,
        )  # fmt: skip
    ranks.announce(None)
    return run


def _attribute_on_disk(
    problem: Problem, requested: Settings, manifest: Mapping[str, Any], *, out: str | Path,
    on_existing: store.OnExisting, commit_every: float, show_progress: bool,
    ranks: Ranks | None = None,
) -> Run:  # fmt: skip
    """Return the run of a folder: complete as it is there, or gone on with, or begun."""
    keep, top = manifest["keep"], manifest["top"]
    if on_existing == "resume" and store.is_complete(out, manifest):
        return load(out)  # also from a folder that cannot be written to
    with (
        termination_raises(),
        store.open_run(out, manifest, on_existing=on_existing) as folder,
    ):
        if not folder.complete:
            run = _carry_out(
                problem, requested, folder=folder, keep=keep, top=top, commit_every=commit_every,
                show_progress=show_progress, ranks=ranks,
            )  # fmt: skip
            run.write(folder)
            return run
    return load(out)


def _carry_out(
    problem: Problem, requested: Settings, *, folder: store.RunFolder | None = None, keep: Keep,
    top: int | None, commit_every: float = COMMIT_EVERY, show_progress: bool,
    ranks: Ranks | None = None,
) -> Run:  # fmt: skip
    """Sample or solve, as asked, as begun, or as a forecast says.

    Raises:
        ValueError: A path, which needs a response.
    """
    begun = folder.manifest.get("settings") if folder else None
    planned, estimator = None, settled_estimator(problem, requested)
    if begun is not None:  # perhaps by an earlier version, which chose otherwise
        estimator = begun.get("estimator") or "covariance"
    elif estimator is None and (keep != "traces" or top is not None):
        estimator = "covariance"
    if problem.path and estimator != "response":
        raise ValueError(
            "the problem has a path, along which responses are solved: set estimator='response', "
            "or pass problem.with_path(())."
        )
    if estimator is None:
        refuse_vast_scores(problem, keep, top=top)
        planned = plan_run(
            problem, requested, tell=explain if show_progress else None,
            num_ranks=ranks.num_models if ranks else 1,
        )  # fmt: skip
    if estimator == "response" or (planned and planned.solver):
        return run_solver(
            problem, requested, planned=planned, folder=folder, show_progress=show_progress,
            ranks=ranks,
        )  # fmt: skip
    return run_attribution(
        problem, requested, planned=planned, folder=folder, keep=keep, top=top,
        commit_every=commit_every, show_progress=show_progress, ranks=ranks,
    )  # fmt: skip


def run_attribution(
    problem: Problem,
    requested: Settings,
    *,
    planned: PlannedRun | None = None,
    folder: store.RunFolder | None = None,
    keep: Keep = "traces",
    top: int | None = None,
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
    ranks: Ranks | None = None,
) -> Run:
    """Sample, into an open folder if there is one, and estimate; results are not written.

    Args and raises: as for `attribute`; `planned` is of a run that begins, if it was by a forecast.
    """
    started = time.perf_counter()
    refuse_vast_scores(problem, keep, top=top)
    refuse_vast_traces(problem, requested, keep)
    # Before anything is evaluated: a loss may be an object that remembers its calls.
    asked_for = planned.identity if planned else identity(problem, requested.as_dict())
    asked_for = folder.manifest["identity"] if folder else asked_for
    num_ranks = ranks.num_models if ranks else 1
    fresh = not (folder and folder.manifest.get("blocks"))
    if fresh:  # once more below, where calibration has chosen
        refuse_uneven(num_ranks, requested.chains, requested.block_size)
    calibration = (planned and planned.chains) or _calibrate(
        problem, requested, folder, explain if show_progress else None, num_ranks=num_ranks
    )
    settings = calibration.settings
    if fresh:
        refuse_uneven(num_ranks, settings.chains, settings.block_size)
    refuse_unfit(problem, settings)
    engine = make_engine_together(ranks, problem, settings)
    sizes = forecast(problem, engine.posterior, settings, keep, top=top)
    sizes_in_words = in_words(sizes, on_disk=folder is not None)
    if settings.oracle == "live" and settings.shards == 1 and not (folder and folder.begun):
        memory = forecast_live(engine)
        refuse_overflow(memory, engine)
        sizes_in_words += memory.in_words()
    if show_progress:
        explain(sizes_in_words)
    dealt = [range(*b) for b in folder.manifest.get("blocks", [])] if folder else []
    blocks = deal(settings.chains, settings.block_size, dealt=dealt)
    with Writer() as writer:
        # Of several blocks, as an interrupted run has that was given chains, none may end alone.
        goal = calibration.goal if len(blocks) == 1 else None
        anchoring = make_anchoring(engine)
        if show_progress and anchoring is not None:
            explain([anchoring.in_words()])
        context = Context(engine, keep, folder, commit_every, blocks, writer, goal, anchoring)
        recording = Recording(context)
        recording.notes += folder.manifest.get("notes", []) if folder else []
        if folder is not None:
            _refuse_full_disk(folder, sizes)
            recording.notes += refuse_other_losses(folder, engine)
            recording.notes += note_other_size(folder, ranks.size if ranks else 1)
            folder.update({
                "settings": settings.as_dict(),
                "explanations": list(calibration.explanations),
                "goal": asdict(calibration.goal) if calibration.goal else None,
                "blocks": [[b.start, b.stop] for b in blocks],
                "hardware": hardware(engine.device),
                "arrays": folder.manifest.get("arrays") or context.arrays,
            })  # fmt: skip
        if ranks is not None and folder is not None:
            ranks.announce(folder.manifest["token"])
            recording.take_in(share_chains(ranks, context, show_progress=show_progress))
        recording.run(show_progress=show_progress and ranks is None)
        calibration = _end_at(calibration, recording.ended_at)
        run = conclude(
            calibration,
            recording,
            top=top,
            identity=store.plain(asked_for),
            started=started - recording.seconds_before,
            forecast=sizes_in_words,
        )
    if folder is not None and not recording.interrupted:
        folder.update({"arrays": context.arrays, "goal": None})
    return run


def _refuse_unfit_top(top: int | None, requested: Settings, keep: Keep) -> None:
    if top is None:
        return
    if top < 1:
        raise ValueError(f"top is {top}: expected the number of scores to keep either way, ≥ 1.")
    if keep == "sums":
        raise ValueError(
            "keep='sums' holds the sums of all pairs, so top would save nothing: leave top out, or "
            "use keep='traces'."
        )
    if requested.controls:
        raise ValueError(
            "controls are other scores of all pairs, and top keeps the strongest only: leave one "
            "of them out."
        )


def _refuse_unfit_anchors(
    problem: Problem, requested: Settings, keep: Keep, top: int | None
) -> None:
    """Raise where the weights or all scores are not to be held in copies, which anchors need."""
    if requested.oracle == "live" or requested.memory != "plain":
        raise ValueError(
            f"{in_bytes(problem, requested)}, and oracle='live' is for models of which few copies "
            f"fit (oracle={requested.oracle!r}, memory={requested.memory!r}): use "
            "estimator='response', which solves for some queries at a time, or another oracle."
        )
    if keep == "sums" or top is not None:
        given = f"keep={keep!r}" if top is None else f"top={top}"
        raise ValueError(
            f"{given} is for runs whose scores are not all held, and estimator='anchored' holds "
            "the items' slopes along every anchor: leave it out, or use estimator='covariance'."
        )


def _calibrate(
    problem: Problem,
    requested: Settings,
    folder: store.RunFolder | None,
    tell: Callable[[list[str]], None] | None,
    *,
    num_ranks: int,
) -> Calibration:
    """Return what was chosen when the run was begun, or a fresh choice."""
    begun = chosen_before(folder, RunSettings)
    if folder is None or begun is None:
        return calibrate(problem, requested, tell=tell, num_ranks=num_ranks)
    settings, choices = begun
    if tell is not None:
        tell([str(choice) for choice in choices])
    goal = folder.manifest.get("goal") if requested.reliability is not None else None
    return Calibration(settings, choices, requested.reliability, Goal(**goal) if goal else None)


def _end_at(calibration: Calibration, draws: int | None) -> Calibration:
    """Return the calibration with the draws at which a run ended at its goal."""
    goal, most = calibration.goal, calibration.settings.draws
    if draws is None or goal is None:
        return calibration
    reason = f"the reliability of {goal.reliability:g} is reached"
    return replace(
        calibration,
        settings=replace(calibration.settings, draws=draws),
        choices=(*calibration.choices, Choice("draws", f"{draws} of at most {most}", reason)),
        goal=None,
    )


def _refuse_full_disk(folder: store.RunFolder, sizes: Mapping[str, int]) -> None:
    """Raise where the disk has no room for the run, before hours of work."""
    free = folder.folder.free_bytes()
    needed = sum(sizes[name] for name in ON_DISK)
    if not folder.begun and free is not None and needed > free:
        raise ValueError(
            f"the run needs up to {as_bytes(needed)} on the disk of {folder.folder}, where "
            f"{as_bytes(free)} are free: use keep='sums', fewer draws, or another folder."
        )
