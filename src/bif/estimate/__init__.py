"""Estimate influence from loss traces, with errors, and how far to trust it."""

from bif.estimate.covariance import (
    ClosedGroup,
    Covariance,
    CovarianceSums,
    GroupSums,
    estimate_covariance,
)
from bif.estimate.dataset import ScoreAxes, estimate_influence, influence_dataset, summed_influence
from bif.estimate.diagnostics import convergence, diagnose, reliability, reliability_by_draws
from bif.estimate.sums import BlockSums
from bif.estimate.top_k import (
    Strongest,
    StrongestInfluences,
    TopInfluences,
    strongest_influences,
    top_influences,
)

__all__ = [
    "BlockSums",
    "ScoreAxes",
    "ClosedGroup",
    "Covariance",
    "CovarianceSums",
    "GroupSums",
    "Strongest",
    "StrongestInfluences",
    "TopInfluences",
    "convergence",
    "diagnose",
    "estimate_covariance",
    "estimate_influence",
    "influence_dataset",
    "reliability",
    "reliability_by_draws",
    "strongest_influences",
    "summed_influence",
    "top_influences",
]
