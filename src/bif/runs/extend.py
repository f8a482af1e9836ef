"""Add draws, chains, queries or candidates to a run on disk, or solve it further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bif import store
from bif.problem.array_layout import Panels
from bif.problem.problem import Problem
from bif.runs.attribute import COMMIT_EVERY, run_attribution
from bif.runs.backfill import ReplayDeparts
from bif.runs.records import is_solved
from bif.runs.resumption import compare_extended, new_groups_of, settings_of
from bif.runs.run import Run, load
from bif.runs.solve_further import solve_further
from bif.sampling.settings import Settings
from bif.store.signals import termination_raises
from bif.terminal import say


def extend(
    folder: str | Path,
    problem: Problem,
    *,
    draws: int | None = None,
    chains: int | None = None,
    solver_residual: float | None = None,
    solver_steps: int | None = None,
    commit_every: float = COMMIT_EVERY,
    show_progress: bool = False,
) -> Run:
    """Add draws, chains, groups of queries or of candidates to a run that is on disk.

    The run becomes the one that had them from the start.  Further draws and chains are sampled.
    Further groups are observed at the draws that are there: by forward passes alone where the
    weights were kept, else by running the same steps once more.

    Of a run that was solved, further queries are solved for; further candidates, a smaller residual
    and more steps solve it anew, block by block, as no solution is kept.

    Args:
        folder: The run's folder.
        problem: The run's own, with further groups of queries or candidates after those it had:
            `problem.extended(…)`.
        draws: Draws of each chain, at least as many as there are.
        chains: Chains, at least as many as there are.
        solver_residual: Of a run that was solved: the residual of each query's system, at most what
            it is.
        solver_steps: In its place so many products for each query, at least as many as there were.
        commit_every: Seconds between commits, as for `attribute`.
        show_progress: Whether to show a progress bar, as for `attribute`.

    Raises:
        FolderInUse: The folder holds another run than the problem's, or has another writer.
        ValueError: Fewer draws or chains than there are; what a run of its kind cannot be given.
        ReplayDeparts: The steps cannot be repeated, on another device for example.
        FileNotFoundError: There is no run.
    """
    given = {
        "draws": draws, "chains": chains, "solver_residual": solver_residual,
        "solver_steps": solver_steps,
    }  # fmt: skip
    with termination_raises(), store.reopen_run(folder) as opened:
        _refuse_of_other_estimator(opened.manifest, given)
        if is_solved(opened.manifest):
            run = solve_further(
                opened, problem, residual=solver_residual, steps=solver_steps,
                show_progress=show_progress,
            )  # fmt: skip
            return run or load(folder)
        run = None
        if (draws or chains) and new_groups_of(opened.manifest["identity"], problem):
            # Groups first, so that steps which cannot be repeated leave the run as it was.
            run = _extend(opened, problem, None, None, commit_every, show_progress)
        run = _extend(opened, problem, draws, chains, commit_every, show_progress) or run
    return run or load(folder)


def refuse_of_other_estimator(folder: str | Path, given: Mapping[str, object]) -> None:
    """Raise where what is to grow is not of a run's estimator, before anything is copied.

    Args:
        folder: The run's.
        given: Settings that would grow, by name; None for those that stay.

    Raises:
        ValueError: It is not.
        FileNotFoundError: There is no run.
    """
    with store.reopen_run(folder) as opened:
        _refuse_of_other_estimator(opened.manifest, given)


def _refuse_of_other_estimator(manifest: Mapping[str, Any], given: Mapping[str, object]) -> None:
    solved = is_solved(manifest)
    others = ("draws", "chains") if solved else ("estimator", "solver_residual", "solver_steps")
    names = [name for name in others if given.get(name) is not None]
    if names:
        how = "solved with estimator='response'" if solved else "sampled"
        own = "solver_residual or solver_steps" if solved else "draws or chains"
        raise ValueError(
            f"the run was {how} and cannot be extended by {' and '.join(names)}: give {own}, or "
            "further queries or candidates."
        )


def _extend(
    opened: store.RunFolder,
    problem: Problem,
    draws: int | None,
    chains: int | None,
    commit_every: float,
    show_progress: bool,
) -> Run | None:
    """Return the extended run; None where it had all that already."""
    before = dict(opened.manifest)
    requested = _enter_changes(opened, problem, draws=draws, chains=chains)
    if opened.complete:
        return None
    if show_progress:
        say(_cost_ofnew_groups_of(opened, problem))
    try:
        run = run_attribution(
            problem, requested, folder=opened, keep=opened.manifest["keep"],
            top=opened.manifest.get("top"), commit_every=commit_every, show_progress=show_progress,
        )  # fmt: skip
    except ReplayDeparts:
        opened.update({name: before.get(name) for name in ("identity", "settings", "complete")})
        raise
    run.write(opened)
    return run


def _enter_changes(
    folder: store.RunFolder, problem: Problem, *, draws: int | None, chains: int | None
) -> Settings:
    """Return the settings after the changes, and enter these into the manifest."""
    keep = folder.manifest["keep"]
    requested, chosen = settings_of(folder)
    for name, there, wanted in (
        ("draws", chosen.draws, draws), ("chains", chosen.chains, chains)
    ):  # fmt: skip
        if wanted is not None and there is not None and wanted < there:
            raise ValueError(
                f"the run has {there} {name} already: {wanted} would be fewer. Ask for more."
            )
    changes = {
        name: wanted
        for name, wanted in (("draws", draws), ("chains", chains))
        if wanted is not None and wanted != getattr(chosen, name)
    }
    if "draws" in changes:  # in the place of what was to choose them
        requested = replace(requested, budget=None, reliability=None)
    requested, chosen = replace(requested, **changes), replace(chosen, **changes)
    free = {*changes, "budget", "reliability"} if "draws" in changes else set(changes)
    now, new_groups = compare_extended(folder, problem, requested, free=free)
    if keep == "sums" and (new_groups or "chains" in changes):
        raise ValueError(
            f"{folder.folder} keeps sums, not traces: it can be given more draws, but neither "
            "further queries or candidates nor chains. Begin a run with --keep traces or weights."
        )
    if new_groups and chosen.estimator == "anchored":
        raise ValueError(
            f"{folder.folder} was made with estimator='anchored', and new queries or candidates "
            "lack slopes at its draws: begin a run with all of them, or use "
            "estimator='covariance'. More draws and chains can be added."
        )
    if new_groups:
        _drop_unfinished(folder)
    if new_groups or changes:
        folder.update({"identity": now, "settings": chosen.as_dict(), "complete": False})
    return requested


def _drop_unfinished(folder: store.RunFolder) -> None:
    """Remove arrays of other groups that were not observed to the end."""
    whole = folder.manifest.get("arrays", [])
    for index in range(len(folder.manifest.get("blocks", []))):
        traces = folder.block(index).traces
        for name in traces.names():
            if name not in whole:
                traces.remove(name)


def _cost_ofnew_groups_of(folder: store.RunFolder, problem: Problem) -> list[str]:
    """Return what observing new groups at old draws will take, before it begins."""
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
        f"gradients, {draws:,} draws) are run once more; they took {seconds:,.0f} s. Runs with "
        "--keep weights need forward passes only."
    ]
