"""Measure what the estimators would cost and tell."""

from __future__ import annotations

import math
import time
from copy import copy
from dataclasses import replace

import torch

from bif.calibration.budget import MOST_DRAWS, seconds_of_draw, signal_of_draw
from bif.calibration.default_estimator import RELIABILITY, Forecast, LinearPart
from bif.calibration.measured_mass import measured_mass
from bif.calibration.pilot import CENTER_ITERATIONS, Probe, seconds_of_gradient
from bif.calibration.solving import SolverCalibration, solver_of_chains
from bif.estimate.anchored import fit_anchors
from bif.estimate.covariance import DEFAULT_GROUPS, estimate_covariance
from bif.estimate.traces import LossTraces
from bif.linear_response.solver import MOST_STEPS, RESIDUAL, Solver, sampling_settings
from bif.problem.items import Items
from bif.problem.problem import Problem
from bif.runs.anchoring import make_anchoring
from bif.runs.recording import Context, Recording, deal
from bif.runs.writer import Writer
from bif.sampling.engine import Engine
from bif.sampling.factory import wait_for
from bif.sampling.settings import RunSettings

_QUERIES = 8
"""Queries of a pilot."""
_CHAINS, _DRAWS = 16, 24
"""Chains of a pilot with anchors and draws of each, a few percent of a default run's."""
_UNFORESEEN = 5.0
"""Draws that runs needed, in units of what gradients at w* had forecast: 2.4 to 12 on five settings
(alignment-2026-11-28.json)."""


def forecast_from_gradients(problem: Problem, found: SolverCalibration) -> Forecast:
    """Forecast by curvature and gradients at w*, without any draw.

    With κ the largest curvature over the damping, conjugate gradients take at most
    `½ sqrt(1 + κ) log(2 / residual)` products, and independent draws are `sqrt(1 + κ)` gradients of
    a chain apart, for underdamped dynamics near critical friction.

    Args:
        problem: With plain losses.
        found: Calibration of its solve.
    """
    s = found.settings
    product, damping = _first_product(problem, found)
    probe = Probe(problem, sampling_settings(s).plain())
    largest = probe.largest(probe.whole, probe.one, CENTER_ITERATIONS)
    root = math.sqrt(1 + largest / max(damping, 1e-30))
    steps = 0.5 * root * math.log(2 / (s.solver_residual or RESIDUAL))
    gradient = seconds_of_gradient(probe.whole.gradient(probe.oracle, probe.settings), probe.one)
    half = probe.draws_for_half(damping - s.weight_decay)
    return Forecast(
        queries=len(problem.observables) * problem.num_queries,
        steps=s.solver_steps or min(steps, MOST_STEPS),
        product=product,
        draws=_UNFORESEEN * half * RELIABILITY / (1 - RELIABILITY),
        draw=root * gradient * problem.num_train / len(probe.whole.items),
    )


def _first_product(problem: Problem, found: SolverCalibration) -> tuple[float, float]:
    """Return the seconds of a product and the damping; the solver's copy of the model is let go."""
    solver = Solver(problem, found.settings, num_together=found.num_together, vectors=found.vectors)
    few = min(found.num_together, problem.num_queries, found.vectors.num_rows)
    return seconds_of_product(solver, solver.gradients(0, range(few))), solver.damping


def pilot_with_anchors(problem: Problem, settings: RunSettings) -> tuple[Forecast, LinearPart]:
    """Measure costs, and by a few draws with anchors what a solve leaves of the scores.

    Args:
        problem: Some of its queries are asked.
        settings: Complete, of the run's chains.

    Raises:
        ValueError: Anchors that do not fit; negative curvature beyond the damping.
        RuntimeError: Fewer than two chains survive.
    """
    few, chains = some_queries(problem), min(_CHAINS, settings.chains)
    block = min(settings.block_size, chains)
    pilot = replace(
        settings, estimator="anchored", chains=chains, draws=_DRAWS, block_size=block,
        compiled=False,
    )  # fmt: skip
    mass = measured_mass(problem, pilot) if pilot.mass == "kronecker" else None
    engine = Engine(few, pilot, mass=mass)
    draw = seconds_of_draw(engine)
    anchoring = make_anchoring(engine)
    assert anchoring is not None
    anchors = anchoring.anchors
    plain = few.with_plain_losses()
    found = solver_of_chains(plain, pilot)
    solver = Solver(plain, found.settings, num_together=found.num_together, vectors=found.vectors)
    product = seconds_of_product(solver, anchors.vectors[: found.vectors.num_rows])
    with Writer() as writer:
        blocks = deal(chains, block)
        recording = Recording(
            Context(engine, "traces", None, math.inf, blocks, writer, anchoring=anchoring)
        )
        recording.run(show_progress=False)
    if recording.interrupted:
        raise KeyboardInterrupt("in the pilot that chooses an estimator")
    traces = recording.traces()
    if traces.num_chains < 2:
        raise RuntimeError("its chains diverged")
    needed = RELIABILITY / ((1 - RELIABILITY) * signal_of_draw(traces.without_anchors()))
    forecast = Forecast(
        queries=len(problem.observables) * problem.num_queries,
        steps=float(anchors.steps.double().mean()), product=product,
        draws=min(needed, MOST_DRAWS * settings.chains), draw=draw,
    )  # fmt: skip
    return forecast, linear_part(traces, anchors.linear, settings.chains * settings.draws)


def linear_part(traces: LossTraces, linear: torch.Tensor, total_draws: int) -> LinearPart:
    """Return what draws with anchors tell of the part that is solved for.

    Args:
        traces: With anchors.
        linear: The classical influence, `[R, N]`.
        total_draws: Of all chains of the run that is planned.
    """
    found = estimate_covariance(traces)
    plain = estimate_covariance(traces.without_anchors()).standard_error
    size = _rms(found.value)
    return LinearPart(
        missed=_rms(found.value + linear.reshape(found.value.shape).to(found.value)) / size,
        noise=_rms(plain) * (traces.total_draws / total_draws) ** 0.5 / size,
        variance_left=float(fit_anchors(traces, DEFAULT_GROUPS).variance_left.nanmedian()),
        worth=(_rms(plain) / max(_rms(found.standard_error), 1e-300)) ** 2,
    )


def some_queries(problem: Problem) -> Problem:
    """Return the problem with a few queries of its largest group, evenly apart."""
    items = max(problem.query_groups.values(), key=len)
    count = min(_QUERIES, len(items))
    chosen = torch.linspace(0, len(items) - 1, count).round().long()
    few = copy(problem)
    few.query_groups = {"pilot": Items(items.take(chosen))}
    return few


def seconds_of_product(solver: Solver, rows: torch.Tensor) -> float:
    """Return the seconds of a product with the curvature, of rows that are multiplied together."""
    rows = rows.to(solver.device)
    seconds = math.inf
    for _ in range(2):
        started = time.perf_counter()
        solver.times(rows)
        wait_for(solver.device)
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / len(rows)


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
