"""Susceptibilities: how observables respond to shifts of the training data, by component and order.

The influence of an item is the susceptibility to its weight.  All of it comes from the draws of
runs that are there, without retraining.
"""

from bif.susceptibility.clusters import ContextClusters, context_clusters
from bif.susceptibility.components import (
    SusceptibilityMatrix,
    component_runs,
    susceptibility_matrix,
)
from bif.susceptibility.directions import PrincipalDirections, principal_directions
from bif.susceptibility.expansion import predicted_change, susceptibilities
from bif.susceptibility.generalisation import generalisation
from bif.susceptibility.interactions import group_additivity, third_cumulants
from bif.susceptibility.learning_coefficient import LearningCoefficient, learning_coefficient
from bif.susceptibility.shifts import Shifts, group_shifts, weight_shifts
from bif.susceptibility.steering import Steering, steer

__all__ = [
    "ContextClusters",
    "LearningCoefficient",
    "PrincipalDirections",
    "Shifts",
    "Steering",
    "SusceptibilityMatrix",
    "component_runs",
    "context_clusters",
    "generalisation",
    "group_additivity",
    "group_shifts",
    "learning_coefficient",
    "predicted_change",
    "principal_directions",
    "steer",
    "susceptibilities",
    "susceptibility_matrix",
    "third_cumulants",
    "weight_shifts",
]
