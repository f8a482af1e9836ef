"""Check the sampler at the last positions of the chains: virial, temperature, step, noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bif import tensors
from bif.curvature.extreme_eigenvalues import hessian_product, largest_eigenvalue
from bif.problem.items import Items
from bif.sampling.center_gradient import center_gradient
from bif.sampling.device_memory import free_bytes
from bif.sampling.engine import Engine
from bif.sampling.gradients import FullGradient
from bif.sampling.mass_matrix import whitened_product
from bif.sampling.observe import observe
from bif.sampling.oracles import LiveOracle
from bif.sampling.rng import BlockNoise, generator
from bif.types import Gradient, HasParams, Params

_CURVATURE_CHAINS = 4
"""Chains at whose weights the largest curvature is measured, at most."""
_CURVATURE_ITEMS = 1024
"""Train items of that curvature, at most."""
_CURVATURE_ITERATIONS = 10
"""Steps of its power iteration."""
_NOISE_BATCHES = 32
"""Mini-batches from which the gradient noise is estimated, at most."""
_MOST_NUMBERS = 2**28
"""Numbers held at once, a GiB of them: large models have fewer chains and batches checked."""
_FEWEST_BATCHES = 8
"""Mini-batches below which no gradient noise is estimated."""
_CHECK_COPIES = 12
"""Copies of the weights that checks hold at once, at most: directions, their products, batches."""
_PROBE_BLOCK = 1_000_003
"""A block of chains that no run has: its mini-batches belong to the probe."""

HEAT = 0.25
"""Share by which gradient noise may widen the draws in its worst direction."""


@dataclass(frozen=True)
class Checks:
    """Figures of the sampler; NaN where one does not apply.

    Of the last positions of the first block; what `IdentitySums` gathered from all draws takes the
    place of virial and temperature.

    Attributes:
        virial: `E[(w - w*)·∇U]` over the number of moving weights; 1 under the posterior, whatever
            its shape, and for BAOAB also at finite steps on quadratics.
        virial_error: Standard error over chains.
        kinetic: `E[|v|²]` over the number of moving weights; 1; gradient noise heats.
        kinetic_error: Standard error over chains.
        dilation: `Cov(L, (w - w*)·∇U) / E[(w - w*)·∇L]`; 1 under the posterior, see
            `bif.sampling.posterior_identities`; of all draws, NaN where no step holds a gradient.
        dilation_error: Standard error over chains.
        curvature: Largest curvature of U at the last positions of a few chains, in the coordinates
            of the mass.
        step_share: The step in units of the largest stable one at that curvature, squared where
            the rule is underdamped: `h²k/4`, `ε·k/4`.  1 is the edge.
        heat: Share by which gradient noise widens the draws in its worst direction; 0 for full
            gradients.
        center_gradient: `|∇U(w*)|²` over its sampling noise, were the items drawn anew; above 1, w*
            is no minimum of U.
        randomness: Largest change of an item's loss between two evaluations.
        downhill: `nbeta·E[(w - w*)·∇L(w*)]`; 0 where w* is a minimum, and below it where the draws
            lean downhill.
        downhill_error: Standard error over chains.
    """

    virial: float
    virial_error: float
    kinetic: float
    kinetic_error: float
    curvature: float
    step_share: float
    heat: float
    center_gradient: float
    randomness: float
    dilation: float = math.nan
    dilation_error: float = math.nan
    downhill: float = math.nan
    downhill_error: float = math.nan

    @classmethod
    def from_dict(cls, found: Mapping[str, float | None]) -> Checks:
        """Return the checks of a manifest, where NaN is null; what it lacks was not measured."""
        values = {f.name: found.get(f.name) for f in fields(cls)}
        return cls(**{name: math.nan if x is None else float(x) for name, x in values.items()})


def check(engine: Engine, state: HasParams) -> Checks:
    """Check the sampler where a block ended; all shards of a model call it.

    Args:
        engine: The run's machinery.
        state: The sampler's at the block's last position; left as it is.
    """
    params, s = state.params, engine.settings.plain()
    if engine.shards.count > 1 and _is_crowded(engine, params):
        with torch.no_grad():
            return replace(not_measured(), randomness=_randomness(engine, params))
    if s != engine.settings:  # shapes not worth compiling, or weights too coarse to look at
        engine = Engine(engine.problem, s, mass=engine.mass)
        params = {n: leaf.to(engine.posterior.center[n].dtype) for n, leaf in params.items()}
    velocity = getattr(state, "velocity", None)
    with torch.no_grad():
        many = _first(params, _MOST_NUMBERS // tensors.num_elements(params))
        virial, downhill = _virial(engine, many), _mean_and_error(_downhill(engine, many))
        kinetic = torch.full_like(virial, math.nan)
        if velocity is not None:
            kinetic = engine.posterior.total(tensors.squared_norm(velocity))
            kinetic = kinetic / engine.posterior.num_moving
        curvature = _curvature(engine, params)
        first = _first(params, 1)
        return Checks(
            *_mean_and_error(virial),
            *_mean_and_error(kinetic),
            curvature,
            s.traits.step_share(s.step_size, curvature),
            heat(engine, first),
            _center_gradient(engine),
            _randomness(engine, first),
            downhill=downhill[0],
            downhill_error=downhill[1],
        )


def _mean_and_error(x: Tensor) -> tuple[float, float]:
    x = x[x.isfinite()]
    if not len(x):
        return math.nan, math.nan
    return float(x.mean()), float(x.std() / len(x) ** 0.5) if len(x) > 1 else math.nan


def not_measured() -> Checks:
    """Return checks without figures, where there was no room to measure."""
    return Checks(*[math.nan] * len(fields(Checks)))


def _is_crowded(engine: Engine, params: Params) -> bool:
    """Return whether any shard lacks the room of checks; if one alone did, others would wait."""
    needed = _CHECK_COPIES * sum(leaf.numel() * leaf.element_size() for leaf in params.values())
    return any(engine.shards.gather(free_bytes(engine.device) < needed))


def _first(params: Params, count: int) -> Params:
    """Return views of the first chains, one at least."""
    return {name: leaf[: max(1, count)] for name, leaf in params.items()}


def _full(engine: Engine, items: Items | None = None, weights: Tensor | None = None) -> Gradient:
    s = engine.settings
    return FullGradient(
        engine.oracle,
        engine.observer.train_items if items is None else items,
        chunk_size=len(engine.observer.train_items) if s.oracle == "live" else s.chunk_size,
        train_weights=engine.weights if weights is None else weights,
    )


def _force(engine: Engine, params: Params) -> Params:
    """Return `∇U` with all items."""
    gradient = _full(engine)(params, 0).gradient
    return engine.posterior.potential_gradient_(tensors.copied(gradient), params)


def _virial(engine: Engine, params: Params) -> Tensor:
    posterior = engine.posterior
    away = posterior.displacement(params)
    return posterior.inner(away, _force(engine, params)) / posterior.num_moving


def _downhill(engine: Engine, params: Params) -> Tensor:
    """Return `nbeta·(w - w*)·∇L(w*)` of every chain, `[C]`."""
    posterior = engine.posterior
    away = tensors.copied(posterior.displacement(params))
    gradient = _full(engine)(tensors.stacked(posterior.center, 1), 0).gradient
    return posterior.nbeta * posterior.inner(away, gradient)


def _curvature(engine: Engine, params: Params) -> float:
    n = engine.problem.num_train
    source = generator(0, 0, "probe", device=engine.device, shard=engine.shards.index)
    noise = BlockNoise(source, engine.posterior.masks)
    count = min(n, _CURVATURE_ITEMS)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values
    few = _first(
        params, min(_CURVATURE_CHAINS, _MOST_NUMBERS // (4 * tensors.num_elements(params)))
    )
    places = chosen.to(engine.device)
    gradient = _full(
        engine, Items(engine.observer.train_items.take(places)), engine.weights[places]
    )
    product = _potential_product(engine, gradient, few)
    found = largest_eigenvalue(
        product, noise.normal(few), iterations=_CURVATURE_ITERATIONS, total=engine.shards.total
    )
    found = found[found.isfinite()]
    return float(found.max()) if len(found) else math.nan


def _potential_product(
    engine: Engine, gradient: Gradient, params: Params
) -> Callable[[Params], Params]:
    """Return `x -> U'' x` in the sampler's coordinates."""
    posterior = engine.posterior
    product = hessian_product(gradient, params, posterior.masks)
    return whitened_product(product, posterior, engine.mass)


def heat(engine: Engine, one: Params) -> float:
    """Return the share by which gradient noise widens the draws, in its worst direction.

    By the laws of the samplers on quadratics; 0 for full gradients, NaN where it is not known,
    infinity where gradients are not finite.

    Args:
        engine: The run's.
        one: The weights of one chain, leaves `[1, *shape]`.
    """
    s, total = engine.settings, engine.shards.total
    if s.gradient == "full":
        return 0.0
    batches = min(_NOISE_BATCHES, _MOST_NUMBERS // (4 * tensors.num_elements(one)))
    batches = min(engine.shards.gather(batches))
    if s.traits.least_divisor is not None or batches < _FEWEST_BATCHES:
        return math.nan
    exact = tensors.copied(_full(engine)(one, 0).gradient)
    noise = tensors.difference(_batch_gradients(engine, one, batches), exact)
    for name, mask in engine.posterior.masks.items():
        noise[name] = noise[name] * mask
    if engine.mass is not None:
        noise = engine.mass.to_velocity(noise)
    rows = torch.cat([leaf.reshape(len(leaf), -1) for leaf in noise.values()], dim=1)
    if not all(engine.shards.gather(bool(rows.isfinite().all()))):
        return math.inf
    # One half finds the direction, the other measures: else it would fit itself.
    half, other = rows[::2].double(), rows[1::2].double()
    _, vectors = torch.linalg.eigh(total(half @ half.T))
    direction = vectors[:, -1] @ half
    length = float(total(direction.square().sum()).sqrt())
    if length == 0:
        return 0.0
    direction = direction / length
    variance = s.nbeta**2 * float(total(other @ direction).square().mean())
    k = _curvature_along(engine, one, direction)
    return s.traits.heat(s.step_size, s.friction, k, variance)


def _batch_gradients(engine: Engine, one: Params, count: int) -> Params:
    """Return independent estimates of the gradient at one chain, leaves `[m, *shape]`."""
    s = engine.settings
    if isinstance(engine.oracle, LiveOracle):
        epoch = engine.problem.num_train // s.mini_batch
        gradient = engine.gradient(_PROBE_BLOCK, 1)
        parts = [tensors.copied(gradient(one, step * epoch).gradient) for step in range(count)]
        return {name: torch.cat([part[name] for part in parts]) for name in one}
    many = tensors.stacked(tensors.chain(one, 0), count)
    return engine.gradient(_PROBE_BLOCK, count)(many, 0).gradient


def _curvature_along(engine: Engine, one: Params, direction: Tensor) -> float:
    """Return `xᵀU''x` in the sampler's coordinates, at least that of the Gaussian."""
    sizes = [leaf.numel() for leaf in one.values()]
    parts = direction.split(sizes)
    u = {n: x.view_as(leaf).to(leaf) for (n, leaf), x in zip(one.items(), parts, strict=True)}
    found = float(engine.posterior.inner(u, _potential_product(engine, _full(engine), one)(u)))
    least = 0.0 if engine.mass is not None else engine.posterior.gamma
    return max(least, found)


def _center_gradient(engine: Engine) -> float:
    s = engine.settings
    return center_gradient(
        engine.oracle, engine.posterior, engine.observer.train_items, engine.weights,
        chunk_size=len(engine.observer.train_items) if s.oracle == "live" else s.chunk_size,
    )  # fmt: skip


def _randomness(engine: Engine, one: Params) -> float:
    """Return how much losses change from call to call, as those of dropout do."""
    few = engine.observer.train_items.first(64)
    items = Items(few)
    size = engine.settings.chunk_size
    first, second = (
        observe(engine.oracle, engine.problem.loss, one, items, chunk_size=size) for _ in range(2)
    )
    change = (first - second).abs()
    return float(change.nan_to_num(0.0).max())
