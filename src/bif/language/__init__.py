"""Language models: text to items, and losses that scale to large vocabularies."""

from bif.language.sequences import Sequences

__all__ = ["Sequences"]
