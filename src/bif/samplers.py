"""SG-MCMC rules: the public name of `bif.sampling.samplers`."""

from bif.sampling.samplers import (
    BAOAB,
    SGLD,
    SGNHT,
    BAOABState,
    RMSpropSGLD,
    RMSpropSGLDState,
    SGLDState,
    SGNHTState,
)

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
