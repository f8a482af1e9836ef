"""Influence of repeated sequences while a small language model learns induction."""
