"""Choose what the user left open: oracle, chunk, step size, friction, burn-in, thinning; say why.

The rules come from the laws of the samplers on quadratics (see the docs page "Samplers"): the
step from the largest curvature of U, the friction and burn-in from the smallest, which is gamma.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import ceil, sqrt

import torch
from torch import Tensor

from bif import tensors
from bif.assemble import run_device
from bif.budget import Goal, choose_draws
from bif.items import batch_leaves, map_batch
from bif.mass import whitened_curvature
from bif.oracles import vmap_refusal
from bif.pilot import WARNING, Pilot, pilot
from bif.posterior import LocalPosterior
from bif.problem import Problem
from bif.samplers import RMSpropSGLD
from bif.settings import Settings

UNDERDAMPED_STEP = 1.2
"""Step of the underdamped rules in units of 1 / sqrt(largest curvature); stable below 2.

BAOAB's positions have no discretisation bias on quadratics, so the step is as large as the spread
of curvatures along a chain allows: a longer step decorrelates sooner.
"""
DEFAULT_DRAWS = 200
WORTHWHILE = 3.0
"""A mass that shortens the steps to forget by less, by the extreme curvatures, is left: not all of
it is seen in effective draws, and its products cost time, the more so the fewer the items."""
_MASS_TIMES, _MASS_SHARE = 10.0, 0.2
"""How long a mass takes to measure, in units of the largest curvature at w*, and the share of a
budget that it may take."""
ROUND_STEP = 1.4
"""As `UNDERDAMPED_STEP`, in the coordinates of a mass, whose largest curvature is measured where
the chains will be."""
ROUND_FRICTION = 0.4
"""In the coordinates of a mass, where curvatures are about 1: all directions steeper than .04, the
square of its half, forget at half of it."""
LOW_FRICTION, CRITICAL_FRICTION = 1.4, 2.0
"""Friction in units of sqrt(smallest curvature), without and with gradient noise."""

_ACTIVATION_BYTES = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}


@dataclass(frozen=True)
class Calibration:
    """Settings with nothing left open, and a line of explanation for each choice."""

    settings: Settings
    explanations: tuple[str, ...]
    reliability: float | None = None
    """What was aimed at, if anything."""
    goal: Goal | None = None
    """Where to end before the last draw."""
    curvature: float | None = None
    """Largest of the mean loss where the chains go, if it was measured or given."""

    @property
    def warnings(self) -> list[str]:
        """The explanations that a reader should see beside the result."""
        return [
            line.removeprefix(WARNING) for line in self.explanations if line.startswith(WARNING)
        ]


def calibrate(
    problem: Problem, settings: Settings, *, curvature: float | None = None
) -> Calibration:
    """Fill in every setting that is None.

    With `reliability` or `budget`, a pilot of a few chains measures seconds and agreement, and the
    number of draws follows; it then depends on how fast the machine is.

    Args:
        problem: What is to be attributed.
        settings: With None where the library should choose.
        curvature: Largest of the mean loss where the chains will go, where it is known from a
            posterior as warm: with gamma given, it is then not measured.

    Returns:
        Complete settings and the reasons.

    Raises:
        ValueError: A model that vmap cannot take with `oracle="stacked"`; a mini-batch larger
            than the data; a budget too small to converge.
    """
    started = time.perf_counter()
    said: list[str] = list(problem.notes)
    target, forecast = settings.reliability, (settings.reliability, settings.budget) != (None, None)
    if settings.draws is None and not forecast:
        settings = replace(settings, draws=DEFAULT_DRAWS)
        said.append(f"draws = {DEFAULT_DRAWS} of each chain: the default")
    settings = _choose_oracle(problem, settings, said)
    settings = _choose_chunk(problem, settings, said)
    settings, relaxation, curvature = _choose_posterior_and_steps(
        problem, settings, curvature, said
    )
    goal = None
    if forecast:
        settings, goal = choose_draws(
            problem, settings, relaxation=relaxation, said=said, started=started
        )
    return Calibration(settings, tuple(said), target, goal, curvature)


def _choose_oracle(problem: Problem, settings: Settings, said: list[str]) -> Settings:
    oracle = settings.oracle
    if oracle in (None, "stacked"):
        device = run_device(problem, settings)
        model = problem.evaluation_copy(device)
        names = LocalPosterior(problem.center(), 1.0, 1.0, settings.movable).center
        pair = tensors.stacked({n: leaf.to(device) for n, leaf in names.items()}, 2)
        batch = map_batch(lambda leaf: leaf.to(device), problem.train.first(2))
        refusal = vmap_refusal(
            model,
            problem.loss,
            params=pair,
            batch=batch,
            per_chain=settings.gradient != "full",
            observables=[observable.function for observable in problem.observables],
        )
        if refusal and oracle == "stacked":
            raise ValueError(
                f"the model cannot be stacked by torch.func.vmap: {refusal}. Use "
                "oracle='sequential', which runs one chain after another and takes any model."
            )
        oracle = "sequential" if refusal else "stacked"
        said.append(
            f"oracle = sequential: vmap cannot take the model ({refusal})"
            if refusal
            else "oracle = stacked: all chains of a block step as one operation"
        )
    chains = settings.chains or {"stacked": 64, "sequential": 8, "live": 4}[oracle]
    block = 1 if oracle == "live" else min(chains, settings.block_size or 64)
    if settings.chains is None:
        said.append(f"chains = {chains}: the default for {oracle} chains")
    return replace(settings, oracle=oracle, chains=chains, block_size=block)


def _choose_chunk(problem: Problem, settings: Settings, said: list[str]) -> Settings:
    device = run_device(problem, settings)
    if settings.chunk_size is None:
        assert settings.block_size is not None
        per_item = _activation_bytes(problem, device)
        at_once = settings.block_size if settings.oracle == "stacked" else 1
        budget = _ACTIVATION_BYTES.get(device.type, 2**30)
        chunk = max(1, min(problem.num_train, int(budget / (per_item * at_once))))
        # Equal chunks, so that the last one is not a sliver with kernels of its own.
        chunk = ceil(problem.num_train / ceil(problem.num_train / chunk))
        settings = replace(settings, chunk_size=chunk)
        said.append(
            f"chunk_size = {chunk}: {per_item / 1024:.1f} KiB of activations an item and chain, "
            f"{at_once} chains at once, {budget / 2**20:.0f} MiB for them on {device.type}"
        )
    if settings.gradient != "full":
        batch = settings.batch_size or min(problem.num_train, 128)
        if batch > problem.num_train:
            raise ValueError(
                f"batch_size={batch} exceeds the {problem.num_train} train items: lower it, or "
                "use gradient='full'."
            )
        settings = replace(settings, batch_size=batch)
    return settings


def _activation_bytes(problem: Problem, device: torch.device) -> int:
    """Bytes that one item keeps for the backward pass, inputs included."""
    model = problem.evaluation_copy(device)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    batch = map_batch(lambda leaf: leaf.to(device), problem.train.first(2))
    count = len(next(iter(batch_leaves(batch).values())))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {
        leaf.untyped_storage().data_ptr(): leaf.numel() * leaf.element_size()
        for leaf in batch_leaves(batch).values()
    }

    def pack(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in weights:
            kept[where] = max(kept.get(where, 0), tensor.numel() * tensor.element_size())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        problem.loss(model, batch)
    return max(1, sum(kept.values()) // count)


def _choose_posterior_and_steps(
    problem: Problem, settings: Settings, curvature: float | None, said: list[str]
) -> tuple[Settings, float, float | None]:
    """Complete settings, the steps in which the slowest direction forgets, the curvature used."""
    nbeta = settings.nbeta
    if nbeta is None:
        nbeta = float(problem.num_train)
        said.append(f"nbeta = {nbeta:g}: the number of train items, the untempered posterior")
    chosen = replace(settings, nbeta=nbeta)
    underdamped = settings.sampler in ("baoab", "sgnht")
    needed = [settings.gamma, settings.step_size, settings.burn_in, settings.thin]
    if None not in (needed + [settings.friction] if underdamped else needed):
        chosen = replace(chosen, mass=chosen.mass or "identity")
        return chosen, _relaxation(chosen, max(_smallest_curvature(chosen), 1e-12)), curvature
    if curvature is None or chosen.gamma is None:
        found = pilot(problem, chosen, said)
    else:
        found = Pilot(chosen.gamma, curvature, 0.0)
        said.append(f"largest curvature of the mean loss: {curvature:.4g}, as given")
    chosen, k_max = _choose_mass(problem, replace(chosen, gamma=found.gamma), found, said)
    return *_steps(problem, chosen, k_max, said), found.curvature


def _choose_mass(
    problem: Problem, settings: Settings, found: Pilot, said: list[str]
) -> tuple[Settings, float]:
    """The mass, and the largest curvature of U in its coordinates.

    Args:
        settings: With nbeta and gamma.
        found: By the pilot.
    """
    s = settings
    assert s.nbeta is not None and s.gamma is not None
    k_max = s.nbeta * (found.curvature + s.weight_decay) + s.gamma
    if s.mass == "kronecker":
        return s, whitened_curvature(problem, s)
    given = s.mass == "identity" or (s.step_size, s.friction) != (None, None)
    if given or (s.sampler, s.gradient, s.oracle) != ("baoab", "full", "stacked") or not s.nbeta:
        return replace(s, mass="identity"), k_max
    expected = _MASS_TIMES * found.seconds
    if s.budget is not None and expected > _MASS_SHARE * float(s.budget):
        said.append(
            f"mass = identity: measuring another would take about {expected:,.0f} s of a budget of "
            f"{float(s.budget):,.0f} s"
        )
        return replace(s, mass="identity"), k_max
    # Steps to forget go with the root of the spread of curvatures.
    round_max = whitened_curvature(problem, s)
    spread = k_max / max(s.gamma + s.nbeta * s.weight_decay, 1e-6 * k_max)
    if spread < WORTHWHILE**2 * round_max:
        said.append(
            f"mass = identity: curvatures of U span a factor of {spread:.3g}, in round coordinates "
            f"still {round_max:.3g}, which would not pay for the products"
        )
        return replace(s, mass="identity"), k_max
    said.append(
        f"mass = kronecker: curvatures of U span a factor of {spread:.3g}; in round coordinates, "
        f"measured by products of its Hessian with random directions, they go up to {round_max:.3g}"
    )
    return replace(s, mass="kronecker"), round_max


def _smallest_curvature(settings: Settings) -> float:
    assert settings.nbeta is not None and settings.gamma is not None
    if settings.mass == "kronecker":
        return ((settings.friction or ROUND_FRICTION) / 2) ** 2
    return settings.gamma + settings.nbeta * settings.weight_decay


def _relaxation(settings: Settings, k_min: float) -> float:
    """Steps in which a direction of curvature `k_min` forgets all but 1/e of where it was."""
    step, friction = settings.step_size, settings.friction
    assert step is not None
    if settings.sampler not in ("baoab", "sgnht"):
        # RMSprop steps are largest where the gradient vanishes: step_size / stabilizer.
        factor = 1.0 if settings.sampler == "sgld" else RMSpropSGLD(1.0).stabilizer
        return 2 * factor / (step * k_min)
    assert friction is not None
    # Of exp(-rate·t) in w'' = -friction·w' - k_min·w: slower on either side of 2·sqrt(k_min).
    half = friction / 2
    rate = half if half**2 <= k_min else k_min / (half + sqrt(half**2 - k_min))
    return 1 / (step * rate)


def _steps(
    problem: Problem, settings: Settings, k_max: float, said: list[str]
) -> tuple[Settings, float]:
    """Step size, friction, burn-in and thinning from the extreme curvatures of U."""
    assert settings.nbeta is not None and settings.gamma is not None
    white = settings.mass == "kronecker"
    k_min = max(_smallest_curvature(settings), 1e-3 * k_max * (not white))
    underdamped = settings.sampler in ("baoab", "sgnht")
    if underdamped:
        length = ROUND_STEP if white else UNDERDAMPED_STEP
        step = settings.step_size or length / sqrt(k_max)
        # Low friction decorrelates losses fastest, but multiplies gradient noise.
        damped = LOW_FRICTION if settings.gradient == "full" else CRITICAL_FRICTION
        friction = settings.friction or (ROUND_FRICTION if white else damped * sqrt(k_min))
        why = (
            f"{length:g} / sqrt(largest curvature of U, {k_max:.4g}); stable below "
            f"{2 / sqrt(k_max):.4g}"
        )
        if settings.friction is None:
            said.append(
                f"friction = {friction:.4g}: in round coordinates, where curvatures are about 1"
                if white
                else f"friction = {friction:.4g}: {damped:g} sqrt(smallest curvature of U, "
                f"{k_min:.4g})"
            )
    else:
        friction = settings.friction
        # RMSprop steps are largest where the gradient vanishes: step_size / stabilizer.
        factor = 1.0 if settings.sampler == "sgld" else RMSpropSGLD(1.0).stabilizer
        step = settings.step_size or 0.5 * factor / k_max
        why = f"{0.5 * factor:g} / largest curvature of U, {k_max:.4g}"
    if settings.step_size is None:
        said.append(f"step_size = {step:.4g}: {why}")
    settings = replace(settings, step_size=step, friction=friction)
    relaxation = _relaxation(settings, k_min)
    # Ten relaxation times of the underdamped rule's slowest direction shrink a start by e^-10.
    times = 6 if white else 10 if underdamped else 5
    burn_in = ceil(times * relaxation)
    part, words = (6, "a sixth") if white else (3, "a third")
    thin = max(1, round(relaxation / part))
    reason = f"{words} of the relaxation time, since the losses come with the gradient"
    if settings.gradient != "full":
        assert settings.batch_size is not None
        passes = 6 if settings.gradient == "control_variate" else 3
        by_cost = ceil(problem.num_train / (passes * settings.batch_size))
        if by_cost > thin:
            thin, reason = by_cost, "steps that cost as much as the draw's own pass over the data"
    said.append(f"relaxation of the slowest direction: {relaxation:.1f} steps")
    if settings.burn_in is None:
        said.append(f"burn_in = {burn_in}: {times} relaxation times")
    if settings.thin is None:
        said.append(f"thin = {thin}: {reason}")
    chosen = replace(
        settings,
        burn_in=burn_in if settings.burn_in is None else settings.burn_in,
        thin=settings.thin or thin,
    )
    return chosen, relaxation
