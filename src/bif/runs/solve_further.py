"""Solve a run on disk further: for more queries or candidates, to a smaller residual, or longer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from bif import store
from bif.linear_response.solver import RESIDUAL
from bif.problem.problem import Problem
from bif.runs.resumption import compare_extended, settings_of
from bif.runs.run import Run
from bif.runs.solve import run_solver
from bif.sampling.settings import Settings


def solve_further(
    opened: store.RunFolder,
    problem: Problem,
    *,
    residual: float | None,
    steps: int | None,
    show_progress: bool,
) -> Run | None:
    """Return the extended run of one that was solved; None where it had all that already.

    Blocks of queries that are there stay, unless the solve itself changes or candidates need the
    solutions, which are not kept: then each is replaced as it is solved anew.  Results are those of
    before until the new ones are whole.

    Args:
        opened: The run's folder.
        problem: The run's own, with further groups.
        residual: At which a query's system counts as solved.
        steps: Products of each query, in its place.
        show_progress: Print progress on the terminal.

    Raises:
        ValueError: A larger residual or fewer steps than there are, or both; what a solve refuses.
        FolderInUse: The run is of another problem.
    """
    before, values = dict(opened.manifest), _center_values(opened)
    requested, chosen = settings_of(opened)
    changes: dict[str, Any] = {}
    if _goes_further(opened, chosen, residual=residual, steps=steps):
        changes = {"solver_residual": residual, "solver_steps": steps}
        if requested.estimator is None:  # it was chosen by default, which these settings preclude
            changes["estimator"] = "response"
    requested = replace(requested, **changes)
    now, new_groups = compare_extended(opened, problem, requested, free=set(changes))
    serial = before.get("solve_serial", 1)
    if new_groups or changes:
        anew = bool(changes) or any(name.startswith("candidates.") for name in new_groups)
        entries = {"identity": now, "complete": False, "solve_serial": serial + anew}
        if "settings" in before:
            entries["settings"] = replace(chosen, **changes).as_dict()
        opened.update(entries)
    elif opened.complete:
        return None
    try:
        run = run_solver(problem, requested, folder=opened, show_progress=show_progress)
    except (ValueError, store.FolderInUse):  # such as a query whose gradient is not finite
        kept = {name: before[name] for name in ("identity", "settings", "complete")
                if name in before}  # fmt: skip
        blocks = before.get("query_blocks", [])
        # What was solved meanwhile counts for no later extension.
        opened.update({**kept, "query_blocks": blocks, "solve_serial": serial + 2})
        opened.keep_center_values(values)
        raise
    run.write(opened)
    return run


def _center_values(opened: store.RunFolder) -> dict[str, Tensor]:
    with suppress(store.DamagedRun):  # what is damaged is noted by the solve
        return opened.center_values()
    return {}


def _goes_further(
    opened: store.RunFolder, chosen: Settings, *, residual: float | None, steps: int | None
) -> bool:
    """Return whether a solve goes on beyond where it ended.

    Raises:
        ValueError: It would end before that; a residual and steps.
    """
    ended = store.read_run(opened.folder)["summary"] if "results" in opened.manifest else {}
    if steps is not None:
        if residual is not None:
            raise ValueError(
                f"solver_residual={residual:g} and solver_steps={steps}: a solve ends by one or "
                "the other, so give one of them."
            )
        least = chosen.solver_steps or ended.get("solver_steps", 1)
        if steps < least:
            raise ValueError(
                f"the run was solved in {least} steps already: {steps} would be fewer. Ask for "
                "more."
            )
        return steps != chosen.solver_steps
    if residual is None:
        return False
    most = chosen.solver_residual or RESIDUAL
    if chosen.solver_steps:
        most = ended.get("largest_residual", 1.0)
    if residual > most:
        raise ValueError(
            f"the run was solved to a residual of {most:.3g} already: {residual:g} would be "
            "larger. Ask for a smaller one."
        )
    return chosen.solver_steps is not None or residual < most
