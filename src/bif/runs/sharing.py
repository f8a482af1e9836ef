"""Share a run between ranks: the same on all, blocks dealt among them, results made by rank 0."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bif import store
from bif.calibration.measured_mass import make_engine
from bif.calibration.solving import resume_solver
from bif.linear_response.solver import Block, Solver
from bif.linear_response.vectors import Vectors
from bif.problem.array_layout import Panels
from bif.problem.problem import Problem
from bif.problem.provenance import hardware, source_fingerprint, versions
from bif.runs.anchoring import make_anchoring
from bif.runs.recording import Context, Recording, Share
from bif.runs.records import is_solved
from bif.runs.response_stages import Stages
from bif.runs.resumption import chosen_before, refuse_other_losses, refuse_other_values
from bif.runs.retention import Keep
from bif.runs.writer import Writer
from bif.sampling.engine import Engine
from bif.sampling.factory import run_device
from bif.sampling.settings import RunSettings, Settings
from bif.sampling.whole_model import WHOLE

if TYPE_CHECKING:
    from bif.mesh import Ranks


def refuse_different(
    ranks: Ranks, problem: Problem, settings: Settings, manifest: Mapping[str, Any]
) -> None:
    """Raise on every rank where one would make another run than rank 0.

    Args:
        ranks: All of them call this.
        problem: This rank's.
        settings: As they were asked for.
        manifest: Identity, keep and top of the run that this rank was asked for.

    Raises:
        ValueError: Ranks differ in code, data, settings or versions, or share a GPU.
    """
    asked = store.plain({
        **manifest, "versions": versions(), "version of bif": source_fingerprint(),
    })  # fmt: skip
    device = run_device(problem, settings)
    place = ""
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        place = f"cuda:{number} of {socket.gethostname()}"
    everyone = ranks.gather((asked, place))
    for rank, (theirs, _) in enumerate(everyone):
        named = [n.removeprefix("identity.") for n in store.differences(everyone[0][0], theirs)]
        if named:
            raise ValueError(
                f"rank {rank} was asked for another run than rank 0, with another "
                f"{store.in_words(named)}: start all ranks with the same code, data, settings and "
                "versions."
            )
    places = [place for _, place in everyone if place]
    if len(set(places)) < len(places):
        raise ValueError(
            f"ranks share a GPU ({', '.join(places)}): set device='cuda' or leave it out, which is "
            "each rank's own, and start as many ranks as there are GPUs."
        )


def refuse_shards(settings: Settings, ranks: Ranks | None, keep: Keep) -> None:
    """Raise where a model is to be split among ranks that are not there, or to be kept whole.

    Raises:
        ValueError: It is.
    """
    if settings.shards == 1:
        return
    if ranks is None or ranks.size % settings.shards:
        there = f"{ranks.size} ranks are no whole groups" if ranks else "there are no ranks"
        raise ValueError(
            f"shards={settings.shards} split a model among as many ranks, and {there}: start a "
            f"multiple of {settings.shards}, as torchrun --nproc-per-node {settings.shards} does."
        )
    if keep == "weights":
        raise ValueError(
            f"keep='weights' keeps whole weights of every draw, and shards={settings.shards} split "
            "them: use keep='traces'."
        )
    settings.require_steps()


def refuse_uneven(num_ranks: int, chains: int | None, block_size: int | None) -> None:
    """Raise where blocks of chains cannot be dealt evenly; open settings pass.

    Raises:
        ValueError: They cannot.
    """
    if chains is None or block_size is None:
        return
    blocks = -(-chains // block_size)
    if blocks % num_ranks:
        raise ValueError(
            f"{chains} chains in blocks of {block_size} are {blocks} blocks, and {num_ranks} "
            "ranks cannot take as many each: choose chains and block_size whose blocks are a "
            f"multiple of {num_ranks}, or leave block_size out."
        )


def note_other_size(folder: store.RunFolder, num_ranks: int) -> list[str]:
    """Return the note of a run that was begun by another number of ranks; enter the number."""
    before = folder.manifest.get("num_ranks")
    if before == num_ranks or (before is None and num_ranks == 1):
        return []
    folder.update({"num_ranks": num_ranks})
    if before is None and not folder.manifest.get("blocks"):
        return []
    return [
        f"the run was begun by {before or 1} ranks and goes on with {num_ranks}: its blocks stay "
        "as they are, and so do their draws"
    ]


def share_chains(ranks: Ranks, context: Context, *, show_progress: bool = False) -> list[Share]:
    """Sample this rank's blocks of chains into the folder; return every rank's share.

    Raises:
        Preempted, KeyboardInterrupt: A signal came; everything so far has been committed.
        RankFailed: Another rank has ended.
    """
    with ranks.sharing():
        recording = Recording(replace(context, shards=ranks.shards or WHOLE))
        recording.run(show_progress=show_progress, indices=ranks.deal(len(context.blocks)))
        if recording.interrupted:
            raise KeyboardInterrupt(recording.progress_in_words())
        context.writer.wait()
        mine = [context.blocks.index(r.chains) for r in recording.recorders]
        return ranks.gather(
            Share(mine, recording.seconds, recording.seconds_before, tuple(recording.notes))
        )


def share_systems(ranks: Ranks, solver: Solver, blocks: list[Block], stages: Stages) -> list[Share]:
    """Solve this rank's blocks of queries into the folder; return every rank's share.

    Raises:
        RankFailed: Another rank has ended.
    """
    with ranks.sharing():
        mine = list[int]()
        for index in ranks.deal(len(blocks)):
            stages.get(index, lambda block=blocks[index]: solver.solve(*block))
            mine.append(index)
        return ranks.gather(Share(mine, stages.seconds, notes=tuple(stages.notes)))


def even_rows(vectors: Vectors, num_queries: int, num_ranks: int) -> Vectors:
    """Return vectors of so few queries together that every rank has some.

    Raises:
        ValueError: There are fewer queries than ranks.
    """
    if num_queries < num_ranks:
        raise ValueError(
            f"{num_queries} queries cannot be dealt to {num_ranks} ranks: start fewer ranks."
        )
    most = -(-num_queries // num_ranks)
    rows, scored = min(vectors.num_rows, most), min(vectors.num_scored, most)
    return replace(vectors, num_rows=rows, num_scored=scored if scored > rows else 0)


def assist(ranks: Ranks, problem: Problem, where: str | Path, *, commit_every: float) -> None:
    """Take part in the runs that rank 0 announces, until it announces none.

    Raises:
        FolderInUse: The folder is not rank 0's, or its run has other losses at w*.
        RankFailed: Another rank has failed.
    """
    engine: Engine | None = None
    while (told := ranks.hear()) is not None:
        if isinstance(told, RunSettings):
            engine = make_engine_together(ranks, problem, told)
            continue
        with store.share_run(where, told) as folder:
            if is_solved(folder.manifest):
                _assist_solver(ranks, problem, folder)
            else:
                _assist_chains(ranks, problem, folder, commit_every, engine)


def make_engine_together(ranks: Ranks | None, problem: Problem, settings: RunSettings) -> Engine:
    """Return a run's engine, of a split model together with the other ranks, which are told.

    Raises:
        ValueError: As `Engine`, on all ranks.
        RankFailed: Another rank has ended.
    """
    if ranks is None or ranks.shards is None:
        return make_engine(problem, settings)
    if ranks.is_first:
        ranks.announce(settings)
    with ranks.sharing():
        return make_engine(problem, settings, shards=ranks.shards)


def _assist_chains(
    ranks: Ranks, problem: Problem, folder: store.SharedRun, commit_every: float,
    engine: Engine | None,
) -> None:  # fmt: skip
    begun = chosen_before(folder, RunSettings)
    assert begun is not None
    engine = engine or make_engine(problem, begun[0])
    refuse_other_losses(folder, engine)
    blocks = [range(*b) for b in folder.manifest["blocks"]]
    keep, anchoring = folder.manifest["keep"], make_anchoring(engine)
    with Writer() as writer:
        context = Context(engine, keep, folder, commit_every, blocks, writer, anchoring=anchoring)
        share_chains(ranks, context)


def _assist_solver(ranks: Ranks, problem: Problem, folder: store.SharedRun) -> None:
    problem = problem.with_plain_losses()
    begun = chosen_before(folder, Settings)
    assert begun is not None
    found = resume_solver(problem, *begun)
    vectors = even_rows(found.vectors, problem.num_queries, ranks.size)
    solver = Solver(problem, found.settings, num_together=found.num_together, vectors=vectors)
    now = dict(zip(Panels.of(problem).names, solver.observer.center_values(), strict=True))
    same = folder.manifest.get("hardware") == hardware(solver.device)
    refuse_other_values(folder, now, same=same)
    blocks = [(kind, range(*edges)) for kind, *edges in folder.manifest["query_blocks"]]
    serial = folder.manifest["solve_serial"]
    stages = Stages(folder, solver.device, since=time.perf_counter(), serial=serial)
    share_systems(ranks, solver, blocks, stages)
