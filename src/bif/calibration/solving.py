"""Choose what a response by solving leaves open: weights, precision, passes, damping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bif.calibration.calibrate import activation_bytes, with_precisions
from bif.calibration.damping import SHARE
from bif.calibration.pilot import CENTER_ITERATIONS, Probe
from bif.calibration.preflight import check_items
from bif.calibration.temperature import default_nbeta
from bif.linear_response.rehearsal import require_derivatives
from bif.linear_response.solver import sampling_settings
from bif.linear_response.vectors import Vectors, forecast_vectors
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.sampling.choices import Choice, Choices
from bif.sampling.factory import run_device
from bif.sampling.item_gradients import item_gradient_chunks
from bif.sampling.movable_weights import with_movable
from bif.sampling.settings import RunSettings, Settings

_DIRECTIONS = 64
"""Most directions that pass through the model together."""
_CPU_BYTES = 2**30
"""Bytes of activations of a pass, over items and directions."""
_GPU_SHARE = 0.25
"""Part of a GPU's free memory for them: a recorded pass keeps what it takes."""
_PASS, _DIRECTION = 3.0, 0.5
"""Activations of a pass and of each direction through it, in units of a plain backward pass."""
_LEAST = 1e-3
"""Part of the largest curvature that is the damping where training went to its minimum."""
_NOISE_ITEMS = 16
"""Items whose gradients tell the sampling noise."""
_SETTLED = 1e-4
"""Squared gradient at w*, in units of its sampling noise, below which training went there."""


@dataclass(frozen=True)
class SolverCalibration:
    """What a response by solving is carried out with.

    Attributes:
        settings: With nbeta, gamma, movable weights, precisions and items of a pass.
        choices: What was chosen, and why.
        num_together: Directions that pass through the model together.
        vectors: Queries that are solved together, and where their vectors are.
    """

    settings: Settings
    choices: tuple[Choice, ...]
    num_together: int
    vectors: Vectors


def calibrate_solver(
    problem: Problem, requested: Settings, *, tell: Callable[[list[str]], None] | None = None
) -> SolverCalibration:
    """Fill in what a response by solving needs.

    Args:
        problem: What is to be attributed.
        requested: With `estimator="response"`, or none where a path asks for it.
        tell: Gets every line of explanation as it comes.

    Raises:
        ValueError: Items on which a function fails or is not finite; what torch does not
            differentiate; vectors of a single query that do not fit.
    """
    choices = Choices(tell)
    for note in (*problem.notes, *problem.proxies_in_words):
        choices.remark(note)
    requested = replace(requested, estimator="response")
    asked = with_movable(problem, with_precisions(problem, requested, choices), choices)
    vectors = forecast_vectors(problem, asked)
    choices.choose("queries of a block", vectors.num_rows, vectors.in_words())
    require_derivatives(problem, asked)
    plain = sampling_settings(asked)
    chunk, together = _pass_size(problem, asked, choices, most=vectors.num_rows)
    plain = replace(plain, chunk_size=min(problem.num_train, chunk * together))
    check_items(problem, plain, choices)
    if plain.nbeta is None:
        plain, why = default_nbeta(problem, plain)
        choices.choose("nbeta", f"{plain.nbeta:g}", why)
    if plain.gamma is None:
        plain = replace(plain, gamma=_choose_gamma(problem, plain, choices, asked.solver_items))
    chosen = replace(
        asked, nbeta=plain.nbeta, gamma=plain.gamma, chunk_size=chunk, retrained_from=None,
        solver_curvature=asked.solver_curvature or "gauss_newton",
    )  # fmt: skip
    return SolverCalibration(chosen, tuple(choices), together, vectors)


def resume_solver(
    problem: Problem, settings: Settings, choices: tuple[Choice, ...]
) -> SolverCalibration:
    """Return what a run that was begun is carried out with, on whatever device it goes on."""
    vectors = forecast_vectors(problem, settings)
    _, together = _pass_size(problem, settings, Choices(), most=vectors.num_rows)
    return SolverCalibration(settings, choices, together, vectors)


def solver_of_chains(problem: Problem, settings: RunSettings) -> SolverCalibration:
    """Return what systems are solved with at the posterior of a run's chains.

    Args:
        problem: What is to be attributed.
        settings: Of the chains.

    Raises:
        ValueError: What torch does not differentiate; vectors of a single query that do not fit.
    """
    s = settings
    asked = Settings(
        estimator="response", nbeta=s.nbeta, gamma=s.gamma, movable=s.movable,
        weight_decay=s.weight_decay, gradient_precision=s.gradient_precision,
        loss_precision=s.loss_precision, solver_curvature=s.solver_curvature or "gauss_newton",
        solver_steps=s.solver_steps, solver_residual=s.solver_residual,
        solver_items=s.solver_items, device=s.device, seed=s.seed,
    )  # fmt: skip
    vectors = forecast_vectors(problem, asked)
    require_derivatives(problem, asked)
    chunk, together = _pass_size(problem, asked, Choices(), most=vectors.num_rows)
    return SolverCalibration(replace(asked, chunk_size=chunk), (), together, vectors)


def _pass_size(
    problem: Problem, settings: Settings, choices: Choices, *, most: int
) -> tuple[int, int]:
    """Return items and directions of a pass that hold a budget of activations together.

    Args:
        most: Queries that are solved together.
    """
    device = run_device(problem, settings)
    free = _CPU_BYTES
    if device.type == "cuda":
        free = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    room = free // activation_bytes(problem, device)
    together = max(1, min(_DIRECTIONS, most, room))
    fit = int(room / (_PASS + _DIRECTION * together))
    chunk = settings.chunk_size or max(1, min(problem.num_train, fit))
    if settings.chunk_size is None:
        some = settings.solver_items or problem.num_train
        chunk = _even(some if chunk <= some < problem.num_train else problem.num_train, chunk)
        reason = f"{together} directions pass through the model together"
        choices.choose("chunk_size", chunk, reason)
    return chunk, together


def _even(count: int, most: int) -> int:
    """Return the size of passes over so many items: all the same where that takes few more."""
    even = max(k for k in range(1, most + 1) if count % k == 0)
    return even if 2 * even > most else math.ceil(count / math.ceil(count / most))


def _choose_gamma(
    problem: Problem, settings: Settings, choices: Choices, num_items: int | None
) -> float:
    """Return nbeta times the default damping of a solve.

    Args:
        num_items: Train items that the largest curvature is taken over; the pilot's if None.
    """
    probe = Probe(problem, settings.plain())
    some = probe.whole if num_items is None else probe.items(num_items)
    largest = probe.largest(some, probe.one, CENTER_ITERATIONS)
    settled = _left_of_noise(probe, problem) < _SETTLED
    damping, why = solver_damping(largest, probe.leftover(largest), settled=settled)
    nbeta = settings.nbeta or 1.0
    choices.choose("gamma", nbeta * damping, f"damping gamma/nbeta = {damping:.4g}, {why}")
    return nbeta * damping


def _left_of_noise(probe: Probe, problem: Problem) -> float:
    """Return the squared gradient of the training objective at w*, in units of its sampling noise.

    The noise is that of a mean over the train items, by a few of them.
    """
    masks = {name: probe.posterior.masks.get(name, True) for name in probe.posterior.center}
    few = Items(problem.train.take(probe.order[:_NOISE_ITEMS].sort().values))
    chunks = item_gradient_chunks(problem, problem.loss, few, movable=masks)
    squares = sum(float(rows.square().sum(dtype=torch.float64)) for rows in chunks)
    noise = squares / len(few) / problem.num_train
    return probe.left_gradient() / noise if noise > 0 else math.nan


def solver_damping(largest: float, leftover: float, *, settled: bool) -> tuple[float, str]:
    """Return the default damping of a solve and the reason.

    As of the sampler, the geometric mean of `a`, a fiftieth of the largest curvature at w*, and the
    curvature along the gradient that training left there; but where training left no gradient,
    nothing keeps weights from where a retrained network has them: a thousandth of the largest
    curvature.

    Args:
        largest: Curvature of the mean loss at w*.
        leftover: What `leftover_curvature` found; NaN where it is not known.
        settled: Whether training left no gradient.
    """
    least, part = _LEAST * largest, largest / SHARE
    if settled:
        return least, f"a thousandth of the largest curvature at w*, {largest:.4g}, a minimum"
    if math.isnan(leftover):
        return part, f"a fiftieth of the largest curvature at w*, {largest:.4g}"
    damping = math.sqrt(part * min(part, leftover))
    words = (
        f"geometric mean of {part:.4g}, a fiftieth of the largest curvature at w*, and the "
        f"curvature along the gradient that training left there, {leftover:.4g}"
    )
    return max(damping, least), words
