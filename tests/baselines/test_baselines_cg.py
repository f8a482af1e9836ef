"""Conjugate gradients against the dense solve, and what they say when they fail."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif.baselines import ConjugateGradients, ExactInfluence, item_gradients
from bif.curvature.solve import conjugate_gradients
from rival_problems import (
    GN,
    close,
    damped,
    dense_gauss_newton,
    dense_hessian,
    dense_scores,
    mlp_problem,
    problem_of,
    regression_problem,
    scores_of,
    tokens,
)
from small_problems import classification, filled, integers, normal

pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")

TIGHT: dict[str, Any] = {"tolerance": 1e-12, "max_iterations": 2000}


@pytest.mark.parametrize("name", ["loss", "margin"])
@pytest.mark.parametrize(("curvature", "damping"), [(GN, 0.1), ("hessian", 1.0)])
def test_scores_are_those_of_the_dense_solve(curvature, damping, name):
    settings: dict[str, Any] = {"damping": damping, "observable": name, "curvature": curvature}
    expected = scores_of(ExactInfluence, mlp_problem(), **settings)
    close(scores_of(ConjugateGradients, mlp_problem(), **settings, **TIGHT), expected)


def test_scores_with_weights_and_tokens_are_those_of_the_dense_solve():
    rho = normal(20, seed=4).exp()
    for problem in (classification(train_weights=rho), tokens(rho)[0]):
        expected = scores_of(ExactInfluence, problem, damping=0.5, curvature=GN)
        got = scores_of(ConjugateGradients, problem, damping=0.5, curvature=GN, **TIGHT)
        close(got, expected)


@pytest.mark.parametrize(("num_together", "chunk_size"), [(1, 256), (2, 7), (64, 7)])
def test_blocks_and_chunks_change_nothing(num_together, chunk_size):
    problem = classification()
    fitted = ConjugateGradients.fit(
        problem, curvature=GN, num_together=num_together, chunk_size=chunk_size, **TIGHT
    )
    expected = scores_of(ExactInfluence, problem, damping=0.1, curvature=GN)
    close(fitted.scores(problem, damping=0.1), expected)
    assert fitted.report is not None and fitted.report.residuals.shape == (5,)


def test_the_error_is_bounded_by_the_reported_residual():
    # |x - x*| ≤ |residual| / damping for a positive semi-definite curvature.
    problem, damping = mlp_problem(), 0.05
    fitted = ConjugateGradients.fit(problem, curvature=GN, tolerance=1e-3)
    got = fitted.scores(problem, damping=damping)
    exact = scores_of(ExactInfluence, problem, damping=damping, curvature=GN)
    report = fitted.report
    assert report is not None and report.num_unsolved == 0
    assert 1e-6 < report.largest_residual <= 2e-3 and 1 < report.iterations < 100
    g_q = item_gradients(problem, problem.loss, problem.query_groups["query"]).norm(dim=1)
    g_i = item_gradients(problem, problem.loss, problem.train).norm(dim=1)
    bound = (report.residuals * g_q)[:, None] * g_i / damping
    assert ((got - exact).abs() <= bound).all()
    assert (got - exact).abs().max() > 1e-3 * bound.max()


def test_a_quadratic_of_four_weights_takes_four_iterations():
    problem, *_ = regression_problem()
    fitted = ConjugateGradients.fit(problem, tolerance=1e-10)
    fitted.scores(problem, damping=0.1)
    assert fitted.report is not None and fitted.report.iterations == 4


def test_systems_left_unsolved_are_reported_with_their_residual():
    problem = mlp_problem()
    fitted = ConjugateGradients.fit(problem, curvature=GN, max_iterations=3, tolerance=1e-10)
    with pytest.warns(UserWarning, match=r"6 of 6 systems are not solved after 3 iterations"):
        fitted.scores(problem, damping=1e-3)
    assert fitted.report is not None
    assert fitted.report.num_unsolved == 6 and fitted.report.largest_residual > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.scores(problem, damping=1e12)  # three iterations are enough for this


def test_negative_curvature_is_refused_with_a_damping_to_try():
    with pytest.raises(ValueError, match=r"curvature is -.* expected above 0.* Raise damping"):
        scores_of(ConjugateGradients, classification(), damping=0.0, max_iterations=200)


def test_rows_are_solved_one_by_one_and_a_zero_row_at_once():
    root = normal(6, 6, seed=1)
    matrix = root @ root.T
    right = normal(6, 3, seed=2)
    right[:, 1] = 0
    found = conjugate_gradients(
        lambda x: x @ matrix, right.T, damping=1.0, tolerance=1e-13, max_steps=50
    )
    expected = torch.linalg.solve(matrix + torch.eye(6).double(), right)
    close(found.value, expected.T)
    assert found.residuals[1] == 0 and (found.value[1] == 0).all()


@pytest.mark.parametrize("name", ["tolerance", "max_iterations", "num_together", "chunk_size"])
def test_limits_that_are_not_positive_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        ConjugateGradients.fit(classification(), **{name: 0})  # type: ignore[arg-type]


class Attends(nn.Module):
    """One head of attention by torch's fused function, which has no forward derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.unflatten(1, (2, 4))).unsqueeze(1).chunk(3, dim=3)
        return self.head(nn.functional.scaled_dot_product_attention(*parts).sum(dim=(1, 2)))


@pytest.mark.parametrize("curvature", ["hessian", GN])
def test_fused_attention_is_no_obstacle(curvature):
    with torch.random.fork_rng(devices=[]):
        model = filled(Attends(), scale=0.3)
    problem = problem_of(
        model,
        train=(normal(12, 8, seed=1), integers(3, 12, seed=2)),
        queries=(normal(4, 8, seed=3), integers(3, 4, seed=4)),
    )
    with sdpa_kernel(SDPBackend.MATH):  # for the reference; the library has to help itself
        matrix = dense_hessian(problem) if curvature == "hessian" else dense_gauss_newton(problem)
    got = scores_of(ConjugateGradients, problem, damping=4.0, curvature=curvature, **TIGHT)
    close(got, dense_scores(problem, damped(matrix, 4.0)))
