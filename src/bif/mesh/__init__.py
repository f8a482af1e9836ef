"""Processes that share a run; the only package that imports `torch.distributed`."""

from bif.mesh.ranks import RankFailed, Ranks, join, launched

__all__ = ["RankFailed", "Ranks", "join", "launched"]
