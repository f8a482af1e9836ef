"""Oracles: losses and gradients of per-item losses at the weights of a block of chains.

Three ways to the same numbers: all chains of a block in one vectorised operation (`StackedOracle`),
one chain after another for models that vmap cannot take (`SequentialOracle`), and the module's own
parameters as the one chain (`LiveOracle`).  An oracle knows neither priors nor noise.
"""

from bif.sampling.oracles.live import LiveOracle
from bif.sampling.oracles.protocol import Oracle, autocast
from bif.sampling.oracles.sequential import SequentialOracle
from bif.sampling.oracles.vmapped import StackedOracle, vmap_refusal

__all__ = ["LiveOracle", "Oracle", "SequentialOracle", "StackedOracle", "autocast", "vmap_refusal"]
