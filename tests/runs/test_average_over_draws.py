"""Damped influence averaged over draws: its limit on quadratic losses, draws, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import bif
from bif.estimate.intervals import t_quantile
from command_line import caller
from exact_problems import GaussianPosterior, Point, Quadratics, quadratic_loss
from law_checks import STANDARD_ERRORS
from small_problems import classification, normal

NBETA, GAMMA, DRAWS = 6.0, 3.0, 400
SETTINGS = bif.Settings(
    estimator="anchored", solver_curvature="hessian", solver_residual=1e-9, nbeta=NBETA,
    gamma=GAMMA, burn_in=60, thin=3, step_size=0.3, friction=1.0, mass="identity",
)  # fmt: skip
FEW = replace(SETTINGS, solver_curvature=None, solver_residual=None)


def quadratics() -> tuple[bif.Problem, Quadratics, Quadratics, GaussianPosterior]:
    """Items whose minima are near each other, so that gradients leave room for curvature."""
    train, queries = (
        Quadratics(0.1 * items.minimum, items.hessian)
        for items in (Quadratics.random(6, 3, seed=0), Quadratics.random(3, 3, seed=20))
    )
    center = 0.1 * normal(3, seed=40)
    problem = bif.Problem(Point(center), quadratic_loss, train=train.batch, queries=queries.batch)
    return problem, train, queries, GaussianPosterior.of(train, center, nbeta=NBETA, gamma=GAMMA)


def test_of_quadratic_losses_it_has_twice_the_trace_of_the_covariance():
    problem, train, queries, posterior = quadratics()
    found = bif.average_over_draws(problem, SETTINGS, num_draws=150).dataset
    linear = -queries.gradient(posterior.mean) @ posterior.covariance
    linear = linear @ train.gradient(posterior.mean).T
    covariance = posterior.influence(queries, train)
    error = found["standard_error"].values[0]

    def agrees(expected: torch.Tensor) -> bool:
        away = np.abs(found["influence"].values[0] - expected.numpy())
        return bool((away < STANDARD_ERRORS * error).all())

    assert agrees(2 * covariance - linear)
    assert not agrees(covariance) and not agrees(linear)


def test_draws_have_the_law_of_the_posterior():
    problem, _, _, posterior = quadratics()
    weights = torch.stack([
        p.parameters()["w"] for p in bif.at_draws(problem, SETTINGS, num_draws=DRAWS)
    ])  # fmt: skip
    S = posterior.covariance
    error = (S.diagonal() / DRAWS).sqrt()
    assert ((weights.mean(dim=0) - posterior.mean).abs() < STANDARD_ERRORS * error).all()
    relative = weights.var(dim=0) / S.diagonal() - 1
    assert (relative.abs() < STANDARD_ERRORS * (2 / DRAWS) ** 0.5).all()


def test_it_is_the_mean_of_solves_at_these_draws():
    settings = replace(FEW, nbeta=200.0, gamma=40.0, step_size=0.02)
    found = bif.average_over_draws(classification(), settings, num_draws=3).dataset
    solved = bif.Settings(estimator="response", nbeta=200.0, gamma=40.0)
    each = np.stack([
        bif.attribute(p, solved).influence.dataset["influence"].values
        for p in bif.at_draws(classification(), settings, num_draws=3)
    ])  # fmt: skip
    np.testing.assert_allclose(found["influence"], each.mean(axis=0), rtol=1e-5, atol=1e-9)
    error = each.std(axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found["standard_error"], error, rtol=1e-4, atol=1e-9)
    assert found.attrs["num_draws"] == 3 and "num_models" not in found.attrs
    assert found.attrs["error_quantile"] == t_quantile(3)


def test_the_problem_itself_keeps_its_weights():
    problem = classification()
    before = {n: leaf.clone() for n, leaf in problem.parameters().items()}
    first, second = bif.at_draws(problem, FEW, num_draws=2)
    for name, leaf in before.items():
        assert torch.equal(problem.parameters()[name], leaf)
        assert not torch.equal(first.parameters()[name], second.parameters()[name])


@pytest.mark.parametrize(
    ("settings", "num_draws", "message"),
    [
        (FEW, 1, "num_draws is 1: expected at least 2"),
        (bif.Settings(chains=4), 8, "chains has no use here: num_draws=8 chains"),
        (bif.Settings(budget=5), 8, "budget has no use here"),
        (bif.Settings(estimator="response"), 8, "an average over draws is for chains"),
        (bif.Settings(nbeta=1e4, gamma=1.0, step_size=1e3, burn_in=400, thin=1, friction=1.0), 2,
         r"chain 0 diverged at step_size=1e\+03"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_refused(settings, num_draws, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        bif.average_over_draws(classification(), settings, num_draws=num_draws)


def test_the_command_writes_scores_and_figures(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mean"
    flags = [
        "--nbeta", "200", "--gamma", "40", "--step-size", ".02", "--friction", "1", "--burn-in",
        "9", "--thin", "2",
    ]  # fmt: skip
    call = caller(monkeypatch, capsys)
    code, said, err = call(
        "average-over-draws", f"{file}:problem", "--out", out, "--num-draws", "3", *flags
    )
    assert code == 0, err
    assert "num draws" in said
    assert (out / "influence.zarr").is_dir() and (out / "summary.json").is_file()
