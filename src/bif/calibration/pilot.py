"""What w* and a short walk away from it tell: gamma's default, and curvatures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bif import tensors
from bif.calibration.alignment import (
    FEWEST_ITEMS,
    NUM_ITEMS,
    best_damping,
    dampings,
    gradient_sketches,
)
from bif.calibration.damping import SHARE, leftover_curvature, usual_damping
from bif.calibration.short_trajectory import LOOKS, STEPS, careful_walk
from bif.curvature.extreme_eigenvalues import largest_curvature, smallest_curvature
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.factory import item_weights, make_oracle, make_posterior, run_device, wait_for
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import Oracle
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, generator
from bif.sampling.settings import Settings
from bif.types import Params

RUN_OFF = "chains that start at w* run off"
WARNING = "warning: "
"""Begins an explanation that is one."""

_PILOT_ITEMS, _FEWEST_ITEMS = 1024, 64
_MOST_ITEMS = 16_384
"""Of a gradient at w*: that of a part of the items is not what training left there."""
PILOT_CHAINS, FEW_CHAINS = 16, 4
"""Chains of the walk, stacked and one after another: curvatures of U have a tail, and the step must
be stable in it."""
_LOOK_ITERATIONS = 10
"""Of a power iteration at each of many places."""
_MOST_NUMBERS = 2**28
"""Weights of all chains of the walk together."""
_WIDEST = 3.0
"""The Gaussian's radius, `sqrt(number of moving weights / gamma)`, in units of |w*|, at most: where
the items are fitted perfectly the loss is flat at w*, and its curvature tells no scale."""
_NEARLY, _FLAT = 10.0, 1000.0
"""A gamma below so many times that of this radius lets chains meet other curvatures than that at
w*; if those are so many times larger, the items are fitted perfectly."""
_TIGHTER = 8
"""Tenfold gammas that are tried where chains run off."""
_BATCHES = 8
"""Mini-batches whose curvatures are looked at."""
_CENTER_ITERATIONS, _CENTER_SHARE, _TIMED_SHARE = 20, 0.3, 0.05
"""Of a power iteration at w*, and the shares of a budget that both of these, and the timing of a
stack, may take."""
_FEWEST_STEPS = 8 * 60 * 15
"""Gradients of single chains in the shortest run: 8 chains of 60 relaxation times of 15 steps."""
_WALK_SHARE = 0.1
"""Of a budget, what the walk and the look around may take before they see fewer items."""
_WALK_TIMES = STEPS + 2 * LOOKS * _LOOK_ITERATIONS
"""How long these take, in gradients of all their chains on as many items."""


@dataclass(frozen=True)
class Pilot:
    """What was found.

    Attributes:
        gamma: The user's, or the default.
        curvature: Largest of the mean loss, at w* or where a short walk goes.
        seconds: Of a gradient of the walk's chains, over the items that they see.
        seconds_of_chain: Of a gradient of one chain alone over all train items.
    """

    gamma: float
    curvature: float
    seconds: float
    seconds_of_chain: float


def pilot(problem: Problem, settings: Settings, said: list[str]) -> Pilot:
    """gamma, and the largest curvature of the mean loss at w* or where a short pilot run goes.

    The posterior must not depend on the run's seed or on the machine, so gamma comes from w* alone
    and from a generator of its own; the walk only makes the step safer, and where a budget is short
    it sees fewer items.

    Args:
        problem: What is to be attributed.
        settings: With nbeta.
        said: Gets a line for each choice.
    """
    device = run_device(problem, settings)
    settings = settings.plain()
    posterior = make_posterior(problem, replace(settings, gamma=settings.gamma or 1.0))
    oracle = make_oracle(problem, settings, list(posterior.center))
    chains = num_pilot_chains(settings, posterior)
    noise = BlockNoise(generator(0, 0, "probe", device=device), posterior.masks)
    order = torch.randperm(problem.num_train, generator=torch.Generator().manual_seed(0))
    whole = _Looked.at(problem, order[:_PILOT_ITEMS], posterior, device)

    def measure(
        looked: _Looked,
        params: Params,
        iterations: int = _CENTER_ITERATIONS,
        noise: BlockNoise = noise,
    ) -> float:
        gradient = looked.gradient(oracle, settings)
        found = largest_curvature(
            gradient, params, direction=noise.normal(params), masks=posterior.masks,
            iterations=iterations,
        )  # fmt: skip
        return float(found.max())

    params = tensors.stacked(posterior.center, chains)
    one = {name: leaf[:1] for name, leaf in params.items()}
    of_all = whole.gradient(oracle, settings)
    alone = _seconds_of_gradient(of_all, one)
    of_chain = alone * problem.num_train / len(whole.items)
    if settings.budget is not None:
        _refuse_small_budget(float(settings.budget), alone, of_chain, settings.gamma is None)
    at_center = measure(whole, one)
    seconds = chains * alone
    if settings.budget is None or 2 * seconds < _TIMED_SHARE * float(settings.budget):
        seconds = _seconds_of_gradient(of_all, params)  # stacks are faster than that
    nbeta = settings.nbeta or 0.0
    bound = torch.tensor([at_center], dtype=torch.float64, device=device)
    least = float(
        smallest_curvature(
            of_all, one, direction=noise.normal(one), masks=posterior.masks, largest=bound
        )
    )
    downwards = -nbeta * (least + settings.weight_decay)
    gamma, there = settings.gamma, at_center
    if gamma is None:
        leftover = _leftover(problem, settings, posterior, one, largest=at_center)
        damping, why = usual_damping(at_center, leftover)
        gamma, why = max(nbeta, 1.0) * damping, f"damping gamma/nbeta = {why}"
        if nbeta and gamma and len(whole.items) >= FEWEST_ITEMS:
            first = range(min(NUM_ITEMS, len(whole.items)))
            gradients = gradient_sketches(oracle, one, whole.items, first, masks=posterior.masks)
            gradients = gradients * whole.weights.mean().sqrt().cpu()
            raised, words = _raised(gradients, gamma / nbeta, settings, problem.num_train)
            gamma, why = raised * gamma, why + words
        if downwards > gamma:
            gamma += downwards
            why += (
                f", and {downwards:.4g} more, since the training objective curves downwards by as "
                "much at w*, which is no minimum"
            )
        least_gamma = narrowest_gamma(posterior)
        wide = gamma < _NEARLY * least_gamma
        if gamma < least_gamma:
            gamma = least_gamma
            why += (
                f", raised: with this gamma chains stay within {_WIDEST:g} |w*|. Give gamma for "
                "another ball"
            )
        if wide:
            source = generator(0, 0, "probe", device=device, counter="ball")
            own = BlockNoise(source, posterior.masks)
            ball = tensors.add_(tensors.copied(params), own.normal(params), gamma**-0.5)
            in_the_ball = measure(whole, ball, _LOOK_ITERATIONS, own)
            if _FLAT * at_center < in_the_ball < float("inf"):
                there = in_the_ball
                gamma = max(gamma, max(nbeta, 1.0) * there / SHARE)
                why = (
                    "the train items are fitted perfectly, so that the loss is flat at w* (largest "
                    f"curvature {at_center:.2g}) and sets no scale: damping gamma/nbeta = largest "
                    f"curvature as far away as chains would go, {there:.2g}, / {SHARE:g}. Give "
                    "gamma for another ball"
                )
        said.append(f"gamma = {gamma:.4g}: {why}")
    elif downwards > gamma:
        said.append(
            f"{WARNING}U curves downwards at w*: its smallest curvature there is "
            f"{gamma - downwards:.4g}, for the mean loss has {least:.4g}. The chains leave w* for "
            f"another place. Set gamma=None, which adds {downwards:.4g} to its default, or set "
            f"gamma={2 * downwards:.3g}, or train on to a minimum"
        )
    posterior = make_posterior(problem, replace(settings, gamma=gamma))
    k_max = nbeta * (there + settings.weight_decay) + gamma
    count = _walked_items(len(whole.items), seconds, settings)
    few = whole if count == len(whole.items) else _Looked.at(
        problem, order[:count], posterior, device
    )  # fmt: skip
    gradient = few.gradient(oracle, settings)
    # Away from w* the curvature can be larger: a careful walk goes there and looks.
    seen = careful_walk(posterior, gradient=gradient, params=params, noise=noise, k_max=k_max)
    tighter = gamma
    if seen is None:
        # Over all items, so that what is found is the same on any machine.
        for _ in range(_TIGHTER):
            tighter = 10 * tighter or 1.0
            held = make_posterior(problem, replace(settings, gamma=tighter))
            k_max = nbeta * (there + settings.weight_decay) + tighter
            seen = careful_walk(held, gradient=of_all, params=params, noise=noise, k_max=k_max)
            if seen is not None:
                break
    if seen is None or (tighter > gamma and settings.gamma is not None):
        said += [
            f"{WARNING}{RUN_OFF} with every step that was tried: the loss is far from quadratic "
            f"there. Set gamma={tighter:.3g}, or train on to a minimum",
            f"largest curvature of the mean loss: {at_center:.4g} at w*, unknown away from it",
        ]
        return Pilot(gamma, there, seconds, of_chain)
    if tighter > gamma:
        said.append(f"gamma = {tighter:.4g}: with less, {RUN_OFF} with every step that was tried")
        gamma = tighter
    found = [measure(few, place, _LOOK_ITERATIONS) for place in seen]
    away = max((x for x in found if x < float("inf")), default=at_center)
    said.append(
        f"largest curvature of the mean loss: {at_center:.4g} at w*, {away:.4g} along a walk of "
        f"{STEPS} steps ({chains} chains, {count} items)"
    )
    largest = max(there, away)
    if settings.gradient != "full":
        batch = settings.batch_size or 1
        parts = order[: batch * min(_BATCHES, problem.num_train // batch)].split(batch)
        of_batches = max(
            measure(_Looked.at(problem, part, posterior, device), seen[-1], _LOOK_ITERATIONS)
            for part in parts
        )
        if largest < of_batches < float("inf"):
            said.append(
                f"largest curvature of a mini-batch's mean loss: {of_batches:.4g}, in "
                f"{len(parts)} of {batch} items"
            )
            largest = of_batches
    return Pilot(gamma, largest, seconds, of_chain)


def _leftover(
    problem: Problem, settings: Settings, posterior: LocalPosterior, center: Params, *,
    largest: float,
) -> float:  # fmt: skip
    """`leftover_curvature` by all items in float32; NaN where there are too many."""
    if problem.num_train > _MOST_ITEMS:
        return math.nan
    exact = replace(settings, gradient_precision="float32")
    device = run_device(problem, settings)
    gradient = FullGradient(
        make_oracle(problem, exact, list(posterior.center)),
        problem.train.to(device),
        chunk_size=settings.chunk_size or 1,
        train_weights=item_weights(problem, next(iter(posterior.center.values()))).to(device),
    )
    return leftover_curvature(gradient, posterior, center, largest=largest)


def _refuse_small_budget(budget: float, alone: float, of_chain: float, open_gamma: bool) -> None:
    """Raise where not even the curvature at w* fits, before it is measured.

    Args:
        budget: In seconds.
        alone: Seconds of a gradient of one chain, over the items that are looked at.
        of_chain: The same over all train items.
        open_gamma: Whether three of these are needed too.
    """
    at_center = 4 * _CENTER_ITERATIONS * alone + 3 * open_gamma * of_chain
    if at_center <= _CENTER_SHARE * budget:
        return
    needed = 1.2 * (2 * at_center + _FEWEST_STEPS * of_chain)
    raise ValueError(
        f"a budget of {budget:.3g} s is too small: the curvature at w* alone takes about "
        f"{at_center:,.0f} s, at {alone:.3g} s a gradient. Give budget='{math.ceil(needed)}s', "
        "name fewer weights in movable, or use a faster device."
    )


class _Looked(NamedTuple):
    """Some train items on the device, with their training weights."""

    items: Items
    weights: Tensor

    @classmethod
    def at(
        cls, problem: Problem, places: Tensor, posterior: LocalPosterior, device: torch.device
    ) -> _Looked:
        chosen = places.sort().values
        like = next(iter(posterior.center.values()))
        return cls(
            Items(problem.train.take(chosen)).to(device),
            item_weights(problem, like)[chosen.to(device)],
        )

    def gradient(self, oracle: Oracle, settings: Settings) -> FullGradient:
        """Return the gradient of their mean loss."""
        assert settings.chunk_size is not None
        return FullGradient(
            oracle, self.items, chunk_size=settings.chunk_size, train_weights=self.weights
        )


def _seconds_of_gradient(gradient: FullGradient, params: Params) -> float:
    """Return the seconds of a gradient after a first one."""
    seconds = 0.0
    device = next(iter(params.values())).device
    for _ in range(2):
        started = time.perf_counter()
        gradient(params, 0)
        wait_for(device)
        seconds = time.perf_counter() - started
    return seconds


def num_pilot_chains(settings: Settings, posterior: LocalPosterior) -> int:
    """Return how many chains walk: fewer where they do so one by one or are large."""
    if settings.oracle == "live":
        return 1
    most = PILOT_CHAINS if settings.oracle == "stacked" else FEW_CHAINS
    numbers = sum(leaf.numel() for leaf in posterior.center.values())
    return max(1, min(most, _MOST_NUMBERS // numbers))


def narrowest_gamma(posterior: LocalPosterior) -> float:
    """Return the gamma of a Gaussian of radius `_WIDEST` |w*| over the weights that move."""
    stacked = tensors.stacked(posterior.center, 1)
    moving = {n: leaf * posterior.masks.get(n, 1.0) for n, leaf in stacked.items()}
    square = float(tensors.squared_norm(moving))
    return posterior.num_moving / (_WIDEST**2 * square) if square > 0 else 1e-8


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
