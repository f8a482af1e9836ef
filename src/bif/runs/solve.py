"""The composer of a response by solving: from a problem to linear systems to influence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bif import __version__, store
from bif.calibration.solving import SolverCalibration, calibrate_solver, resume_solver
from bif.curvature.products import curvature_in_words
from bif.estimate.covariance import Covariance
from bif.estimate.dataset import SIGN_OF_SOLVED, influence_dataset
from bif.estimate.traces import LossTraces
from bif.linear_response.solver import Solver
from bif.problem.array_layout import Panels
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.problem.provenance import hardware, versions
from bif.results.influence import Influence
from bif.runs.gates import Gate
from bif.runs.item_metadata import describe_items, score_axes
from bif.runs.planned_run import PlannedRun
from bif.runs.records import Manifest, Summary
from bif.runs.response_stages import Stages
from bif.runs.resumption import chosen_before, refuse_other_values
from bif.runs.run import Run
from bif.runs.sharing import even_rows, note_other_size, share_systems
from bif.sampling.settings import Settings
from bif.terminal import say

if TYPE_CHECKING:
    import xarray as xr

    from bif.mesh import Ranks

_ERRORS = 4.0
"""Errors to either side that hold 95 % of the scores, where systems were solved to 1 to 10 %."""
_GATE = 0.1
"""Relative residual above which a solve that was to end by itself is not trusted."""


def run_solver(
    problem: Problem,
    requested: Settings,
    *,
    planned: PlannedRun | None = None,
    folder: store.RunFolder | None = None,
    show_progress: bool = False,
    ranks: Ranks | None = None,
) -> Run:
    """Score by solving, into an open folder if there is one; results are not written.

    `influence = -(1/nbeta) g_iᵀ (C + weight_decay + gamma/nbeta)⁻¹ g_phi`, the covariance's limit
    at low temperature, with C the curvature of the mean loss at w*; its mean over the problem's
    path if it has one.

    Args:
        problem: Model, loss, items, queries and observables.
        requested: With `estimator="response"`.
        planned: Of a run that begins, where its estimator was chosen by forecast.
        folder: Of the run.
        show_progress: Print choices and progress on the terminal.
        ranks: Processes that solve for some queries each, and assist this one.

    Raises:
        ValueError: Negative curvature beyond the damping; a loss without a Gauss-Newton matrix.
        FolderInUse: The run was begun with other losses at w*.
    """
    started = time.perf_counter()
    asked = planned.identity if planned else identity(problem, requested.as_dict())
    asked = folder.manifest["identity"] if folder else asked
    problem = problem.with_plain_losses()
    tell = say if show_progress else None
    begun = chosen_before(folder, Settings)
    found = resume_solver(problem, *begun) if begun else None
    found = found or (planned and planned.solver) or calibrate_solver(problem, requested, tell=tell)
    vectors, num_ranks = found.vectors, ranks.size if ranks else 1
    if ranks is not None:
        vectors = even_rows(vectors, problem.num_queries, num_ranks)
    solver = Solver(problem, found.settings, num_together=found.num_together, vectors=vectors)
    manifest = folder.manifest if folder else {}
    blocks = solver.blocks([(a, range(*b)) for a, *b in manifest.get("query_blocks", [])])
    serial = manifest.get("solve_serial", 1)
    stages = Stages(folder, solver.device, since=started, serial=serial)
    if folder is not None:
        values = solver.observer.center_values()
        now = dict(zip(Panels.of(problem).names, values, strict=True))
        same = folder.manifest.get("hardware") == hardware(solver.device)
        stages.notes += refuse_other_values(folder, now, same=same)[1]
        folder.keep_center_values(now)
        stages.notes += note_other_size(folder, num_ranks)
        folder.update({
            "settings": found.settings.as_dict(),
            "explanations": [str(choice) for choice in found.choices],
            "query_blocks": [[a, b.start, b.stop] for a, b in blocks],
            "solve_serial": serial,
            "hardware": hardware(solver.device),
        })  # fmt: skip
    if ranks is not None and folder is not None:
        ranks.announce(folder.manifest["token"])
        shared = Stages(folder, solver.device, since=time.perf_counter(), serial=serial)
        shares = share_systems(ranks, solver, blocks, shared)
        stages.notes += [note for share in shares for note in share.notes]
        folder.update({"ranks": [{"blocks": s.blocks, "seconds": s.seconds} for s in shares]})
    parts = {}
    for index, (kind, columns) in enumerate(blocks):
        parts[kind, columns.start] = stages.get(
            index, lambda kind=kind, columns=columns: solver.solve(kind, columns)
        )
        if show_progress and ranks is None:
            say([f"{solver.in_words(kind, columns)}: {stages.seconds:.1f} s"])
    stages.seconds /= num_ranks  # blocks were solved side by side
    last = len(problem.observables)
    queries = _joined([parts[place] for place in sorted(parts) if place[0] < last])
    own = _joined([parts[place] for place in sorted(parts) if place[0] == last])
    return _conclude(solver, found, queries, own, stages, identity=store.plain(asked))


def _joined(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return what blocks have, one after another; nothing of none."""
    found = {name: torch.cat([part[name] for part in parts]) for part in parts[:1] for name in part}
    if "sampling" in found:
        found["sampling"] = _for_all_columns(found["sampling"], found["scores"])
    return found


def _for_all_columns(errors: Tensor, scores: Tensor) -> Tensor:
    """Return errors `[K, N]` or `[K]`, in place of NaN what has the largest relative error of all.

    Such a row's errors are in proportion to the size of each column's scores.
    """
    flat, known = scores.double().view(len(scores), -1), errors.view(len(scores), -1).double()
    column = flat.square().mean(dim=0).sqrt().clamp(min=1e-300)
    size = (flat / column).square().mean(dim=1).sqrt().clamp(min=1e-300)
    relative = (known / column).square().mean(dim=1).sqrt() / size
    guessed = relative.nan_to_num(0).max() * size[:, None] * column
    return torch.where(known.isnan(), guessed, known).view_as(errors).to(errors)


def _conclude(
    solver: Solver,
    found: SolverCalibration,
    gathered: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    stages: Stages,
    *,
    identity: Mapping[str, object],
) -> Run:
    """Make a run of what was solved.

    Args:
        gathered: Of all query columns.
        own: Of all scored columns, on themselves; empty where that was not asked for.
    """
    import xarray as xr

    problem, s = solver.problem, found.settings
    dataset = _dataset(solver, gathered, own)
    axes = ("observable", "query")
    shape = (len(problem.observables), problem.num_queries)
    residual = gathered["residual"].reshape(shape).numpy()
    diagnostics = xr.Dataset(
        {
            "residual": (axes, residual),
            "solver_steps": (axes, gathered["steps"].reshape(shape).numpy()),
        }
    ).assign_coords(observable=dataset["observable"], query_id=dataset["query_id"])
    systems = [gathered, own] if own else [gathered]
    if own:
        diagnostics["self_influence_residual"] = ("train", own["residual"].numpy())
    worst = max(float(part["residual"].max()) for part in systems)
    steps = max(int(part["steps"].max()) for part in systems)
    gate = _residual_gate(worst, steps, s)
    summary = Summary(
        trusted=not gate.failed,
        seconds=stages.seconds,
        others={
            "estimator": "response", "curvature": s.solver_curvature, "damping": solver.damping,
            "solver_steps": steps, "largest_residual": worst,
            "truncation": _relative_size(gathered),
            **({"curvature_sampling": _relative_size(gathered, "sampling")}
               if "sampling" in gathered else {}),
            "damping_keeps": float(gathered["kept"].median()),
        },
    )  # fmt: skip
    center = solver.posterior.center
    manifest = Manifest(
        identity=identity,
        settings=s.as_dict(),
        explanations=[str(choice) for choice in found.choices],
        gates=[gate.as_dict()],
        warnings=[*([gate.as_warning] if gate.failed else []), *stages.notes],
        complete=True,
        versions={"bif": __version__, **versions()},
        hardware=hardware(solver.device),
        device=str(solver.device),
        num_train=problem.num_train,
        num_queries=problem.num_queries,
        num_moving_weights=solver.posterior.num_moving,
        num_weights=sum(leaf.numel() for leaf in problem.parameters().values()),
        weight_types=sorted({str(x.dtype).removeprefix("torch.") for x in center.values()}),
        panels=asdict(Panels.of(problem)),
    )
    return Run(Influence(dataset), LossTraces(()), diagnostics, summary, manifest)


def _dataset(
    solver: Solver, gathered: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> xr.Dataset:
    problem, observer = solver.problem, solver.observer
    unknown = torch.full((len(problem.scored_ids),), float("nan"))
    covariance = Covariance(
        value=-gathered["scores"],
        standard_error=_standard_error(gathered),
        row_variance=torch.full_like(observer.query_center, float("nan")),
        row_mean=observer.query_center,
        column_variance=-own["scores"] if own else unknown,
        column_variance_error=_error_of_own(own) if own else unknown,
        column_mean=observer.train_center,
        num_groups=2,
    )
    axes = score_axes(problem, solver.nbeta)
    dataset = influence_dataset(covariance, axes, num_chains=0, num_draws=0)
    dataset = describe_items(dataset, problem, observer).assign_attrs(
        estimator="response", sign=SIGN_OF_SOLVED, curvature=solver.settings.solver_curvature,
        gamma=solver.settings.gamma, complete=1,
        error_quantile=_ERRORS,
    )  # fmt: skip
    dataset["correlation"] = dataset["correlation"] * np.nan  # without a spread there is none
    return dataset


def _residual_gate(worst: float, steps: int, settings: Settings) -> Gate:
    """Return the gate of the residual: a tenth, what was asked for, or 1 where steps were."""
    asked = 1.0 if settings.solver_steps else 2 * (settings.solver_residual or 0.0)
    limit = max(_GATE, asked)
    failed = not worst <= limit
    name = curvature_in_words(settings.solver_curvature or "gauss_newton")
    reason = (
        f"the largest residual of a system is {worst:.2g} of its gradient after "
        f"{steps} products with the {name}: raise gamma, or give fewer solver_steps to stop early "
        "on purpose"
    )
    return Gate("residual", worst, limit, failed, reason if failed else "")


def _standard_error(gathered: Mapping[str, Tensor]) -> Tensor:
    """Return the errors of scores, `[A·Q, N]` float64.

    For stopping early: what the scores moved since an earlier step, times what is left of the
    residual since.  For a curvature of some of the items: that of the jackknife.  Both have the
    right size in each row, but for single scores are by chance too small.  So none is below its
    row's mean square, in units of how large its column's scores are.
    """
    scores = gathered["scores"].double()
    column = scores.square().mean(dim=0, keepdim=True).sqrt().clamp(min=1e-300)
    squares = torch.zeros_like(scores)
    for name in ("change", "sampling"):
        if name in gathered:
            error = gathered[name].double()
            row = (error / column).square().mean(dim=1, keepdim=True).sqrt()
            squares += torch.maximum(error, row * column).square()
    return squares.sqrt()


def _error_of_own(own: Mapping[str, Tensor]) -> Tensor:
    """Return the errors of self-influence, `[N]` float64: as of scores, none below their size."""
    scores = own["scores"].double().abs()
    squares = torch.zeros_like(scores)
    for name in ("change", "sampling"):
        if name in own:
            error = own[name].double()
            relative = (error / scores.clamp(min=1e-300)).square().mean().sqrt()
            squares += torch.maximum(error, relative * scores).square()
    return squares.sqrt()


def _relative_size(gathered: Mapping[str, Tensor], name: str = "change") -> float:
    """Return errors, for stopping early by default, relative to the size of the scores."""
    change, scores = gathered[name].double(), gathered["scores"].double()
    return float(change.square().mean().sqrt() / scores.square().mean().sqrt().clamp(min=1e-300))
