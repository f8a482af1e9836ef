"""Attribute at every checkpoint of a series: from a problem to a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bif import store
from bif.calibration.default_estimator import for_chains
from bif.calibration.temperature import distance_from_minimum
from bif.linear_response.solver import sampling_settings
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.problem.series import CheckpointSeries, Stage, stage_problem
from bif.runs.attribute import attribute
from bif.runs.run import Run
from bif.sampling.settings import Settings, as_settings
from bif.stages.common_settings import common_settings
from bif.stages.result import Trajectory, joined, with_second
from bif.terminal import say

_FAR = 2.0
"""Squared gradient at a checkpoint, in units of its noise, above which it is no minimum."""


Groups = Sequence[str] | Mapping[str, Sequence[int]]
"""A group name for every item, or group names to positions."""


def trajectory(
    problem: Problem,
    series: CheckpointSeries,
    settings: Settings | None = None,
    *,
    groups: Groups | None = None,
    query_groups: Groups | None = None,
    second_gamma: float | None = None,
    out: str | Path | None = None,
    share: tuple[int, int] | None = None,
    show_progress: bool = False,
) -> Trajectory:
    """Return influence over the checkpoints of a training.

    Every checkpoint is run with the same items, nbeta, gamma and random numbers.  With `out` each
    has a run's folder there, and the same call goes on where it stopped.  Checkpoints that cannot
    be used, such as those of another model, are named in the notes.

    Args:
        problem: Model, loss, items, queries and observables; the model's own weights play no part.
        series: The checkpoints.
        settings: Of every run.  By default the response by solving: with the Gauss-Newton matrix
            it is defined far from a minimum too, and without noise.
        groups: Sums over groups of train items in the place of items.
        query_groups: Sums over groups of queries in the place of queries.
        second_gamma: Factor on gamma of a second pass over all checkpoints: events are those that
            stay, since what one gamma shows alone is an artefact of it.
        out: A path or fsspec URL; in memory only if None.
        share: (k, n): carry out only every n-th checkpoint from the k-th on and return these, for
            calls side by side with the same `out`; the same call without it joins them.
        show_progress: Print what is chosen and which checkpoint is done.

    Raises:
        ValueError: Fewer than two checkpoints of the problem's model; a share without `out`; as
            `attribute`.
        FolderInUse: `out` holds another series, or has another writer.

    Source: Lee et al. 2025, arXiv 2510.12071.
    """
    usable, requested = series.usable(problem), _with_estimator(as_settings(settings))
    _require_share(share, out, len(usable.stages))
    with _opened(problem, usable, requested, out, alone=share is None) as folder:
        chosen, reasons = _chosen(problem, usable, requested, folder, show_progress=show_progress)

        def scored(chosen: Settings, *, second: bool = False) -> Trajectory:
            parts, facts = [], []
            for stage in usable.stages if share is None else usable.stages[share[0] :: share[1]]:
                there = stage_problem(problem, stage)
                place = None if folder is None else folder.run(stage.name, second=second)
                run = attribute(there, chosen, out=place)
                scores = run.influence
                if groups is not None or query_groups is not None:
                    scores = scores.sum_over(groups, query_groups=query_groups)
                parts.append(scores.dataset)
                facts.append(_facts(stage, run, there))
                if show_progress:
                    say([_in_words(stage, run, chosen if second else None)])
            left_out = [f"left out: {name}: {why}" for name, why in usable.unusable.items()]
            return joined(parts, facts, notes=[*left_out, *reasons, *_far(facts)])

        found = scored(chosen)
        if second_gamma is not None:
            assert chosen.gamma is not None
            other = replace(chosen, gamma=second_gamma * chosen.gamma)
            found = with_second(found, scored(other, second=True))
        if folder is not None and share is None:
            found.save(folder.replace_trajectory())
            folder.write_report(found.render())
        return found


def choose_in_common(
    problem: Problem,
    series: CheckpointSeries,
    settings: Settings | None = None,
    *,
    out: str | Path,
    show_progress: bool = False,
) -> None:
    """Choose what all runs of `trajectory` have in common and keep it, before shares begin."""
    usable, requested = series.usable(problem), _with_estimator(as_settings(settings))
    with _opened(problem, usable, requested, out) as folder:
        _chosen(problem, usable, requested, folder, show_progress=show_progress)


@contextmanager
def _opened(
    problem: Problem, usable: CheckpointSeries, requested: Settings, out: str | Path | None,
    *, alone: bool = True,
) -> Iterator[store.StagesFolder | None]:  # fmt: skip
    if out is None:
        yield None
        return
    asked = identity(problem, requested.as_dict())
    asked["weights"] = {str(stage.step): stage.name for stage in usable}
    with store.open_stages(out, asked, alone=alone) as folder:
        yield folder


def _require_share(share: tuple[int, int] | None, out: str | Path | None, count: int) -> None:
    if share is None:
        return
    if out is None:
        raise ValueError("a share of the checkpoints needs out, where the other shares are.")
    if not 0 <= share[0] < share[1] <= count:
        raise ValueError(
            f"share must be (k, n) with 0 <= k < n, and n at most the {count} checkpoints, "
            f"got {share}."
        )


def _in_words(stage: Stage, run: Run, second: Settings | None) -> str:
    verdict = "" if run.summary.trusted else f", NOT TRUSTED ({run.failed_gates})"
    where = "" if second is None else f" with gamma {second.gamma:.4g}"
    return f"{stage.name}{where}: {run.summary.seconds:.1f} s{verdict}"


def _with_estimator(settings: Settings) -> Settings:
    """Return settings that name an estimator: the response, unless they speak of chains."""
    if settings.estimator is not None:
        return settings
    return replace(settings, estimator="covariance" if for_chains(settings) else "response")


def _chosen(
    problem: Problem, series: CheckpointSeries, requested: Settings,
    folder: store.StagesFolder | None, *, show_progress: bool,
) -> tuple[Settings, Sequence[str]]:  # fmt: skip
    """Return the settings of every run, of an earlier call if there was one, and the reasons."""
    if folder is not None and folder.chosen is not None:
        return Settings.from_dict(folder.chosen["settings"]), folder.chosen["explanations"]
    tell = say if show_progress else None
    chosen, reasons = common_settings(problem, series.stages, requested, tell=tell)
    if folder is not None:
        folder.keep({"settings": chosen.as_dict(), "explanations": reasons})
    return chosen, reasons


def _facts(stage: Stage, run: Run, there: Problem) -> dict[str, Any]:
    rhat, away = run.summary.rhat_max, run.summary.others.get("center_gradient")
    if away is None:
        solved = sampling_settings(Settings.from_dict(run.manifest.settings))
        away = distance_from_minimum(there.with_plain_losses(), solved)
    return {
        "step": stage.step, "name": stage.name, "trusted": bool(run.summary.trusted),
        "rhat": np.nan if rhat is None else float(rhat),
        "error_quantile": float(run.influence.error_quantile), "center_gradient": float(away),
    }  # fmt: skip


def _far(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note on checkpoints that are far from a minimum, if any is."""
    names = [fact["name"] for fact in facts if fact["center_gradient"] > _FAR]
    if not names:
        return []
    return [
        f"{len(names)} of {len(facts)} checkpoints are far from a minimum, such as {names[0]}: "
        "influence there is that of draws held near the checkpoint, not of networks that were "
        "trained to the end"
    ]
