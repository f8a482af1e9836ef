"""Rivals of the BIF behind one shape of result, `[Q, N]`: thin adapters over libraries.

Float64 on the CPU, signed like the BIF: for a loss, negative is helpful.  `ExactInfluence`,
`ConjugateGradients`, `EKFAC`, `EmpiricalFisher` and `TRAK` are fitted once to the train items and
then asked with any damping and any queries: `EKFAC.fit(problem).scores(problem, damping=0.1)`.
"""

from bif.baselines.conjugate_gradients import ConjugateGradients
from bif.baselines.ekfac import EKFAC
from bif.baselines.empirical_fisher import EmpiricalFisher
from bif.baselines.exact import ExactInfluence
from bif.baselines.gradient_product import gradient_cosine, gradient_product
from bif.baselines.similarity import random_scores, representation_similarity
from bif.baselines.source import Source
from bif.baselines.tracin import TracIn
from bif.baselines.trak import TRAK
from bif.problem.checkpoints import Checkpoint
from bif.sampling.item_gradients import item_gradients

__all__ = [
    "EKFAC",
    "TRAK",
    "Checkpoint",
    "ConjugateGradients",
    "EmpiricalFisher",
    "ExactInfluence",
    "Source",
    "TracIn",
    "gradient_cosine",
    "gradient_product",
    "item_gradients",
    "random_scores",
    "representation_similarity",
]
