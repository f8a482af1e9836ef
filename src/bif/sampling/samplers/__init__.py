"""SG-MCMC rules, one paper a file: elementwise on the weights, knowing nothing of models."""

from bif.sampling.samplers.baoab import BAOAB, BAOABState
from bif.sampling.samplers.rmsprop_sgld import RMSpropSGLD, RMSpropSGLDState
from bif.sampling.samplers.sgld import SGLD, SGLDState
from bif.sampling.samplers.sgnht import SGNHT, SGNHTState

__all__ = [
    "BAOAB",
    "SGLD",
    "SGNHT",
    "BAOABState",
    "RMSpropSGLD",
    "RMSpropSGLDState",
    "SGLDState",
    "SGNHTState",
]
