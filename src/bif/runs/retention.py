"""Decide what a run keeps, and forecast what that will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bif.estimate.covariance import DEFAULT_GROUPS
from bif.estimate.diagnostics import subsample
from bif.problem.array_layout import Panels
from bif.problem.problem import Problem
from bif.results.top_influence import BYTES_A_SCORE, MOST_SCORE_BYTES
from bif.runs.block_recorder import Subset
from bif.sampling.device_memory import memory_of_host
from bif.sampling.posterior import LocalPosterior
from bif.sampling.settings import Settings
from bif.terminal import as_bytes

Keep = Literal["traces", "sums", "weights"]
"""All losses; sums and the traces of a few items; or all losses and the weights of every draw."""
_BYTES_A_LISTED_SCORE = 4 * (3 * 8 + 4 * 4 + 8)
"""Bytes of a listed score: four lists, found in float64 and int64, kept in float32 and int64."""
_BYTES_A_SUMMED_SCORE = 5 * 8
"""Bytes of a score while groups of chains are summed: one group, and two compensated totals."""
_BYTES_A_STORED_SCORE = 4 * 4
"""Bytes of a score in the results: four numbers in float32."""
_BYTES_A_STORED_LISTED_SCORE = 4 * (4 * 4 + 8)
"""Bytes of a listed score in the results: four lists of as many, and where in int64."""
_ADDED_BYTES = 6 * 8 * 2**20
"""Bytes at most that an addition of sums of scores holds beside them, in parts of 2**20 pairs."""
ON_DISK = ("traces", "weights", "checkpoints", "results")
"""What of a forecast are files."""
_SUBSET_TRAIN = 256
"""Train columns whose traces stay where sums are kept, at most."""
_SUBSET_QUERY = 64
"""Query columns whose traces stay where sums are kept, at most."""


def subset_of(panels: Panels) -> Subset:
    """Return the columns whose traces stay for the diagnostics where sums are kept."""
    return Subset(
        subsample(sum(panels.train), _SUBSET_TRAIN),
        subsample(panels.num_observables * sum(panels.query), _SUBSET_QUERY, seed=1),
    )


def forecast(
    problem: Problem,
    posterior: LocalPosterior,
    settings: Settings,
    keep: Keep,
    *,
    top: int | None = None,
) -> dict[str, int]:
    """Return bytes by what they are for: `memory` of the host, and files before compression.

    Args:
        problem: What is attributed.
        posterior: Whose weights move.
        settings: Complete settings.
        keep: What is kept of the draws.
        top: Number of scores of each row that are kept either way, or None for all.
    """
    leaves = list(posterior.center.values())
    return recorded_bytes(
        rows=len(problem.observables) * problem.num_queries,
        columns=problem.num_scored,
        weights=settings.shards
        * sum(leaf.numel() * max(4, leaf.element_size()) for leaf in leaves),
        settings=settings,
        keep=keep,
        loss_bytes=max(4, leaves[0].element_size()),
        top=top,
    )


def recorded_bytes(
    *, rows: int, columns: int, weights: int, settings: Settings, keep: Keep, loss_bytes: int = 4,
    top: int | None = None,
) -> dict[str, int]:  # fmt: skip
    """Return bytes by what they are for, by sizes alone.

    Args:
        rows: A·Q, query columns of all observables.
        columns: N, scored items.
        weights: Bytes of the weights that move.
        settings: With chains and draws.
        keep: What is kept of the draws.
        loss_bytes: Bytes of a recorded number.
        top: Number of scores of each row that are kept either way, or None for all.

    Returns:
        Memory: `memory` of what is recorded, `scores` while they are estimated.  Files: `traces`,
        `weights`, `checkpoints`, `results`.
    """
    chains, draws = settings.chains or 0, settings.draws or 0
    recorded, sums, slopes = columns + rows, 0, 0
    if settings.estimator == "anchored":
        recorded, slopes = recorded + rows, chains * rows * columns * loss_bytes
    if keep == "sums":
        recorded = min(columns, _SUBSET_TRAIN) + min(rows, _SUBSET_QUERY)
        sums = 8 * rows * columns * min(chains, DEFAULT_GROUPS)
    traces = chains * draws * recorded * loss_bytes
    if top is None:
        pairs = rows * columns
        scores = _BYTES_A_SUMMED_SCORE * pairs + min(_ADDED_BYTES, 6 * 8 * pairs)
        results = _BYTES_A_STORED_SCORE * pairs
    else:
        scores = _BYTES_A_LISTED_SCORE * rows * min(top, columns)
        results = _BYTES_A_STORED_LISTED_SCORE * rows * min(top, columns)
    # The state of a block: weights and what the sampler keeps for each; two commits are kept.
    state = (1 + settings.traits.state_leaves) * chains * weights
    return {
        "memory": traces + sums + slopes,
        "traces": traces,
        "weights": chains * draws * weights if keep == "weights" else 0,
        "checkpoints": 2 * (state + sums + slopes),
        "results": results,
        "scores": scores,
    }


def refuse_vast_scores(problem: Problem, keep: Keep, *, top: int | None = None) -> None:
    """Raise where scores of tokens would take more than `MOST_SCORE_BYTES` all at once.

    Args:
        problem: A problem with tokens or without.
        keep: What is kept of the draws.
        top: Number of scores of each row that are kept either way, or None for all.

    Raises:
        ValueError: They would, with what to choose instead.
    """
    rows, columns = len(problem.observables) * problem.num_queries, problem.num_scored
    if top is not None:
        needed = _BYTES_A_LISTED_SCORE * rows * min(top, columns)
        if needed > MOST_SCORE_BYTES:
            raise ValueError(
                f"the {top:,} strongest scores either way of {rows:,} rows of queries would take "
                f"{as_bytes(needed)}, above {as_bytes(MOST_SCORE_BYTES)}: choose a smaller top."
            )
        return
    sums = 8 * DEFAULT_GROUPS if keep == "sums" else 0
    needed = (BYTES_A_SCORE + sums) * rows * columns
    if not problem.tokens and needed > memory_of_host():
        raise ValueError(
            f"scores of {columns:,} train items on {rows:,} rows of queries would take "
            f"{as_bytes(needed)}, and this machine has {as_bytes(memory_of_host())}: keep the "
            "strongest of each row only (top=10; --top 10), or choose fewer queries."
        )
    if not problem.tokens or needed <= MOST_SCORE_BYTES:
        return
    kind = "tokens" if problem.train_by_token else "items"
    strongest = "keep='traces' and top=10" if keep == "sums" else "top=10"
    raise ValueError(
        f"scores of {columns:,} train {kind} on {rows:,} rows of queries would take "
        f"{as_bytes(needed)}, above {as_bytes(MOST_SCORE_BYTES)}: keep the strongest of each row "
        f"only ({strongest}; --top 10), or choose fewer queries, or fewer of their tokens "
        "(token_mask), or whole items on one side (tokens='train' or 'query')."
    )


def refuse_vast_traces(problem: Problem, requested: Settings, keep: Keep) -> None:
    """Raise where what is recorded cannot be in the memory of this machine, before any is taken.

    Args:
        requested: Chains and draws that it leaves open are taken as one and two.

    Raises:
        ValueError: It cannot.
    """
    chains, draws = requested.chains or 1, requested.draws or 2
    rows = len(problem.observables) * problem.num_queries
    columns = problem.num_scored + (1 + (requested.estimator == "anchored")) * rows
    if keep == "sums":
        columns = min(columns, _SUBSET_TRAIN + _SUBSET_QUERY)
    needed = 4 * chains * draws * columns
    if needed > memory_of_host():
        raise ValueError(
            f"{chains:,} chains of {draws:,} draws of {columns:,} losses and observables would "
            f"take {as_bytes(needed)}, and this machine has {as_bytes(memory_of_host())}: choose "
            "fewer chains or draws, or keep='sums'."
        )


def in_words(sizes: Mapping[str, int], *, on_disk: bool) -> list[str]:
    """Return the forecast as lines of text."""
    lines = [
        f"memory of the host for what is recorded: {as_bytes(sizes['memory'])}, and for scores "
        f"at the end {as_bytes(sizes['scores'])}"
    ]
    if on_disk:
        files = [f"{name} {as_bytes(sizes[name])}" for name in ON_DISK if sizes[name]]
        lines.append(f"on disk, before compression: {', '.join(files)}")
    return lines
