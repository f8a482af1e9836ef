"""Measure curvatures at w* and along a short trajectory, and choose gamma's default by them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bif import tensors
from bif.calibration.alignment import (
    EFFECTIVE_DRAWS,
    FEWEST_ITEMS,
    NUM_ITEMS,
    Damping,
    best_damping,
    dampings,
    gradient_sketches,
)
from bif.calibration.damping import SHARE, left_gradient, leftover_curvature, usual_damping
from bif.calibration.short_trajectory import NUM_PLACES, STEPS, short_trajectory
from bif.curvature.extreme_eigenvalues import largest_curvature, smallest_curvature
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.choices import Choices
from bif.sampling.factory import item_weights, make_oracle, make_posterior, run_device, wait_for
from bif.sampling.gradients import FullGradient
from bif.sampling.oracles import Oracle
from bif.sampling.oracles.precision import precision_at_center
from bif.sampling.posterior import LocalPosterior
from bif.sampling.rng import BlockNoise, generator
from bif.sampling.settings import Settings
from bif.types import Params

RUN_OFF = "chains that start at w* run off"
"""Beginning of the warning that chains run off, by which a run picks it from the warnings."""

_PILOT_ITEMS = 1024
"""Train items that the pilot evaluates, at most."""
_FEWEST_ITEMS = 64
"""Train items that the trajectory sees, however short a budget is."""
_MOST_ITEMS = 16_384
"""Train items up to which the gradient at w* is taken: a part of the items does not tell it."""
PILOT_CHAINS = 16
"""Stacked chains of the trajectory: curvatures of U have a tail, and the step must suit it."""
FEW_CHAINS = 4
"""Chains of the trajectory where they step one after another, which takes longer."""
_POWER_ITERATIONS = 10
"""Steps of a power iteration at each of many places."""
_MOST_NUMBERS = 2**28
"""Weights of all chains of the trajectory together, at most."""
_WIDEST = 3.0
"""The Gaussian's radius, `sqrt(number of moving weights / gamma)`, in units of |w*|, at most: where
the items are fitted perfectly the loss is flat at w*, and its curvature tells no scale."""
_NEARLY = 10.0
"""Factor on the gamma of that radius below which chains can meet other curvatures than at w*."""
_FLAT = 1000.0
"""Ratio of the curvature in that ball to that at w* above which the items are fitted perfectly."""
_TIGHTER = 8
"""Tenfold gammas that are tried where chains run off."""
_BATCHES = 8
"""Mini-batches whose curvatures are measured."""
CENTER_ITERATIONS = 20
"""Steps of a power iteration at w*, where the curvature sets gamma."""
_CENTER_SHARE = 0.3
"""Part of a budget that the curvatures at w* may take."""
_TIMED_SHARE = 0.05
"""Part of a budget that timing a stack of chains may take."""
_FEWEST_STEPS = 8 * 60 * 15
"""Gradients of single chains in the shortest run: 8 chains of 60 relaxation times of 15 steps."""
_TRAJECTORY_SHARE = 0.1
"""Part of a budget that the trajectory and its curvatures may take before they see fewer items."""
_TRAJECTORY_TIMES = STEPS + 2 * NUM_PLACES * _POWER_ITERATIONS
"""Time that these take, in gradients of all their chains on as many items."""


@dataclass(frozen=True)
class Pilot:
    """The gamma and the curvature that a pilot found, and its times.

    Attributes:
        gamma: The user's, or the default.
        curvature: Largest curvature of the mean loss, at w* or along the trajectory.
        seconds: Seconds of a gradient of the trajectory's chains, over the items that they see.
        seconds_of_chain: Seconds of a gradient of one chain alone over all train items.
    """

    gamma: float
    curvature: float
    seconds: float
    seconds_of_chain: float


def pilot(problem: Problem, settings: Settings, choices: Choices) -> Pilot:
    """Choose gamma, and find the largest curvature of the mean loss where chains will go.

    The posterior must not depend on the run's seed or on the machine, so gamma comes from w* alone
    and from a generator of its own; the trajectory only makes the step safer, and where a budget is
    short it sees fewer items.

    Args:
        problem: What is to be attributed.
        settings: Settings with nbeta.
        choices: Gets what is chosen.
    """
    probe = Probe(problem, settings.plain())
    center = probe.measure_center()
    gamma, there = _choose_gamma(probe, center, choices)
    gamma, few, seen = _leave_center(probe, center, gamma, there, choices)
    if seen is None:
        return Pilot(gamma, there, center.seconds, center.seconds_of_chain)
    found = [probe.largest(few, place, _POWER_ITERATIONS) for place in seen]
    away = max((x for x in found if x < math.inf), default=center.largest)
    choices.remark(
        f"largest curvature of the mean loss: {center.largest:.4g} at w*, {away:.4g} along a "
        f"trajectory of {STEPS} steps ({probe.num_chains} chains, {len(few.items)} items)"
    )
    largest = max(there, away)
    if probe.settings.gradient != "full":
        largest = _largest_of_batches(probe, seen[-1], largest, choices)
    return Pilot(gamma, largest, center.seconds, center.seconds_of_chain)


@dataclass(frozen=True)
class _Center:
    """The curvatures and the times measured at w*.

    Attributes:
        largest: Largest curvature of the mean loss.
        smallest: Smallest curvature of the mean loss; below 0 where it curves downwards.
        seconds: Seconds of a gradient of the trajectory's chains, over the pilot's items.
        seconds_of_chain: Seconds of a gradient of one chain alone over all train items.
    """

    largest: float
    smallest: float
    seconds: float
    seconds_of_chain: float


class Probe:
    """A few chains over a few items, with random numbers of their own."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem, self.settings = problem, settings
        self.device = run_device(problem, settings)
        self.posterior = self.posterior_of(settings.gamma or 1.0)
        self.oracle = make_oracle(problem, settings, list(self.posterior.center))
        self.num_chains = num_pilot_chains(settings, self.posterior)
        self.noise = BlockNoise(generator(0, 0, "probe", device=self.device), self.posterior.masks)
        order = torch.Generator().manual_seed(0)
        self.order = torch.randperm(problem.num_train, generator=order)
        self.whole = self.items(_PILOT_ITEMS)
        self.params = tensors.stacked(self.posterior.center, self.num_chains)
        self.one = {name: leaf[:1] for name, leaf in self.params.items()}

    def posterior_of(self, gamma: float) -> LocalPosterior:
        """Return the posterior with this gamma."""
        return make_posterior(self.problem, replace(self.settings, gamma=gamma))

    def items(self, count: int) -> _PilotItems:
        """Return so many of the train items, the same at every call."""
        return self.at(self.order[:count])

    def at(self, places: Tensor) -> _PilotItems:
        """Return train items by their positions."""
        return _PilotItems.at(self.problem, places, self.posterior, self.device)

    def largest(
        self, some: _PilotItems, params: Params, iterations: int, noise: BlockNoise | None = None
    ) -> float:
        """Return the largest curvature of items' mean loss at the weights of any chain."""
        found = largest_curvature(
            some.gradient(self.oracle, self.settings), params,
            direction=(noise or self.noise).normal(params), masks=self.posterior.masks,
            iterations=iterations,
        )  # fmt: skip
        return float(found.max())

    def measure_center(self) -> _Center:
        """Measure curvatures and seconds at w*.

        Raises:
            ValueError: A budget in which not even these fit.
        """
        budget = None if self.settings.budget is None else float(self.settings.budget)
        gradient = self.whole.gradient(self.oracle, self.settings)
        alone = seconds_of_gradient(gradient, self.one)
        of_chain = alone * self.problem.num_train / len(self.whole.items)
        if budget is not None:
            _refuse_small_budget(budget, alone, of_chain, self.settings.gamma is None)
        largest = self.largest(self.whole, self.one, CENTER_ITERATIONS)
        seconds = self.num_chains * alone
        if budget is None or 2 * seconds < _TIMED_SHARE * budget:
            seconds = seconds_of_gradient(gradient, self.params)  # stacks are faster than that
        smallest = smallest_curvature(
            gradient, self.one, direction=self.noise.normal(self.one), masks=self.posterior.masks,
            largest=torch.tensor([largest], dtype=torch.float64, device=self.device),
        )  # fmt: skip
        return _Center(largest, float(smallest), seconds, of_chain)

    def leftover(self, largest: float) -> float:
        """Return `leftover_curvature` by all items; NaN where there are too many."""
        if self.problem.num_train > _MOST_ITEMS:
            return math.nan
        return leftover_curvature(
            self._of_all, self.posterior, self.one, left=self._left, largest=largest
        )

    def dampings(self, damping: float) -> list[Damping]:
        """Return what factors on a damping gamma/nbeta do, by the gradients of a few items."""
        items, weights = self.whole
        first = range(min(NUM_ITEMS, len(items)))
        rows = gradient_sketches(
            self.oracle, self.one, items, first, masks=self.posterior.masks
        )  # fmt: skip
        return dampings(
            rows * weights.mean().sqrt().cpu(), usual=damping + self.settings.weight_decay,
            num_train=self.problem.num_train,
        )  # fmt: skip

    def draws_for_half(self, damping: float) -> float:
        """Return the effective draws for a reliability of one half; those of a run of few items."""
        if len(self.whole.items) < FEWEST_ITEMS:
            return float(EFFECTIVE_DRAWS)
        return self.dampings(damping)[0].draws_for_half

    def left_gradient(self) -> float:
        """Return the squared gradient of the training objective at w*; NaN of too many items."""
        if self.problem.num_train > _MOST_ITEMS:
            return math.nan
        return float(tensors.squared_norm(self._left))

    @cached_property
    def _left(self) -> Params:
        """The gradient of the training objective at w*."""
        return left_gradient(self._of_all, self.posterior, self.one)

    @cached_property
    def _of_all(self) -> FullGradient:
        """The gradient of all items."""
        problem, settings = self.problem, self.settings
        like = next(iter(self.posterior.center.values()))
        precision = precision_at_center(settings.precisions[1], self.posterior.num_moving)
        exact = replace(settings, gradient_precision=precision)
        return FullGradient(
            make_oracle(problem, exact, list(self.posterior.center)),
            problem.train.to(self.device),
            chunk_size=settings.chunk_size or 1,
            train_weights=item_weights(problem, like).to(self.device),
        )


def _choose_gamma(probe: Probe, center: _Center, choices: Choices) -> tuple[float, float]:
    """Return gamma, given or chosen, and the largest curvature that sets the trajectory's step."""
    nbeta = probe.settings.nbeta or 0.0
    downwards = -nbeta * (center.smallest + probe.settings.weight_decay)
    given = probe.settings.gamma
    if given is None:
        gamma, there, why = _default_gamma(probe, center, downwards)
        choices.choose("gamma", gamma, why)
        return gamma, there
    if downwards > given:
        choices.warn(
            f"U curves downwards at w*: its smallest curvature there is "
            f"{given - downwards:.4g}, for the mean loss has {center.smallest:.4g}. The chains "
            f"leave w* for another place. Set gamma=None, which adds {downwards:.4g} to its "
            f"default, or set gamma={2 * downwards:.3g}, or train on to a minimum"
        )
    return given, center.largest


def _default_gamma(probe: Probe, center: _Center, downwards: float) -> tuple[float, float, str]:
    """Return gamma, the largest curvature that sets the trajectory's step, and the reason."""
    nbeta = probe.settings.nbeta or 0.0
    damping, why = usual_damping(center.largest, probe.leftover(center.largest))
    gamma, why = max(nbeta, 1.0) * damping, f"damping gamma/nbeta = {why}"
    if nbeta and gamma and len(probe.whole.items) >= FEWEST_ITEMS:
        raised, words = _raise_damping(probe, gamma / nbeta)
        gamma, why = raised * gamma, why + words
    if downwards > gamma:
        gamma += downwards
        why += (
            f", and {downwards:.4g} more, since the training objective curves downwards by as "
            "much at w*, which is no minimum"
        )
    least = narrowest_gamma(probe.posterior)
    wide = gamma < _NEARLY * least
    if gamma < least:
        gamma = least
        why += (
            f", raised: with this gamma chains stay within {_WIDEST:g} |w*|. Give gamma for "
            "another ball"
        )
    if wide:
        in_the_ball = _curvature_in_the_ball(probe, gamma)
        if _FLAT * center.largest < in_the_ball < math.inf:
            why = (
                "the train items are fitted perfectly, so that the loss is flat at w* (largest "
                f"curvature {center.largest:.2g}) and sets no scale: damping gamma/nbeta = largest "
                f"curvature as far away as chains would go, {in_the_ball:.2g}, / {SHARE:g}. Give "
                "gamma for another ball"
            )
            return max(gamma, max(nbeta, 1.0) * in_the_ball / SHARE), in_the_ball, why
    return gamma, center.largest, why


def _curvature_in_the_ball(probe: Probe, gamma: float) -> float:
    """Return the largest curvature of the mean loss where the Gaussian of this gamma goes."""
    source = generator(0, 0, "probe", device=probe.device, counter="ball")
    noise = BlockNoise(source, probe.posterior.masks)
    ball = tensors.add_(tensors.copied(probe.params), noise.normal(probe.params), gamma**-0.5)
    return probe.largest(probe.whole, ball, _POWER_ITERATIONS, noise)


def _leave_center(
    probe: Probe, center: _Center, gamma: float, there: float, choices: Choices
) -> tuple[float, _PilotItems, list[Params] | None]:
    """Follow a short trajectory from w*, with a larger gamma if chains run off.

    Returns:
        gamma, the items that were seen, and the places; None if chains run off all the same.
    """
    settings, decay = probe.settings, probe.settings.weight_decay
    nbeta = settings.nbeta or 0.0

    def places(some: _PilotItems, gamma: float) -> list[Params] | None:
        return short_trajectory(
            probe.posterior_of(gamma), gradient=some.gradient(probe.oracle, settings),
            params=probe.params, noise=probe.noise, k_max=nbeta * (there + decay) + gamma,
        )  # fmt: skip

    count = _affordable_items(len(probe.whole.items), center.seconds, settings)
    few = probe.whole if count == len(probe.whole.items) else probe.items(count)
    seen, tighter = places(few, gamma), gamma
    for _ in range(_TIGHTER):
        if seen is not None:
            break
        tighter = 10 * tighter or 1.0
        seen = places(probe.whole, tighter)  # what is found is the same on any machine
    if seen is None or (tighter > gamma and settings.gamma is not None):
        choices.warn(
            f"{RUN_OFF} with every step that was tried: the loss is far from quadratic there. Set "
            f"gamma={tighter:.3g}, or train on to a minimum"
        )
        choices.remark(
            f"largest curvature of the mean loss: {center.largest:.4g} at w*, unknown away from it"
        )
        return gamma, few, None
    if tighter > gamma:
        why = f"with less, {RUN_OFF} with every step that was tried"
        choices.choose("gamma", tighter, why)
    return tighter, few, seen


def _largest_of_batches(probe: Probe, params: Params, largest: float, choices: Choices) -> float:
    """Return the largest curvature of the mean loss of a few mini-batches, or `largest`."""
    batch = probe.settings.batch_size or 1
    parts = probe.order[: batch * min(_BATCHES, probe.problem.num_train // batch)].split(batch)
    found = max(probe.largest(probe.at(part), params, _POWER_ITERATIONS) for part in parts)
    if not largest < found < math.inf:
        return largest
    choices.remark(
        f"largest curvature of a mini-batch's mean loss: {found:.4g}, in {len(parts)} of {batch} "
        "items"
    )
    return found


def _refuse_small_budget(budget: float, alone: float, of_chain: float, open_gamma: bool) -> None:
    """Raise where not even the curvature at w* fits, before it is measured.

    Args:
        budget: Budget in seconds.
        alone: Seconds of a gradient of one chain, over the pilot's items.
        of_chain: Seconds of a gradient of one chain, over all train items.
        open_gamma: Whether gamma is open, which takes three of these besides.
    """
    at_center = 4 * CENTER_ITERATIONS * alone + 3 * open_gamma * of_chain
    if at_center <= _CENTER_SHARE * budget:
        return
    needed = 1.2 * (2 * at_center + _FEWEST_STEPS * of_chain)
    raise ValueError(
        f"a budget of {budget:.3g} s is too small: the curvature at w* alone takes about "
        f"{at_center:,.0f} s, at {alone:.3g} s a gradient. Give budget='{math.ceil(needed)}s', "
        "name fewer weights in movable, or use a faster device."
    )


class _PilotItems(NamedTuple):
    """Some train items on the device, with their training weights."""

    items: Items
    weights: Tensor

    @classmethod
    def at(
        cls, problem: Problem, places: Tensor, posterior: LocalPosterior, device: torch.device
    ) -> _PilotItems:
        chosen = places.sort().values
        like = next(iter(posterior.center.values()))
        return cls(
            Items(problem.train.take(chosen)).to(device),
            item_weights(problem, like)[chosen.to(device)],
        )

    def gradient(self, oracle: Oracle, settings: Settings) -> FullGradient:
        """Return the gradient of the mean loss over these items."""
        assert settings.chunk_size is not None
        return FullGradient(
            oracle, self.items, chunk_size=settings.chunk_size, train_weights=self.weights
        )


def seconds_of_gradient(gradient: FullGradient, params: Params) -> float:
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
    """Return the number of chains of the trajectory: fewer where they are large or sequential."""
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


def _raise_damping(probe: Probe, damping: float) -> tuple[float, str]:
    """Return a factor on the usual damping, and the reason for one above 1."""
    found = probe.dampings(damping)
    best = best_damping(found)
    if best.factor == 1:
        return 1.0, ""
    return best.factor, (
        f", × {best.factor:g}: gradients of items are so nearly orthogonal that without the factor "
        f"it takes {found[0].draws_for_half:,.0f} effective draws for a reliability of one half, "
        f"with it {best.draws_for_half:,.0f}"
    )


def _affordable_items(count: int, seconds: float, settings: Settings) -> int:
    """Return how many items fit into a part of a budget; fewer have the larger curvature."""
    if settings.budget is None:
        return count
    allowed = _TRAJECTORY_SHARE * float(settings.budget)
    fitting = int(count * allowed / (_TRAJECTORY_TIMES * seconds))
    return min(count, max(_FEWEST_ITEMS, fitting))
