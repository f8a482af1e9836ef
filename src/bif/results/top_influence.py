"""Make the dataset of a run that keeps only the top k scores of every query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bif.estimate.dataset import ScoreAxes, axes_dataset
from bif.estimate.top_k import Strongest, strongest_influences
from bif.estimate.traces import LossTraces
from bif.terminal import as_bytes

if TYPE_CHECKING:
    import torch
    import xarray as xr

MOST_SCORE_BYTES = 8 * 2**30
"""Bytes of the scores of tokens at most, while they are estimated all at once."""
BYTES_A_SCORE = 56
"""Bytes a score: four float32 views, a float64 covariance, and two compensated float64 totals."""
KINDS, SIDES = ("certain", "strongest"), ("positive", "negative")
KIND_AXES = ("kind", "side", "rank")
_AXES = ("observable", "query", *KIND_AXES)


def top_k_dataset(
    traces: LossTraces,
    top: int,
    axes: ScoreAxes,
    *,
    device: torch.device | None = None,
) -> xr.Dataset:
    """Return the strongest influences of every query, in O(Q·top + N) besides the traces.

    Args:
        traces: Query columns observable-major, `[C, D, A·Q]`.
        top: Train columns either way.
        axes: Names of rows and columns.
        device: Device of the arithmetic.

    Returns:
        `influence`, `derivative`, `correlation`, `standard_error` and `column`, the position on the
        axis `train`, on (`observable`, `query`, `kind`, `side`, `rank`), strongest first: `kind`
        "certain" has those whose sign is certain at 95 %, "strongest" all; NaN and -1 where there
        are fewer.  Means and self-influence on the axes they have.
    """
    found = strongest_influences(traces, top, device=device)
    dataset = axes_dataset(found, axes, num_chains=traces.num_chains, num_draws=traces.total_draws)
    shape = (dataset.sizes["observable"], dataset.sizes["query"], len(KINDS), len(SIDES))

    def place(name: str) -> np.ndarray:
        """Return `[A, Q, kind, side, rank]` of the four lists `[A·Q, rank]`."""
        kinds: list[tuple[Strongest, Strongest]] = [found.certain, found.strongest]
        lists = [getattr(side, name).numpy() for sides in kinds for side in sides]
        return np.stack(lists, axis=1).reshape(*shape, -1)

    column, influence = place("column"), place("influence")
    scale = found.row_variance.sqrt().numpy().reshape(*shape[:2], 1, 1, 1)
    scale = scale * found.column_variance.sqrt().numpy()[column]
    correlation = np.divide(influence, scale, out=0.0 * influence, where=scale > 0)
    values = {
        "influence": influence,
        "derivative": axes.scale * influence,
        "correlation": correlation,
        "standard_error": place("standard_error"),
    }
    return dataset.assign(
        {name: (_AXES, x.astype(np.float32)) for name, x in values.items()} | {
            "column": (_AXES, column)
        }
    ).assign_coords(kind=list(KINDS), side=list(SIDES))  # fmt: skip


def refuse_vast_sums(num_rows: int, num_columns: int) -> None:
    """Raise where that many sums of scores would take more than `MOST_SCORE_BYTES` all at once."""
    needed = BYTES_A_SCORE * num_rows * num_columns
    if needed > MOST_SCORE_BYTES:
        raise ValueError(
            f"{num_columns:,} sums over train columns on {num_rows:,} rows of queries would take "
            f"{as_bytes(needed)}, above {as_bytes(MOST_SCORE_BYTES)}: sum over both sides "
            "(by_item('both')), or choose some rows and columns first with "
            "part(query=…, train=…)."
        )
