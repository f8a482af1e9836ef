"""`L = λx²/2 + ax³/6 + qx⁴/24`: limits of low temperature, and chains against integrals."""

from __future__ import annotations

import pytest
import torch

import bif
from bif.susceptibility import third_cumulants
from exact_problems import SAMPLER_MUTANTS, mutate_baoab
from law_checks import STANDARD_ERRORS
from one_weight_problems import Line, polynomial_problem

CURVATURE, CUBE, QUARTIC = 1.5, 2.0, 3.0
LOSS = torch.tensor([[0.0, CURVATURE, CUBE, QUARTIC]], dtype=torch.float64)
X, SQUARE = torch.eye(4, dtype=torch.float64)[:2] * torch.tensor([[1.0], [2.0]]).double()
NBETA, GAMMA = 8.0, 0.1


def integrals(nbeta: float, gamma: float) -> tuple[float, float]:
    """`Cov(x², x)` and `κ₃(x)`."""
    line = Line(torch.ones(1).double(), nbeta, gamma, LOSS)
    x = line.grid - line.grid @ line.density
    return float((line.grid**2 * x) @ line.density), float((x**3) @ line.density)


def test_both_tend_to_the_limits_of_low_temperature():
    """`t²·Cov(x², x) → -2a/λ³` and `t²·κ₃ → -a/λ³`, with gamma/t → 0, off by about 1/t."""
    limits = -2 * CUBE / CURVATURE**3, -CUBE / CURVATURE**3
    found = [[t**2 * value for value in integrals(t, 1e-6)] for t in (1e4, 2e4)]
    for cold, colder, limit in zip(*found, limits, strict=True):
        assert colder == pytest.approx(limit, rel=1e-3)
        assert (cold - limit) / (colder - limit) == pytest.approx(2, rel=0.05)


def sampled(seed: int = 0) -> bif.Run:
    """Chains of x, with x itself as a candidate, so that it is a column too."""
    items = torch.cat([LOSS + 0.5 * X, LOSS - 0.5 * X])
    problem = polynomial_problem(items, torch.stack([X, SQUARE]), candidates={"x": X[None]})
    stiffest = NBETA * (CURVATURE + 2 * CUBE + 2 * QUARTIC) + GAMMA  # at x = 2
    settings = bif.Settings(
        nbeta=NBETA, gamma=GAMMA, chains=512, block_size=512, draws=80, burn_in=100, thin=25,
        step_size=0.5 / stiffest**0.5, friction=2 * (NBETA * CURVATURE) ** 0.5, mass="identity",
        gradient="full", seed=seed,
    )  # fmt: skip
    return bif.attribute(problem, settings)


def assert_third_cumulant(run: bif.Run, *, precision: float = 0.05) -> None:
    """Within five standard errors of the integral, of which one is at most 5 % of it."""
    found = third_cumulants(run, [("x/0", "x/0")], num_groups=64)
    value, error = (float(found[n][0, 0]) for n in ("third_cumulant", "third_cumulant_error"))
    _, expected = integrals(NBETA, GAMMA)
    assert error < precision * abs(expected), "the errors are too large to tell"
    gap = abs(value - expected) / error
    assert gap < STANDARD_ERRORS, f"off by {gap:.1f} standard errors"


@pytest.mark.slow
def test_the_third_cumulant_of_chains_is_that_of_the_integral():
    run = sampled()
    assert_third_cumulant(run)
    scores = run.influence.dataset.isel(observable=0, query=1, train=2)  # x² and x
    gap = abs(-float(scores["influence"]) - integrals(NBETA, GAMMA)[0])
    assert gap < STANDARD_ERRORS * float(scores["standard_error"])


@pytest.mark.slow
@SAMPLER_MUTANTS
def test_a_sampler_that_is_wrong_has_another_third_cumulant(monkeypatch, mutation):
    mutate_baoab(monkeypatch, **mutation)
    with pytest.raises(AssertionError, match="off by"):  # wider draws have wider errors
        assert_third_cumulant(sampled(), precision=0.2)
