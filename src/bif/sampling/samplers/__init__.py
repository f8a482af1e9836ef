"""SG-MCMC rules, one paper a file: elementwise on the weights, knowing nothing of models."""

from collections.abc import Callable

from bif.sampling.samplers.baoab import BAOAB, BAOABState
from bif.sampling.samplers.rmsprop_sgld import FrozenRMSpropSGLD, RMSpropSGLD, RMSpropSGLDState
from bif.sampling.samplers.sgld import SGLD, SGLDState
from bif.sampling.samplers.sgnht import SGNHT, SGNHTState
from bif.sampling.samplers.traits import NamedSampler, Traits

SAMPLERS: dict[str, type[NamedSampler]] = {
    "baoab": BAOAB,
    "sgld": SGLD,
    "rmsprop_sgld": RMSpropSGLD,
    "rmsprop_sgld_frozen": FrozenRMSpropSGLD,
    "sgnht": SGNHT,
}
"""What `Settings.sampler` may name.  Nothing else of the package compares a sampler's name."""


def names_of(condition: Callable[[Traits], bool]) -> str:
    """Return the names of the samplers whose traits meet a condition, with commas."""
    return ", ".join(name for name, sampler in SAMPLERS.items() if condition(sampler.traits))


__all__ = [
    "BAOAB",
    "SAMPLERS",
    "SGLD",
    "SGNHT",
    "BAOABState",
    "FrozenRMSpropSGLD",
    "NamedSampler",
    "RMSpropSGLD",
    "RMSpropSGLDState",
    "SGLDState",
    "SGNHTState",
    "Traits",
    "names_of",
]
