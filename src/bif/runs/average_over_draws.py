"""Average damped influence over a few draws of the local posterior."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import torch

from bif import tensors
from bif.calibration.calibrate import calibrate
from bif.calibration.measured_mass import make_engine
from bif.calibration.solving import solver_of_chains
from bif.linear_response.anchors import at_position
from bif.problem.identity import identity
from bif.problem.problem import Problem
from bif.results.averages import average
from bif.results.influence import Influence
from bif.runs.planned_run import PlannedRun
from bif.runs.recording import deal
from bif.runs.solve import run_solver
from bif.sampling.settings import RunSettings, Settings
from bif.terminal import say


def average_over_draws(
    problem: Problem,
    settings: Settings | None = None,
    *,
    num_draws: int = 8,
    show_progress: bool = False,
) -> Influence:
    """Solve for influence at a few draws of the local posterior, and return the mean.

        score[q, i] = -(1/K) Σ_k (1/nbeta) g_i(w_k)ᵀ (C(w_k) + damping)⁻¹ g_q(w_k)

    with gradients g, the curvature C of the mean loss at draw k of K, and the damping
    `weight_decay + gamma/nbeta`.  The expectation is an
    approximation of the covariance (Brascamp and Lieb 1976; Helffer and Sjöstrand 1994): its linear
    term, and twice `½ tr(H_i S H_q S)`, the term of losses that are quadratic.  Draws are the last
    ones of chains of their own.

    Args:
        problem: Model, loss, items, queries and observables.
        settings: Of the chains; with `estimator="anchored"` also of the solver.  What is None is
            chosen as for a run of chains.
        num_draws: K, at least 2.
        show_progress: Print a line for each draw.

    Returns:
        Scores with errors over draws, `std / sqrt(K)`, and `attrs["num_draws"]`.

    Raises:
        ValueError: Fewer than two draws; settings that say how many chains or draws, or that solve
            without any; negative curvature beyond the damping, of the Hessian.
        RuntimeError: A chain that diverged.

    Source: Helffer and Sjöstrand, J. Stat. Phys. 74 (1994), for `Cov = E[∇f · (…)⁻¹ ∇g]`.
    """
    problem, chosen = problem.with_plain_losses(), _calibrated(problem, settings, num_draws)
    found = solver_of_chains(problem, chosen)
    scores = []
    for number, there in enumerate(_problems(problem, chosen)):
        planned = PlannedRun(identity(there, found.settings.as_dict()), solver=found)
        try:
            scores.append(run_solver(there, found.settings, planned=planned).influence)
        except ValueError as error:
            raise ValueError(f"draw {number}, there: {error}") from error
        if show_progress:
            say([f"solved at {number + 1} of {num_draws} draws"])
    dataset = average(scores).dataset
    del dataset.attrs["num_models"]
    return Influence(dataset.assign_attrs(num_draws=num_draws))


def at_draws(
    problem: Problem, settings: Settings | None = None, *, num_draws: int = 8
) -> tuple[Problem, ...]:
    """Return the problem at a few independent draws of its local posterior, in the place of w*.

    For the mean of any method over draws: it sees these weights as trained ones.

        mean = np.mean([EKFAC.fit(p).scores(p) for p in bif.at_draws(problem, settings)], axis=0)

    Args and raises: as `average_over_draws`, whose draws these are.
    """
    return _problems(problem, _calibrated(problem, settings, num_draws))


def _calibrated(problem: Problem, settings: Settings | None, num_draws: int) -> RunSettings:
    """Return complete settings of as many chains as there are to be draws."""
    requested = settings or Settings()
    requested.require_chains("an average over draws")
    if num_draws < 2:
        raise ValueError(
            f"num_draws is {num_draws}: expected at least 2, whose spread is an error."
        )
    names = ("chains", "draws", "reliability", "budget", "block_size")
    given = [name for name in names if getattr(requested, name) is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} has no use here: num_draws={num_draws} chains of one draw each "
            "run. Leave it out."
        )
    found = calibrate(problem, replace(requested, chains=num_draws, draws=2)).settings
    return replace(found, draws=2)


def _problems(problem: Problem, settings: RunSettings) -> tuple[Problem, ...]:
    """Return the problem at the last draw of every chain."""
    engine, found = make_engine(problem, settings), list[Problem]()
    for block, chains in enumerate(deal(settings.chains, settings.block_size)):
        positions = engine.positions(block, len(chains), engine.start(block, len(chains)))
        (last,) = deque(positions, maxlen=1)
        for chain in range(len(chains)):
            leaves = tensors.chain(last.state.params, chain)
            if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves.values()):
                raise RuntimeError(
                    f"chain {chains[chain]} diverged at step_size={settings.step_size:.3g}: set a "
                    "smaller step_size, or a larger gamma."
                )
            found.append(at_position(problem, engine.posterior.center, leaves))
    return tuple(found)
