"""Say what anchors did for a run: linear parts, what they leave, and what draws are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bif.estimate.anchored import fit_anchors
from bif.estimate.covariance import DEFAULT_GROUPS, estimate_covariance
from bif.estimate.diagnostics import subsample
from bif.estimate.traces import LossTraces
from bif.runs.recording import Recording

if TYPE_CHECKING:
    import xarray as xr

_COLUMNS = 256
"""Train columns by which the draws are valued, at most."""
_MISSES = 0.9
"""Share of an observable's variance that its anchor leaves, from which on it does not fit."""


def with_linear_part(
    dataset: xr.Dataset, recording: Recording, traces: LossTraces
) -> tuple[xr.Dataset, dict[str, Any], list[str]]:
    """Return scores with their linear parts, figures for the summary, and warnings.

    `linear` is the classical influence `-g_i·(∇²U)⁻¹·g_phi` at the minimum of U; what `influence`
    has beyond it was sampled.  `variance_left` is the share of the observable's variance that the
    anchor leaves, and `effective_draws` how many draws without anchors have as small errors.

    Args:
        dataset: Scores of the traces.
        recording: With anchors.
        traces: Of the surviving chains.
    """
    anchoring = recording.context.anchoring
    assert anchoring is not None
    linear = anchoring.anchors.linear.reshape(dataset["influence"].shape).numpy()
    dataset = (
        dataset.assign(linear=(dataset["influence"].dims, linear))
        .assign(what_anchors_leave(traces, dataset))
        .assign_attrs(estimator="anchored")
    )
    left, worth = dataset["variance_left"].values, dataset["effective_draws"].values
    taken = [r.slopes.count for r in recording.recorders if r.slopes is not None]
    figures = {
        "estimator": "anchored",
        "variance_left": float(np.nanmedian(left)) if np.isfinite(left).any() else float("nan"),
        "effective_draws": float(np.median(worth)),
        "slopes": int(np.mean(taken)) if taken else 0,
        "anchor_residual": float(anchoring.anchors.residual.max()),
    }
    warnings = []
    if np.mean(left > _MISSES) > 0.5:
        warnings.append(
            f"the anchors leave {figures['variance_left']:.0%} of the observables' variance: they "
            "do not fit, and scores are no better than plain covariances. Raise gamma or nbeta, "
            "where losses are closer to linear, or use estimator='covariance'"
        )
    s = recording.context.engine.settings
    if s.gradient != "full":
        warnings.append(
            f"anchors with gradient={s.gradient!r}: chains that mini-batches drive sample another "
            f"law, and the anchors leave {figures['variance_left']:.0%} of the variance"
        )
    return dataset, figures, warnings


def what_anchors_leave(traces: LossTraces, dataset: xr.Dataset) -> dict[str, Any]:
    """Return `variance_left` and `effective_draws` of every query, as variables of a dataset.

    Args:
        traces: With anchors.
        dataset: Of their scores.
    """
    axes = ("observable", "query")
    shape = tuple(dataset.sizes[name] for name in axes)
    left = fit_anchors(traces, DEFAULT_GROUPS).variance_left.cpu().numpy()
    found = {"variance_left": left, "effective_draws": effective_draws(traces)}
    return {name: (axes, values.reshape(shape)) for name, values in found.items()}


def effective_draws(traces: LossTraces) -> np.ndarray:
    """Return, for each query column, the draws whose plain covariances have as small errors, `[R]`.

    Args:
        traces: With anchors.
    """
    first = traces.blocks[0]
    few = traces.selected(
        train=subsample(first.train.shape[2], _COLUMNS), query=np.arange(first.query.shape[2])
    )
    squares = [
        estimate_covariance(part).standard_error.square().mean(dim=1).clamp(min=1e-300)
        for part in (few.without_anchors(), few)
    ]
    return (traces.total_draws * squares[0] / squares[1]).cpu().numpy()
