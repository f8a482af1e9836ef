"""SG-MCMC rules, one paper a file: elementwise on the weights, knowing nothing of models."""

from bif.samplers.baoab import BAOAB, BAOABState
from bif.samplers.rmsprop_sgld import RMSpropSGLD, RMSpropSGLDState
from bif.samplers.sgld import SGLD, SGLDState
from bif.samplers.sgnht import SGNHT, SGNHTState

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
