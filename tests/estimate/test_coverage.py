"""Error bars keep their word: 95 % intervals hold the truth 93 to 97 times in a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bif
from bif.calibration.measured_mass import make_engine
from bif.cli import digits_demo
from bif.estimate import estimate_covariance
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, TraceBlock
from bif.types import Batch
from exact_problems import (
    CENTER,
    QUERIES,
    TRAIN,
    GaussianPosterior,
    Point,
    quadratic_loss,
    settings_for,
)

pytestmark = pytest.mark.xdist_group("coverage")

NBETA, GAMMA = 8.0, 4.0


def runs_of(traces: LossTraces, chains: int, draws: int) -> list[LossTraces]:
    """Independent runs of so many chains, cut from one run of many."""
    (block,) = traces.blocks
    count = len(block.chains) // chains
    names = tuple(range(chains))
    return [
        LossTraces(
            (
                TraceBlock(
                    names,
                    block.train[r * chains : (r + 1) * chains, :draws],
                    block.query[r * chains : (r + 1) * chains, :draws],
                ),
            )
        )
        for r in range(count)
    ]


def coverage(runs: list[LossTraces], truth: torch.Tensor, *, error_scale: float = 1.0) -> float:
    """Share of the 95 % intervals, over runs and pairs, that hold the true score `[Q, N]`."""
    held = []
    for run in runs:
        found = estimate_covariance(run)
        reach = t_quantile(found.num_groups) * found.standard_error * error_scale
        held.append(((-found.value - truth).abs() <= reach).double().mean())
    return float(torch.stack(held).mean())


def traces_of(problem: bif.Problem, settings: bif.Settings) -> LossTraces:
    """The traces of `bif.attribute`, all chains at once, without estimates and a look at them."""
    assert settings.chains is not None and settings.block_size == settings.chains
    engine = make_engine(problem, bif.calibrate(problem, settings).settings)
    rows = [(train, query) for _, train, query in engine.observed_draws(0, settings.chains)]
    return LossTraces.from_arrays(*(torch.stack(x, dim=1) for x in zip(*rows, strict=True)))


@pytest.fixture(scope="module")
def gaussian() -> tuple[LossTraces, torch.Tensor]:
    """8,000 chains on quadratic losses, and the exact scores."""
    posterior = GaussianPosterior.of(TRAIN, CENTER, nbeta=NBETA, gamma=GAMMA)
    problem = bif.Problem(Point(CENTER), quadratic_loss, train=TRAIN.batch, queries=QUERIES.batch)
    settings = settings_for(torch.linalg.inv(posterior.covariance), nbeta=NBETA, gamma=GAMMA)
    settings = replace(settings, chains=8000, block_size=8000, draws=100, thin=2)
    return traces_of(problem, settings), posterior.influence(QUERIES, TRAIN)


@pytest.mark.parametrize(("chains", "draws"), [(16, 100), (16, 50), (8, 100), (4, 100), (64, 100)])
def test_intervals_of_gaussian_problems_cover(gaussian, chains, draws):
    traces, truth = gaussian
    runs = runs_of(traces, chains, draws)[:250]
    assert len(runs) >= 125
    assert 0.93 < coverage(runs, truth) < 0.97


def test_an_error_that_is_halved_is_noticed(gaussian):
    traces, truth = gaussian
    assert coverage(runs_of(traces, 16, 100)[:125], truth, error_scale=0.5) < 0.80


def test_two_errors_are_not_enough_for_four_chains(gaussian):
    traces, truth = gaussian
    scale = 2 / t_quantile(4)
    assert coverage(runs_of(traces, 4, 100)[:250], truth, error_scale=scale) < 0.93


# --- A posterior that is far from quadratic -------------------------------------------------------

SLOPES = torch.linspace(-1.8, 1.9, 20, dtype=torch.float64)
LABELS = ((SLOPES > 0) != torch.isin(torch.arange(20), torch.tensor([8, 12]))).double()
"""One of either class lies on the other side."""
ASKED = torch.tensor([[-2.0, 0.0, 1.0, 3.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
NUM_RUNS, NUM_CHAINS, NUM_DRAWS = 64, 16, 100


def logistic_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Of two weights, a slope and a bias; of a grid of them `[K, N]`."""
    x, y = batch
    (w,) = model.parameters()
    z = w[..., :1] * x + w[..., 1:]
    return F.softplus(z) - y * z


def logistic_problem() -> bif.Problem:
    """20 items at their maximum likelihood."""
    model = Point(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = logistic_loss(model, (SLOPES, LABELS)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return bif.Problem(model, logistic_loss, train=(SLOPES, LABELS), queries=tuple(ASKED))


def by_quadrature(
    center: torch.Tensor, *, nbeta: float, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`-Cov(l_i, phi_q)` `[Q, N]` and `-Var(l_i)` `[N]` over a grid that leaves nothing out."""
    reach = 8 / gamma**0.5
    axis = torch.linspace(-reach, reach, 601, dtype=torch.float64)
    away = torch.cartesian_prod(axis, axis)
    grid = Point(center + away)
    parts = (SLOPES, LABELS), tuple(ASKED)
    train, query = (logistic_loss(grid, part).detach() for part in parts)
    U = nbeta * train.mean(dim=1) + 0.5 * gamma * away.square().sum(dim=1)
    p = torch.softmax(-U, dim=0)
    train, query = train - p @ train, query - p @ query
    return -(query * p.unsqueeze(1)).T @ train, -(p @ train.square())


@cache
def logistic_runs(
    mass: Literal["identity", "kronecker"], longer: float
) -> tuple[list[LossTraces], tuple[torch.Tensor, torch.Tensor]]:
    """64 runs of 16 chains by automatic settings, with the exact answer."""
    problem = logistic_problem()
    chosen = bif.calibrate(problem, bif.Settings(mass=mass, draws=NUM_DRAWS)).settings
    assert chosen.nbeta is not None and chosen.gamma is not None and chosen.step_size is not None
    center = problem.center()["w"]
    exact = by_quadrature(center, nbeta=chosen.nbeta, gamma=chosen.gamma)
    number = NUM_RUNS * NUM_CHAINS
    settings = replace(
        chosen, chains=number, block_size=number, step_size=longer * chosen.step_size
    )
    return runs_of(traces_of(problem, settings), NUM_CHAINS, NUM_DRAWS), exact


def held(
    runs: list[LossTraces], exact: tuple[torch.Tensor, torch.Tensor], *, error_scale: float = 1.0
) -> np.ndarray:
    """Share of the 95 % intervals of scores, and of self-influence, that hold it: `[runs, 2]`."""
    found = []
    for run in runs:
        c = estimate_covariance(run)
        reach = t_quantile(c.num_groups) * error_scale
        scores = (-c.value - exact[0]).abs() <= reach * c.standard_error
        selves = (-c.column_variance - exact[1]).abs() <= reach * c.column_variance_error
        found.append([float(part.double().mean()) for part in (scores, selves)])
    return np.asarray(found)


def honest(shares: np.ndarray) -> bool:
    """Whether a mean coverage of .93 to .97 is within three errors, clustered by run."""
    error, mean = shares.std(axis=0, ddof=1) / len(shares) ** 0.5, shares.mean(axis=0)
    return bool((mean + 3 * error > 0.93).all() and (mean - 3 * error < 0.97).all())


MASSES = pytest.mark.parametrize("mass", ["identity", "kronecker"])


@MASSES
def test_intervals_hold_where_the_posterior_is_far_from_quadratic(mass):
    shares = held(*logistic_runs(mass, 1.0))
    assert (shares.std(axis=0) < 0.15).all(), "too few runs to tell"
    assert honest(shares)


@MASSES
def test_halved_errors_and_longer_steps_are_noticed_there(mass):
    assert not honest(held(*logistic_runs(mass, 1.0), error_scale=0.5))
    assert not honest(held(*logistic_runs(mass, 3.0)))


@pytest.mark.slow
def test_the_benchmark_of_coverage_holds_by_every_sampler_and_mass(tmp_path):
    """100 runs a row of posteriors that quadrature knows; its long runs take too long here."""
    words = ["--problems", "logistic", "unit", "quartic", "student", "poisson", "--calls", "0",
             "--samplers", "baoab", "sgld", "sgnht", "--out", str(tmp_path)]  # fmt: skip
    script = [sys.executable, "-m", "benchmarks.converged.coverage"]
    subprocess.run([*script, *words], check=True, cwd=Path(__file__).parents[2])
    (file,) = tmp_path.glob("coverage-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert not [row["refused"] for row in rows if "refused" in row]
    for name in ("coverage", "self_coverage"):
        found = np.asarray([row[name] for row in rows])
        assert found.min() > 0.91 and 0.93 < found.mean() < 0.97, rows


@pytest.mark.parametrize(
    ("groups", "expected"), [(2, 12.706), (4, 3.182), (16, 2.131), (10**6, 1.960)]
)
def test_quantiles_are_those_of_student(groups, expected):
    assert t_quantile(groups) == pytest.approx(expected, abs=1e-3)
    assert t_quantile(1) == float("inf")


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.5])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_quantile(4, level)


@pytest.mark.slow
def test_intervals_of_the_digits_network_cover(capsys):
    """100 runs of 16 chains, against all of 64 chains that are ten times as long."""
    made = digits_demo.digits(0).problem
    (queries,) = made.query_groups.values()
    problem = bif.Problem(
        made.model,
        made.loss,
        train=made.train.first(200),
        queries=queries.first(20),
    )
    settings = bif.Settings(
        nbeta=200.0, gamma=20.0, weight_decay=1e-3, chains=1600, block_size=1600, draws=150
    )
    short = bif.attribute(problem, settings)
    long = bif.attribute(problem, replace(settings, chains=64, block_size=64, draws=3000, seed=1))
    truth = -estimate_covariance(long.traces).value
    runs = runs_of(short.traces, 16, 150)
    found, halved = coverage(runs, truth), coverage(runs, truth, error_scale=0.5)
    with capsys.disabled():
        print(f"\ncoverage {found:.4f}, with halved errors {halved:.4f}")
    assert len(runs) == 100
    assert 0.93 < found < 0.97
    assert halved < 0.80
