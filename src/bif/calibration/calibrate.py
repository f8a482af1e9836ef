"""Choose what the user left open: oracle, chunk, posterior, steps, draws; say why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf

import torch
from torch import Tensor

from bif import tensors
from bif.calibration.budget import Aim, Goal, TooSmallBudget, choose_draws
from bif.calibration.control_variates import fall_back
from bif.calibration.measured_mass import whitened_curvature
from bif.calibration.oracle_race import seconds_of_gradient
from bif.calibration.pilot import Pilot, pilot
from bif.calibration.preflight import check_items
from bif.calibration.steps import OPEN_DRAWS, choose_steps, relaxation_steps, smallest_curvature
from bif.calibration.temperature import default_nbeta
from bif.problem.items import batch_leaves, to_device
from bif.problem.problem import Problem
from bif.sampling.choices import Choice, Choices
from bif.sampling.factory import moving_center, run_device
from bif.sampling.movable_weights import with_movable
from bif.sampling.oracles import vmap_refusal
from bif.sampling.settings import RunSettings, Settings, as_settings

DEFAULT_DRAWS = 200
"""Draws of each chain where neither draws nor reliability nor budget are given."""
_FASTER = 0.7
"""Share of a stack's time that chains one by one may take to be preferred: less is chance."""
_MASS_TIMES = 200.0
"""Time that a mass takes to measure, in gradients of the pilot's chains."""
_MASS_SHARE = 0.2
"""Part of a budget that measuring a mass may take; sampling needs the rest."""
_ACTIVATION_BYTES = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}
"""Bytes of activations that a chunk may hold, by the kind of device."""


@dataclass(frozen=True)
class Calibration:
    """The complete settings of a run, and the choices that led there."""

    settings: RunSettings
    choices: tuple[Choice, ...]
    reliability: float | None = None
    """The reliability that was asked for, if any."""
    goal: Goal | None = None
    """The reliability that ends the run before its last draw, if any."""
    curvature: float | None = None
    """Largest curvature of the mean loss where the chains go, if it was measured or given."""

    @property
    def explanations(self) -> tuple[str, ...]:
        """Return a line for each choice."""
        return tuple(map(str, self.choices))

    @property
    def warnings(self) -> list[str]:
        """Return what a reader should see beside the result."""
        return [choice.reason for choice in self.choices if choice.is_warning]


def calibrate(
    problem: Problem,
    settings: Settings,
    *,
    curvature: float | None = None,
    tell: Callable[[list[str]], None] | None = None,
    num_ranks: int = 1,
) -> Calibration:
    """Fill in every setting that is None.

    With `reliability` or `budget`, a pilot of a few chains measures seconds and agreement, and the
    number of draws follows; it then depends on how fast the machine is.

    Args:
        problem: What is to be attributed.
        settings: Settings with None where the library should choose.
        curvature: Largest of the mean loss where the chains will go, where it is known from a
            posterior as warm: with gamma given, it is then not measured.
        tell: Gets every line of explanation as it comes, for what takes long.
        num_ranks: Processes that share the chains, by whole blocks.

    Returns:
        Complete settings and the reasons.

    Raises:
        ValueError: A model that vmap cannot take with `oracle="stacked"`; a mini-batch larger
            than the data; a budget too small to converge.
    """
    settings = as_settings(settings)
    settings.require_chains("calibration")
    settings.require_steps()
    problem.refuse_path("calibration")
    started = time.perf_counter()
    choices = Choices(tell)
    for note in (*problem.notes, *problem.proxies_in_words):
        choices.remark(note)
    target, aim = settings.reliability, Aim.of(settings, num_ranks)
    left_open, settings = settings.gradient is None, _with_gradient(settings, choices)
    settings = with_movable(problem, with_precisions(problem, settings, choices), choices)
    if settings.draws is None and aim is None:
        settings = replace(settings, draws=DEFAULT_DRAWS)
        choices.choose("draws", f"{DEFAULT_DRAWS} of each chain", "the default")
    free = settings
    settings = _choose_oracle(problem, settings, choices, num_ranks)
    settings = _choose_chunk(problem, settings, choices)
    if settings.shards == 1:
        check_items(problem, settings, choices)
    else:
        choices.choose(
            "oracle", "live", f"{settings.shards} ranks hold one model; items are not evaluated "
            "twice before the run",
        )  # fmt: skip
    asked = settings  # mini-batches, to which a small budget falls back, are stacked
    if aim is not None and free.oracle is None and run_device(problem, free).type == "cuda":
        settings = _faster_oracle(problem, free, settings, choices)
    chosen, relaxation, curvature, of_chain = _choose_posterior_and_steps(
        problem, settings, curvature, choices
    )
    if aim is None:
        return Calibration(chosen, tuple(choices), target, None, curvature)
    on_cpu = run_device(problem, chosen).type == "cpu"  # stacks on a GPU are faster than that
    try:
        complete, goal = choose_draws(
            problem, chosen, aim, relaxation=relaxation, choices=choices, started=started,
            of_chain=of_chain if on_cpu else 0.0,
        )  # fmt: skip
        return Calibration(complete, tuple(choices), target, goal, curvature)
    except TooSmallBudget as error:
        # Chains that step one by one gain as much, but fused ones hold no gradient at w*.
        if not left_open or curvature is None or chosen.memory != "plain":
            raise
        too_small = error
    asked = replace(asked, nbeta=chosen.nbeta, gamma=chosen.gamma, retrained_from=None)
    k_max = _largest_curvature(chosen, curvature)
    complete, goal = fall_back(
        problem, asked, aim, too_small, k_max=k_max, choices=choices, started=started
    )
    return Calibration(complete, tuple(choices), target, goal, curvature)


def refuse_unusable(problem: Problem, settings: Settings) -> None:
    """Raise early what `calibrate` would raise before its pilot, without long work.

    Raises:
        ValueError: As `calibrate`, but for a budget that is too small.
    """
    settings.require_steps()
    choices = Choices()
    settings = with_precisions(problem, _with_gradient(settings, choices), choices)
    settings = _choose_oracle(problem, with_movable(problem, settings, choices), choices)
    settings = _choose_chunk(problem, settings, choices)
    if settings.shards == 1:
        check_items(problem, settings, choices)


def _with_gradient(settings: Settings, choices: Choices) -> Settings:
    if settings.gradient is not None:
        return settings
    choices.choose(
        "gradient", "full", "the losses of all items come with it, and nothing of it is noise"
    )
    return replace(settings, gradient="full")


def with_precisions(problem: Problem, settings: Settings, choices: Choices) -> Settings:
    """Return settings with the precision of gradients and of recorded losses."""
    on_gpu = run_device(problem, settings).type == "cuda"
    default = "bfloat16" if settings.memory == "lean" else "tf32" if on_gpu else "float32"
    precisions = settings.gradient_precision or default, settings.loss_precision or default
    given = settings.gradient_precision, settings.loss_precision
    if on_gpu and settings.memory != "lean" and None in given:
        choices.choose(
            "precision", f"{precisions[0]} of gradients, {precisions[1]} of losses",
            "on a GPU faster than float32, which is to be asked for",
        )  # fmt: skip
    return replace(settings, gradient_precision=precisions[0], loss_precision=precisions[1])


def _largest_curvature(settings: Settings, of_mean_loss: float) -> float:
    """Return the largest curvature of U, from that of the mean loss."""
    assert settings.nbeta is not None and settings.gamma is not None
    return settings.nbeta * (of_mean_loss + settings.weight_decay) + settings.gamma


def _choose_oracle(
    problem: Problem, settings: Settings, choices: Choices, num_ranks: int = 1
) -> Settings:
    oracle = settings.oracle
    if oracle in (None, "stacked"):
        device = run_device(problem, settings)
        model = problem.evaluation_copy(device)
        pair = tensors.stacked(moving_center(problem, settings), 2)
        batch = to_device(problem.train.first(2), device)
        refusal = vmap_refusal(
            model,
            problem.loss,
            params=pair,
            batch=batch,
            per_chain=settings.gradient != "full",
            observables=[observable.recorded for observable in problem.observables],
        )
        if refusal and oracle == "stacked":
            raise ValueError(
                f"the model cannot be stacked by torch.func.vmap: {refusal}. Use "
                "oracle='sequential', which runs one chain after another and takes any model."
            )
        oracle = "sequential" if refusal else "stacked"
        choices.choose(
            "oracle",
            oracle,
            f"vmap cannot take the model ({refusal})"
            if refusal
            else "all chains of a block step as one operation",
        )
    chains = settings.chains or {"stacked": 64, "sequential": 8, "live": 4}[oracle]
    block = 1 if oracle == "live" else min(chains, settings.block_size or 64)
    if num_ranks > 1 and settings.block_size is None and oracle != "live":
        block = min(block, -(-chains // num_ranks))
        choices.choose("block_size", block, f"{num_ranks} ranks take whole blocks of chains")
    if settings.chains is None:
        choices.choose("chains", chains, f"the default for {oracle} chains")
    return replace(settings, oracle=oracle, chains=chains, block_size=block)


def _faster_oracle(
    problem: Problem, free: Settings, stacked: Settings, choices: Choices
) -> Settings:
    """Return settings of sequential chains where the device is faster at these.

    Args:
        problem: What is to be attributed.
        free: Settings without a choice of oracle and, perhaps, of chunk.
        stacked: Settings with the usual choices.
    """
    if (stacked.oracle, stacked.gradient, stacked.compiled) != ("stacked", "full", False):
        return stacked
    of_chunk = Choices()
    alone = _choose_chunk(
        problem, replace(stacked, oracle="sequential", chunk_size=free.chunk_size), of_chunk
    )
    together, one_by_one = (seconds_of_gradient(problem, s) for s in (stacked, alone))
    if one_by_one > _FASTER * together:
        return stacked
    choices.forget("oracle", "chunk_size")
    choices.choose(
        "oracle", "sequential", f"a gradient of a few chains takes {one_by_one:.3g} s one after "
        f"another, {together:.3g} s stacked",
    )  # fmt: skip
    choices.extend(of_chunk)
    return alone


def _choose_chunk(problem: Problem, settings: Settings, choices: Choices) -> Settings:
    device = run_device(problem, settings)
    if settings.chunk_size is None:
        assert settings.block_size is not None
        per_item = activation_bytes(problem, device)
        at_once = settings.block_size if settings.oracle == "stacked" else 1
        budget = _ACTIVATION_BYTES.get(device.type, 2**30)
        chunk = max(1, min(problem.num_train, int(budget / (per_item * at_once))))
        # Equal chunks, so that the last one is not a sliver with kernels of its own.
        chunk = ceil(problem.num_train / ceil(problem.num_train / chunk))
        settings = replace(settings, chunk_size=chunk)
        choices.choose(
            "chunk_size", chunk, f"{per_item / 1024:.1f} KiB of activations an item and chain, "
            f"{at_once} chains at once, {budget / 2**20:.0f} MiB for them on {device.type}",
        )  # fmt: skip
    if settings.gradient != "full":
        batch = settings.batch_size or min(problem.num_train, 128)
        if batch > problem.num_train:
            raise ValueError(
                f"batch_size={batch} exceeds the {problem.num_train} train items: lower it, or "
                "use gradient='full'."
            )
        settings = replace(settings, batch_size=batch)
    return settings


def activation_bytes(problem: Problem, device: torch.device) -> int:
    """Return the bytes that one item keeps for the backward pass, inputs included."""
    model = problem.evaluation_copy(device)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    batch = to_device(problem.train.first(2), device)
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
    problem: Problem, settings: Settings, curvature: float | None, choices: Choices
) -> tuple[RunSettings, float, float | None, float]:
    """Complete the settings by the posterior, the mass and the steps.

    Returns:
        Complete settings, the relaxation time in steps, the largest curvature of the mean loss, and
        the seconds of a gradient of one chain, 0 where they are not known.
    """
    chosen = settings
    if settings.nbeta is None:
        chosen, why = default_nbeta(problem, settings)
        choices.choose("nbeta", f"{chosen.nbeta:g}", why)
    needed = [settings.gamma, settings.step_size, settings.burn_in, settings.thin]
    if None not in (needed + [settings.friction] if settings.traits.underdamped else needed):
        given = RunSettings.completing(
            chosen, mass=chosen.mass or "identity", draws=chosen.draws or OPEN_DRAWS
        )
        relaxation = relaxation_steps(given, max(smallest_curvature(given), 1e-12))
        return given, relaxation, curvature, 0.0
    if curvature is None or chosen.gamma is None:
        found = pilot(problem, chosen, choices)
    else:
        found = Pilot(chosen.gamma, curvature, 0.0, 0.0)
        choices.remark(f"largest curvature of the mean loss: {curvature:.4g}, as given")
    chosen, k_max = _choose_mass(problem, replace(chosen, gamma=found.gamma), found, choices)
    complete, relaxation = choose_steps(problem, chosen, k_max, choices)
    return complete, relaxation, found.curvature, found.seconds_of_chain


def _choose_mass(
    problem: Problem, settings: Settings, found: Pilot, choices: Choices
) -> tuple[Settings, float]:
    """Choose the mass; return it with the largest curvature of U in its coordinates.

    Args:
        settings: Settings with nbeta and gamma.
        found: Findings of the pilot.
    """
    s = settings
    assert s.nbeta is not None and s.gamma is not None
    k_max = _largest_curvature(s, found.curvature)
    if s.mass == "kronecker":
        asked_for = whitened_curvature(problem, s)
        if asked_for == inf:
            raise ValueError(
                "mass='kronecker': chains in its coordinates run off w* with every step that was "
                f"tried. Leave mass open: set mass=None, or set gamma={10 * s.gamma:.3g}, or train "
                "on to a minimum."
            )
        return s, asked_for
    given = s.mass == "identity" or (s.step_size, s.friction) != (None, None)
    copied = s.oracle in ("stacked", "sequential")
    suits = copied and s.traits.takes_mass and s.gradient == "full" and s.nbeta
    if given or not suits:
        return replace(s, mass="identity"), k_max
    expected = _MASS_TIMES * found.seconds
    if s.budget is not None and expected > _MASS_SHARE * float(s.budget):
        choices.choose(
            "mass", "identity", f"measuring another would take about {expected:,.0f} s of a budget "
            f"of {float(s.budget):,.0f} s",
        )  # fmt: skip
        return replace(s, mass="identity"), k_max
    round_max = whitened_curvature(problem, s)
    if round_max == inf:
        choices.choose(
            "mass", "identity", "in the coordinates of a Kronecker mass chains run off w* with "
            "every step that was tried",
        )  # fmt: skip
        return replace(s, mass="identity"), k_max
    plain, white = replace(s, mass="identity"), replace(s, mass="kronecker")
    steps = [
        choose_steps(problem, x, k, Choices())[1] for x, k in ((plain, k_max), (white, round_max))
    ]
    words = (
        f"the slowest direction forgets in {steps[0]:,.0f} steps with unit mass, in "
        f"{steps[1]:,.0f} in the coordinates of a Kronecker mass"
    )
    if steps[0] <= steps[1]:
        choices.choose("mass", "identity", words)
        return plain, k_max
    words += f", where curvatures of U go up to {round_max:.3g}"
    choices.choose("mass", "kronecker", words)
    return white, round_max
