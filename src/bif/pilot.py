"""What w* and a short walk away from it tell: gamma's default, and curvatures."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif import tensors
from bif.alignment import FEWEST_ITEMS, NUM_ITEMS, best_damping, dampings, item_gradients
from bif.assemble import item_weights, make_oracle, make_posterior, run_device
from bif.careful_walk import STEPS, careful_walk
from bif.curvature import largest_curvature, smallest_curvature
from bif.gradients import FullGradient
from bif.items import Items
from bif.problem import Problem
from bif.rng import BlockNoise, generator
from bif.settings import Settings
from bif.types import Params

DAMPING = 50.0
"""gamma = nbeta · largest curvature at w* / DAMPING, where the user gives no gamma; more where
draws could tell too little of items so little damped."""
WARNING = "warning: "
"""Begins an explanation that is one."""

_PILOT_ITEMS, _FEWEST_ITEMS = 1024, 64
_PILOT_CHAINS = 4
_WALK_SHARE = 0.1
"""Of a budget, what the walk and the look around may take before they see fewer items."""
_WALK_TIMES = 3
"""How long these take, in units of the largest curvature at w* on as many items."""


@dataclass(frozen=True)
class Pilot:
    """What was found.

    Attributes:
        gamma: The user's, or the default.
        curvature: Largest of the mean loss, at w* or where a short walk goes.
        seconds: Of the largest curvature at w* alone: a measure of how fast the machine is.
    """

    gamma: float
    curvature: float
    seconds: float


def pilot(
    problem: Problem, settings: Settings, said: list[str], *, damping_factor: float = 1.0
) -> Pilot:
    """gamma, and the largest curvature of the mean loss at w* or where a short pilot run goes.

    The posterior must not depend on the run's seed or on the machine, so gamma comes from w* alone
    and from a generator of its own; the walk only makes the step safer, and where a budget is short
    it sees fewer items.

    Args:
        problem: What is to be attributed.
        settings: With nbeta.
        said: Gets a line for each choice.
        damping_factor: On the usual gamma/nbeta.
    """
    device = run_device(problem, settings)
    settings = settings.plain()
    posterior = make_posterior(problem, replace(settings, gamma=settings.gamma or 1.0))
    oracle = make_oracle(problem, settings, list(posterior.center))
    chains = 1 if settings.oracle == "live" else _PILOT_CHAINS
    assert settings.chunk_size is not None
    noise = BlockNoise(generator(0, 0, "probe", device=device), posterior.masks)
    order = torch.randperm(problem.num_train, generator=torch.Generator().manual_seed(0))
    chosen = order[:_PILOT_ITEMS].sort().values
    items = Items(problem.train.take(chosen)).to(device)

    def smallest(one: Params, largest: float) -> float:
        bound = torch.tensor([largest], dtype=torch.float64, device=device)
        return float(
            smallest_curvature(
                oracle, one, items=items, chunk_size=settings.chunk_size or 1, noise=noise,
                largest=bound,
            )
        )  # fmt: skip

    def measure(params: Params) -> float:
        return float(
            largest_curvature(
                oracle, params, items=items, chunk_size=settings.chunk_size or 1, noise=noise
            ).max()
        )

    params = tensors.stacked(posterior.center, chains)
    one = {name: leaf[:1] for name, leaf in params.items()}
    started = time.perf_counter()
    at_center = measure(params)
    seconds = time.perf_counter() - started
    nbeta = settings.nbeta or 0.0
    gamma = settings.gamma
    if gamma is None:
        share = DAMPING / damping_factor
        gamma = max(nbeta, 1.0) * max(at_center, 1e-8) / share
        why = f"damping gamma/nbeta = largest curvature at w*, {at_center:.4g}, / {share:g}"
        if nbeta and len(items) >= FEWEST_ITEMS:
            first = range(min(NUM_ITEMS, len(items)))
            gradients = item_gradients(oracle, one, items, first, masks=posterior.masks)
            raised, words = _raised(gradients, gamma / nbeta, settings, problem.num_train)
            gamma, why = raised * gamma, why + words
        said.append(f"gamma = {gamma:.4g}: {why}")
    least = smallest(one, at_center)
    lowest = nbeta * (least + settings.weight_decay) + gamma
    if lowest < 0:
        said.append(
            f"{WARNING}U curves downwards at w*: its smallest curvature there is {lowest:.4g}, for "
            f"the mean loss has {least:.4g}. The chains leave w* for another place. Raise gamma "
            f"above {-nbeta * (least + settings.weight_decay):.4g}, or train on to a minimum"
        )
    posterior = make_posterior(problem, replace(settings, gamma=gamma))
    k_max = nbeta * (at_center + settings.weight_decay) + gamma
    count = _walked_items(len(items), seconds, settings)
    if count < len(items):
        chosen = order[:count].sort().values
        items = Items(problem.train.take(chosen)).to(device)
    weights = item_weights(problem, next(iter(params.values())))[chosen.to(device)]
    gradient = FullGradient(oracle, items, chunk_size=settings.chunk_size, train_weights=weights)
    # Away from w* the curvature can be larger: a careful walk goes there and looks.
    ended = careful_walk(posterior, gradient=gradient, params=params, noise=noise, k_max=k_max)
    if ended is None:
        said += [
            f"{WARNING}chains that start at w* run off with every step that was tried: the loss is "
            "far from quadratic there. Raise gamma, or train on to a minimum",
            f"largest curvature of the mean loss: {at_center:.4g} at w*, unknown away from it",
        ]
        return Pilot(gamma, at_center, seconds)
    away = measure(ended)
    largest = max(at_center, away if away < float("inf") else at_center)
    said.append(
        f"largest curvature of the mean loss: {at_center:.4g} at w*, {away:.4g} after a walk of "
        f"{STEPS} steps ({chains} chains, {count} items)"
    )
    return Pilot(gamma, largest, seconds)


def _raised(
    gradients_IK: Tensor, damping: float, settings: Settings, num_train: int
) -> tuple[float, str]:
    """A factor on the usual damping, and the reason for one above 1."""
    found = dampings(gradients_IK, usual=damping + settings.weight_decay, num_train=num_train)
    best = best_damping(found)
    if best.factor == 1:
        return 1.0, ""
    return best.factor, (
        f", × {best.factor:g}: gradients of items are so nearly orthogonal that without the factor "
        f"it takes {found[0].draws_for_half:,.0f} effective draws for a reliability of one half, "
        f"with it {best.draws_for_half:,.0f}"
    )


def _walked_items(count: int, seconds: float, settings: Settings) -> int:
    """As many items as fit into a budget's share; fewer items have the larger curvature."""
    if settings.budget is None:
        return count
    fitting = int(count * _WALK_SHARE * float(settings.budget) / (_WALK_TIMES * seconds))
    return min(count, max(_FEWEST_ITEMS, fitting))
