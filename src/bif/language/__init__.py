"""Language models: text to items, and losses that scale to large vocabularies."""

from bif.language.components import Head, movable_weights
from bif.language.documents import Document
from bif.language.hub_revisions import revisions
from bif.language.losses import label_cross_entropy, masked_token
from bif.language.models import LanguageModel, load_model
from bif.language.problem import language_problem
from bif.language.sequences import Sequences
from bif.language.sources import read_documents

__all__ = [
    "Document",
    "Head",
    "LanguageModel",
    "Sequences",
    "label_cross_entropy",
    "language_problem",
    "load_model",
    "masked_token",
    "movable_weights",
    "read_documents",
    "revisions",
]
