"""Make one run of several of the same problem with seeds of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bif import store
from bif.estimate.dataset import ScoreAxes, estimate_influence
from bif.estimate.diagnostics import diagnose
from bif.estimate.traces import LossTraces
from bif.results.influence import Influence
from bif.results.top_influence import top_k_dataset
from bif.runs.linear_part import what_anchors_leave
from bif.runs.records import Manifest, refuse_solved
from bif.runs.run import Run, load
from bif.runs.summary import figures_of, judge

_MAY_DIFFER = {"settings.seed", "settings.chains", "settings.draws", "settings.device"}
"""Entries of the identity that may differ between the runs."""
_OF_MACHINE = {"block_size", "chunk_size", "oracle", "compiled"}
"""Settings that follow from the machine and leave the posterior as it is."""


def merge(folders: Sequence[str | Path]) -> Run:
    """Put the chains of several runs together, as if one run had had them all.

    The runs must be of one problem and one posterior, with the same steps between draws, and have
    different seeds.  The result is in memory; `save` writes it.

    Args:
        folders: At least two complete runs that keep traces.

    Raises:
        ValueError: Fewer than two; equal seeds; a run that keeps sums; different `top`.
        FolderInUse: Runs of another problem or other settings, with the difference named.
        FileNotFoundError, DamagedRun: A run that cannot be read.
    """
    if len(folders) < 2:
        raise ValueError(
            f"merging takes two runs or more, got {len(folders)}: pass the folders of at least two."
        )
    runs = [load(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        _refuse_unfit(str(folder), run, str(folders[0]), runs[0])
    for run in runs:
        refuse_solved(run.manifest, "merged: it has no chains, and another seed gives the same")
    seeds = [run.manifest.settings["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"the runs have the seeds {seeds}: equal seeds give the same draws, which would be "
            "counted twice. Give every run a --seed of its own."
        )
    tops = [run.manifest.top for run in runs]
    if len(set(tops)) > 1:
        raise ValueError(
            f"the runs were made with top {', '.join(map(str, tops))}: give every run the same "
            "--top, or none."
        )
    traces = _renumber([run.traces for run in runs])
    first = runs[0].influence.dataset
    axes, top = ScoreAxes.of(first), tops[0]
    scores = estimate_influence(traces, axes) if top is None else top_k_dataset(traces, top, axes)
    scores = scores.merge(first.drop_vars([n for n in scores.variables if n in first.variables]))
    if traces.anchored:
        scores = scores.assign(what_anchors_leave(traces, scores))
    complete = all(run.manifest.complete for run in runs)
    scores.attrs = {**first.attrs, **scores.attrs, "complete": int(complete)}
    diagnostics = diagnose(traces, center_mean_loss=float(runs[0].diagnostics["center_mean_loss"]))
    seconds = sum(run.summary.seconds for run in runs)
    thin = int(runs[0].manifest.settings["thin"])
    figures = figures_of(traces, diagnostics, thin=thin, seconds=seconds)
    judged = judge(traces, figures)
    summary = replace(
        figures,
        trusted=judged.trusted and all(run.summary.trusted for run in runs),
        complete=complete,
        others={**judged.figures, "merged_runs": len(runs)},
    )
    earlier = [
        f"seed {seed}: {warning}"
        for seed, run in zip(seeds, runs, strict=True)
        for warning in run.manifest.warnings
    ]
    manifest = replace(
        _joint_manifest(runs, seeds),
        gates=[gate.as_dict() for gate in judged.gates],
        warnings=[*judged.reasons, *judged.warnings, *earlier],
    )
    return Run(Influence(scores, traces), traces, diagnostics, summary, manifest)


def _refuse_unfit(name: str, run: Run, first_name: str, first: Run) -> None:
    if run.manifest["keep"] == "sums":
        raise ValueError(f"{name} keeps sums: merging needs traces, of --keep traces or weights.")
    named = [
        difference
        for difference in store.differences(first.manifest["identity"], run.manifest["identity"])
        if difference not in _MAY_DIFFER
    ]
    chosen, other = (
        {f"settings.{n}": v for n, v in r.manifest["settings"].items() if n not in _OF_MACHINE}
        for r in (first, run)
    )
    named += [n for n in chosen if chosen[n] != other.get(n) and n not in {*_MAY_DIFFER, *named}]
    if named:
        raise store.FolderInUse(
            f"{name} is another run than {first_name}, with another {store.in_words(named)}: "
            "only runs of one problem and one posterior can be merged."
        )


def _renumber(runs: Sequence[LossTraces]) -> LossTraces:
    """Return all blocks, with their chains numbered from 0 on."""
    blocks, count = [], 0
    for traces in runs:
        for block in traces.blocks:
            chains = tuple(range(count, count + len(block.chains)))
            blocks.append(replace(block, chains=chains))
            count += len(chains)
    return LossTraces(tuple(blocks))


def _joint_manifest(runs: Sequence[Run], seeds: Sequence[int]) -> Manifest:
    """Return what the first run says of all, with every seed and chain."""
    first = runs[0].manifest
    identity, settings = dict(first.identity), {**first.settings, "seed": list(seeds)}
    identity["settings"] = {**identity["settings"], "seed": list(seeds)}
    settings["chains"] = sum(run.traces.num_chains for run in runs)
    return replace(
        first,
        keep="traces",
        identity=identity,
        settings=settings,
        complete=all(run.manifest.complete for run in runs),
        forecast=(),
        left_out=(),
        others={},
    )
