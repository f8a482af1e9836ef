"""Add draws, chains, queries or candidates to a run on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bif import store
from bif.problem.array_layout import Panels
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.runs.attribute import COMMIT_EVERY, run_attribution
from bif.runs.backfill import ReplayDeparts
from bif.runs.records import refuse_solved
from bif.runs.run import Run, load
from bif.sampling.settings import Settings
from bif.store.signals import termination_raises
from bif.terminal import say

_NOT_EXTENDED = "extended: attribute the new items into a folder of their own"
"""What a run that was solved cannot be, and what to do."""


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
    weights were kept, else by running the same steps once more.

    Args:
        folder: The run's folder.
        problem: The run's own, with further groups of queries or candidates after those it had:
            `problem.extended(…)`.
        draws: Draws of each chain, at least as many as there are.
        chains: Chains, at least as many as there are.
        commit_every: Seconds between commits, as for `attribute`.
        show_progress: Whether to show a progress bar, as for `attribute`.

    Raises:
        FolderInUse: The folder holds another run than the problem's, or has another writer.
        ValueError: Fewer draws or chains than there are; what a run of its kind cannot be given.
        ReplayDeparts: The steps cannot be repeated, on another device for example.
        FileNotFoundError: There is no run.
    """
    with termination_raises(), store.reopen_run(folder) as opened:
        run = None
        if (draws or chains) and _new_groups(opened.manifest["identity"], problem):
            # Groups first, so that steps which cannot be repeated leave the run as it was.
            run = _extend(opened, problem, None, None, commit_every, show_progress)
        run = _extend(opened, problem, draws, chains, commit_every, show_progress) or run
    return run or load(folder)


def refuse_solved_run(folder: str | Path) -> None:
    """Raise where the run in a folder was solved, before anything is copied.

    Raises:
        ValueError: It was.
        FileNotFoundError: There is no run.
    """
    with store.reopen_run(folder) as opened:
        refuse_solved(opened.manifest, _NOT_EXTENDED)


def _extend(
    opened: store.RunFolder,
    problem: Problem,
    draws: int | None,
    chains: int | None,
    commit_every: float,
    show_progress: bool,
) -> Run | None:
    """Return the extended run; None where it had all that already."""
    refuse_solved(opened.manifest, _NOT_EXTENDED)
    before = dict(opened.manifest)
    requested = _enter_changes(opened, problem, draws=draws, chains=chains)
    if opened.complete:
        return None
    if show_progress:
        say(_cost_of_new_groups(opened, problem))
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


def _new_groups(then: Mapping[str, Any], problem: Problem) -> list[str]:
    """Return the names of the problem's groups that a run does not have."""
    now = {"queries": problem.query_groups, "candidates": problem.candidate_groups}
    return [f"{kind}.{n}" for kind, groups in now.items() for n in groups if n not in then[kind]]


def _enter_changes(
    folder: store.RunFolder, problem: Problem, *, draws: int | None, chains: int | None
) -> Settings:
    """Return the settings after the changes, and enter these into the manifest."""
    found = folder.manifest
    then, keep = found["identity"], found["keep"]
    if not found.get("resumable", True):
        raise ValueError(
            f"{folder.folder} was saved from memory and holds no state to go on from: runs can "
            "grow that were made with attribute(…, out=…)."
        )
    requested = Settings.from_dict(then["settings"])
    chosen = Settings.from_dict(found.get("settings", then["settings"]))
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
    now = store.plain(identity(problem, requested.as_dict()))
    for kind in ("queries", "candidates"):
        there, wanted = list(then[kind]), list(now[kind])
        if wanted[: len(there)] != there:
            raise store.FolderInUse(
                f"{folder.folder} has the {kind} {there}, the problem {wanted}: keep the run's own "
                "first, and add others after them."
            )
    new_groups = _new_groups(then, problem)
    changed = [
        name
        for name in store.differences(then, now)
        if name not in new_groups and name.removeprefix("settings.") not in free
    ]
    if changed:
        raise store.FolderInUse(
            f"{folder.folder} is of another problem, with another {store.in_words(changed)}."
        )
    if keep == "sums" and (new_groups or "chains" in changes):
        raise ValueError(
            f"{folder.folder} keeps sums, not traces: it can be given more draws, but neither "
            "further queries or candidates nor chains. Begin a run with --keep traces or weights."
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


def _cost_of_new_groups(folder: store.RunFolder, problem: Problem) -> list[str]:
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
