"""Combine sampled scores with their linear parts by empirical Bayes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def shrunk_to_linear(dataset: xr.Dataset) -> xr.Dataset:
    """Return scores `linear + kappa·(influence - linear)`, with kappa of every query.

    `kappa = τ² / (τ² + σ²)` is the least-squares combination where corrections have the variance τ²
    over items and errors the variance σ²: `σ² = mean(error²)`, and `τ² = mean(correction²) - σ²`, 0
    at least.  Errors fall by kappa; they are of the sampled part, and leave out that scores are
    drawn towards their linear parts.

    Args:
        dataset: Scores of a run with `estimator="anchored"`, or with `linear` on (`observable`,
            `query`, `train`), such as a response at the same nbeta and gamma.

    Returns:
        The scores, with `kappa` on (`observable`, `query`).

    Raises:
        KeyError: There are no linear parts.

    Source: James and Stein 1961; Efron and Morris 1973.
    """
    if "linear" not in dataset:
        raise KeyError(
            "these scores have no linear part to be drawn to: attribute with "
            "Settings(estimator='anchored')."
        )
    correction = dataset["influence"] - dataset["linear"]
    noise = (dataset["standard_error"] ** 2).mean("train")
    total = (correction**2).mean("train")
    kappa = ((total - noise) / total.where(total > 0)).clip(min=0).fillna(0.0)
    score = dataset["linear"] + kappa * correction
    scale = np.float32(float(dataset.attrs["nbeta"]) / float(dataset.attrs["num_train"]))
    like = dataset["influence"]
    return dataset.assign(
        influence=(like.dims, score.transpose(*like.dims).values.astype(like.dtype)),
        derivative=(like.dims, (scale * score).transpose(*like.dims).values.astype(like.dtype)),
        standard_error=kappa * dataset["standard_error"],
        kappa=kappa,
    )
