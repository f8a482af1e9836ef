"""Estimate the covariance of traces that memory does not hold, from the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bif import store
from bif.estimate.covariance import DEFAULT_GROUPS, Covariance, CovarianceSums
from bif.estimate.dataset import ScoreAxes, influence_dataset
from bif.estimate.sums import BlockSums
from bif.problem.array_layout import join_panels
from bif.results.influence import Influence
from bif.runs.cross_check import refuse_another
from bif.runs.item_metadata import score_axes
from bif.runs.records import Manifest, refuse_solved

if TYPE_CHECKING:
    from bif.mesh import Ranks
    from bif.problem.problem import Problem


def stream_covariance(
    folder: str | Path, *, num_groups: int = DEFAULT_GROUPS, ranks: Ranks | None = None
) -> Covariance:
    """Return the covariance of a run's traces, of which memory holds a chunk at a time.

    What `bif.estimate.estimate_covariance` returns of `bif.load(folder).traces`, to rounding;
    influence is its negative.  Each chunk of the store is read once.  Beside 5 numbers of 8 bytes
    for each pair of item and query column, each open group of chains takes one: blocks of a few
    chains have one or two open.

    Args:
        folder: A path or fsspec URL of a run with traces, ended or not.
        num_groups: Groups of chains for the standard error; at most the number of chains.
        ranks: Processes that stream some blocks each; all make this call and get the result.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: A run that was solved, is anchored, or keeps sums.
        DamagedRun: Traces are not what was written, or there are none.
    """
    place = store.folder_at(folder)
    return _stream(place, _streamable(place), num_groups=num_groups, ranks=ranks)


def stream_influence(
    folder: str | Path, problem: Problem | None = None, *, ranks: Ranks | None = None
) -> Influence:
    """Return minus the covariance of `stream_covariance`, with the names of items and queries.

    Args:
        folder: A path or fsspec URL of a run with traces, ended or not.
        problem: The run's own, for the names; needed where the run has no results yet.
        ranks: As for `stream_covariance`.

    Raises:
        FolderInUse: The run is of another problem.
        FileNotFoundError, ValueError, DamagedRun: As for `stream_covariance`; a run without results
            of which there is no problem.
    """
    place = store.folder_at(folder)
    found = _streamable(place)
    has_results = place.is_file(store.SUMMARY)
    if problem is not None:
        refuse_another(found["identity"], problem, str(folder))
        axes = score_axes(problem, found["settings"]["nbeta"])
    elif has_results:
        axes = ScoreAxes.of(store.load_dataset(place, name=store.INFLUENCE))
    else:
        raise ValueError(
            f"{place} has no results yet, and so no names of items and queries: pass its problem, "
            "such as FILE.py:FUNCTION."
        )
    covariance = _stream(place, found, ranks=ranks)
    blocks, num_chains = _surviving(place, found)
    draws = sum(len(kept) * block.commits()[0].draws for block, _, kept in blocks)
    dataset = influence_dataset(covariance, axes, num_chains=num_chains, num_draws=draws)
    # Only a run that has ended has been judged.
    trusted = has_results and bool(store.read_run(place)["summary"].get("trusted", True))
    return Influence(dataset.assign_attrs(trusted=int(trusted)))


def _streamable(place: store.Folder) -> dict[str, Any]:
    """Return the manifest of a run whose traces can be streamed; raise for any other."""
    if not store.RUN.holds(place):
        raise store.RUN.none_in(place)
    found = store.RUN.read(place)
    manifest = Manifest.read(found)
    refuse_solved(found, "streamed: it has no traces")
    if manifest.keep == "sums" or manifest.panels.get("anchored"):
        what = "keeps sums" if manifest.keep == "sums" else "is anchored, and is fitted as a whole"
        raise ValueError(f"{place} {what}: bif.load has its scores.")
    return found


def _stream(
    place: store.Folder, found: Mapping[str, Any], *, num_groups: int = DEFAULT_GROUPS,
    ranks: Ranks | None,
) -> Covariance:  # fmt: skip
    blocks, num_chains = _surviving(place, found)
    if num_chains < 2:
        raise store.DamagedRun(f"{place} has no two chains with two draws to estimate from.")
    totals = CovarianceSums()
    for index in ranks.deal(len(blocks)) if ranks else range(len(blocks)):
        block, chains, kept = blocks[index]
        sums = BlockSums(chains, num_chains=num_chains, num_groups=num_groups)
        for segment in block.segments(found["arrays"]):
            train, query = join_panels(segment)
            sums.update(train[kept], query[kept])
        for closed in sums.close({}):
            totals.add(closed)
    if ranks:
        mine, totals = totals, CovarianceSums()
        for part in ranks.each(mine):
            totals.merge(part)
    return totals.finish()


def _surviving(
    place: store.Folder, found: Mapping[str, Any]
) -> tuple[list[tuple[store.BlockStore, range, list[int]]], int]:
    """Return blocks with two draws, each with its chains among the survivors and their rows."""
    left_out, first = set(found.get("left_out", [])), 0
    explicit = found.get("chains")
    dealt = explicit or [list(range(*edges)) for edges in found.get("blocks", [])]
    blocks = []
    for index, chains in enumerate(dealt):
        block = store.BlockStore(place, index, token=found.get("token", ""))
        commits = block.commits()
        lost = set() if explicit else left_out | set(commits[0].diverged if commits else ())
        kept = [row for row, chain in enumerate(chains) if chain not in lost]
        if kept and commits and commits[0].draws >= 2:
            blocks.append((block, range(first, first + len(kept)), kept))
            first += len(kept)
    return blocks, first
