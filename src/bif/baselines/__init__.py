"""Rivals of the BIF behind one shape of result, `[Q, N]`: thin adapters over libraries."""

from bif.baselines.exact import exact_influence
from bif.baselines.gradient_product import gradient_product, item_gradients

__all__ = ["exact_influence", "gradient_product", "item_gradients"]
