"""Measure the mass by products of U's Hessian with random directions, off w* by a short trajectory.

For a leaf whose Hessian is `A ⊗ B`, a product with a random matrix Z is `B Z A`, and the second
moments of its rows and columns have the eigenvectors of A and B.  So random products find the basis
of any leaf of any architecture, with the true Hessian of any loss, and no hooks into layers.  Their
root mean squares in that basis are the norms of the Hessian's rows: positive also where U curves
downwards, and at least the curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bif import tensors
from bif.calibration.short_trajectory import short_trajectory
from bif.curvature.extreme_eigenvalues import hessian_product, largest_eigenvalue
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.engine import Engine
from bif.sampling.factory import item_weights, make_oracle, make_posterior, run_device
from bif.sampling.gradients import FullGradient
from bif.sampling.mass_matrix import KroneckerMass, whitened_product
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, generator
from bif.sampling.settings import RunSettings, Settings
from bif.sampling.whole_model import WHOLE
from bif.types import Mass, Params, Shards

LARGEST_ROTATION = 1024
"""Sides longer than this are not rotated: a rotation of n takes n² numbers and n³ work."""
_CHAINS = 4
"""Chains at whose weights products are taken."""
_ROUNDS = 16
"""Products of each chain for the basis, and again as many for the scales."""
_ITEMS = 512
"""Train items that the products are taken over, at most."""
_TRAJECTORY_CHAINS = {"stacked": 16}
"""Chains of the trajectory in the coordinates of the mass, by the oracle; others have `_CHAINS`.
Curvatures have a tail there, so that a few chains can miss the largest."""
_POWER_ITERATIONS = 10
"""Steps of a power iteration for the largest curvature at each of many places."""

_measured: WeakKeyDictionary[Problem, dict[Settings, KroneckerMass]] = WeakKeyDictionary()
"""Masses by the settings that they depend on: a run builds its engine several times."""


def measured_mass(problem: Problem, settings: Settings) -> KroneckerMass:
    """Return the mass of a run; it depends on the posterior alone, not on the run's seed.

    Costs about 300 gradients of four chains over at most 512 items.

    Args:
        problem: What is to be attributed.
        settings: Settings with nbeta and gamma.
    """
    key = Settings(
        nbeta=settings.nbeta, gamma=settings.gamma, weight_decay=settings.weight_decay,
        movable=settings.movable, oracle=settings.oracle, chunk_size=settings.chunk_size,
        device=str(run_device(problem, settings)),
    )  # fmt: skip
    kept = _measured.setdefault(problem, {})
    if key not in kept:
        with torch.no_grad():
            pilot = _Pilot(problem, key)
            first = pilot.mass(pilot.end_of_trajectory() or pilot.start())
            # Where the first trajectory was too short to leave w*, the second has the mass.
            kept[key] = pilot.mass(pilot.end_of_trajectory(first) or pilot.start())
    return kept[key]


def make_engine(problem: Problem, settings: RunSettings, *, shards: Shards = WHOLE) -> Engine:
    """Build the engine of complete settings, with the mass that they ask for."""
    white = settings.mass == "kronecker"
    mass = measured_mass(problem, settings) if white else None
    return Engine(problem, settings, mass=mass, shards=shards)


def whitened_curvature(problem: Problem, settings: Settings) -> float:
    """Return the largest curvature of U in the mass's coordinates, at w* and along a trajectory.

    Args: as for `measured_mass`.

    Returns:
        Infinity where chains run off with every step that is tried.
    """
    pilot = _Pilot(problem, settings)
    mass = measured_mass(problem, settings)
    with torch.no_grad():
        seen = pilot.trajectory(mass, _TRAJECTORY_CHAINS.get(settings.oracle or "", _CHAINS))
        if seen is None:
            return math.inf
        return max(pilot.largest(params, mass) for params in (pilot.center(), *seen))


class _Pilot:
    """A few chains over a few items, with random numbers of their own."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        s = replace(settings, compiled=False, gradient_precision="float32")
        assert s.chunk_size is not None
        self._posterior = make_posterior(problem, s)
        self._oracle = make_oracle(problem, s, list(self._posterior.center))
        self._device, self._chunk = run_device(problem, s), s.chunk_size
        count = min(problem.num_train, _ITEMS)
        order = torch.randperm(problem.num_train, generator=torch.Generator().manual_seed(0))
        chosen = order[:count].sort().values
        self._items = Items(problem.train.take(chosen)).to(self._device)
        first = next(iter(self._posterior.center.values()))
        self._gradient = FullGradient(
            self._oracle, self._items, chunk_size=self._chunk,
            train_weights=item_weights(problem, first)[chosen.to(self._device)],
        )  # fmt: skip

    def mass(self, params: Params) -> KroneckerMass:
        """Return the mass: its basis from the first products, its scales from further ones."""
        posterior = self._posterior
        noise = self._noise("products")
        product = hessian_product(self._gradient, params, posterior.masks)
        left, right = _basis(self._products(product, params, noise), posterior)
        ones = {n: torch.ones(_sides(leaf), dtype=leaf.dtype, device=leaf.device)
                for n, leaf in posterior.center.items()}  # fmt: skip
        basis = KroneckerMass(left, right, ones)
        squares = {name: torch.zeros_like(one) for name, one in ones.items()}
        for moved in self._products(product, params, noise):
            for name, leaf in basis.to_velocity(moved).items():
                squares[name] += leaf.reshape(len(leaf), *ones[name].shape).square().sum(dim=0)
        nbeta, decay, gamma = posterior.nbeta, posterior.weight_decay, posterior.gamma
        scale = {
            name: (nbeta * ((square / (_CHAINS * _ROUNDS)).sqrt() + decay) + gamma).rsqrt()
            for name, square in squares.items()
        }
        return KroneckerMass(left, right, scale)

    def center(self) -> Params:
        return tensors.stacked(self._posterior.center, 1)

    def start(self, chains: int = _CHAINS) -> Params:
        return tensors.stacked(self._posterior.center, chains)

    def end_of_trajectory(self, mass: KroneckerMass | None = None) -> Params | None:
        """Return a few chains at the end of a short trajectory; None if they run off."""
        seen = self.trajectory(mass, _CHAINS)
        return None if seen is None else seen[-1]

    def trajectory(self, mass: KroneckerMass | None, chains: int) -> list[Params] | None:
        """Return chains at several places of a short trajectory; None if they run off."""
        least = 1e-30 if mass is None else 1.0
        return short_trajectory(
            self._posterior, gradient=self._gradient, params=self.start(chains),
            noise=self._noise("trajectory"), k_max=max(self.largest(self.center(), mass), least),
            mass=mass,
        )  # fmt: skip

    def largest(self, params: Params, mass: Mass | None) -> float:
        product = hessian_product(self._gradient, params, self._posterior.masks)
        white = whitened_product(product, self._posterior, mass)
        direction = self._noise("largest").normal(params)
        return float(largest_eigenvalue(white, direction, iterations=_POWER_ITERATIONS).max())

    def _products(
        self, product: Callable[[Params], Params], params: Params, noise: BlockNoise
    ) -> Iterator[Params]:
        for _ in range(_ROUNDS):
            direction = noise.normal(params)
            length = tensors.squared_norm(direction).sqrt()
            moved = product(tensors.scale_chains_(direction, 1 / length))
            yield tensors.scale_chains_(moved, length)

    def _noise(self, purpose: str) -> BlockNoise:
        counter = ("trajectory", "products", "largest").index(purpose)
        source = generator(0, 0, "mass", device=self._device, counter=counter)
        return BlockNoise(source, self._posterior.masks)


def _sides(leaf: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a leaf `[*shape]` as a matrix."""
    return (len(leaf), leaf[0].numel()) if leaf.dim() > 1 else (1, leaf.numel())


def _basis(products: Iterator[Params], posterior: LocalPosterior) -> tuple[Params, Params]:
    """Return the eigenvectors of the second moments of the products' rows and columns."""
    left: Params = {}
    right: Params = {}
    for moved in products:
        for name, leaf in moved.items():
            if name in posterior.masks:  # weights that stay would be mixed with others
                continue
            rows, columns = _sides(posterior.center[name])
            matrix = leaf.reshape(len(leaf), rows, columns)
            if 1 < rows <= LARGEST_ROTATION:
                _add(left, name, torch.einsum("cmn,ckn->mk", matrix, matrix))
            if 1 < columns <= LARGEST_ROTATION:
                _add(right, name, torch.einsum("cmn,cmk->nk", matrix, matrix))
    return _eigenvectors(left), _eigenvectors(right)


def _add(sums: Params, name: str, term: Tensor) -> None:
    sums[name] = sums[name] + term if name in sums else term


def _eigenvectors(moments: Params) -> Params:
    found = {}
    for name, moment in moments.items():
        symmetric = 0.5 * (moment + moment.T).double()
        largest = symmetric.diagonal().max().clamp(min=1e-300)
        found[name] = _rotation(symmetric / largest).to(moment.dtype)
    return found


def _rotation(symmetric: Tensor) -> Tensor:
    try:
        return torch.linalg.eigh(symmetric)[1]
    except torch.linalg.LinAlgError:  # a GPU's solver gives up on matrices that LAPACK solves
        return torch.linalg.eigh(symmetric.cpu())[1].to(symmetric.device)
