"""Masses: coordinates in which the posterior is round, so that chains forget in few steps."""

from bif.mass.kronecker import KroneckerMass
from bif.mass.measured import measured_mass, whitened_curvature, whitened_product

__all__ = ["KroneckerMass", "measured_mass", "whitened_curvature", "whitened_product"]
