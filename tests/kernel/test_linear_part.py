"""The linear part of the loss kernel: exact algebra, and its share where that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bif
import bif.kernel.linear_part as module
from bif.baselines.exact import dense_curvature
from bif.curvature.root_rows import root_rows
from bif.estimate.item_kernel import FeatureKernel
from bif.estimate.loss_kernel import LossKernel
from bif.kernel import linear_kernel, linear_share
from bif.sampling.item_gradients import item_gradients
from small_problems import TINY, classification, labelled, network, normal

NBETA, GAMMA = 30.0, 0.7


def named(problem: bif.Problem) -> FeatureKernel:
    ids = tuple(problem.scored_ids.tolist())
    return FeatureKernel(torch.ones(len(ids), 1), ids, {})


def squared(**changed: object) -> bif.Problem:
    x, target = normal(12, 4, seed=5), normal(12, 3, seed=6)
    return bif.Problem(
        network(), bif.losses.squared_error, train=(x, target), queries=(x[:2], target[:2]),
        **changed,  # type: ignore[arg-type]
    )  # fmt: skip


METRIC = {n: 1 + p.detach().abs() for n, p in network().named_parameters()}
each_problem = pytest.mark.parametrize(
    "problem",
    [
        classification(), squared(), squared(train_weights=torch.arange(1.0, 13)),
        classification(metric=METRIC),
    ],
    ids=["cross-entropy", "squared error", "weighted", "metric"],
)  # fmt: skip


@each_problem
def test_products_of_the_rows_are_the_gauss_newton_matrix(problem: bif.Problem):
    rows = torch.cat(list(root_rows(problem)))
    assert rows.shape == (3 * problem.num_train, 43)
    np.testing.assert_allclose(
        rows.T @ rows, dense_curvature(problem, "gauss_newton"), rtol=1e-9, atol=1e-12
    )


@each_problem
@pytest.mark.parametrize("most", [20_000, 42], ids=["of the weights", "of the items"])
def test_the_kernel_is_that_of_the_dense_inverse(
    problem: bif.Problem, most: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_MOST_SYSTEM", most)
    if most == 42:  # one of 43 weights, and more rows of few items
        problem = problem if problem.num_train < 14 else few(problem)
    found = linear_kernel(problem, named(problem), nbeta=NBETA, gamma=GAMMA, weight_decay=0.01)
    precision = NBETA * dense_curvature(problem, "gauss_newton") + (GAMMA + NBETA * 0.01) * (
        torch.eye(43, dtype=torch.float64)
    )
    g = item_gradients(problem, problem.loss, problem.train)
    np.testing.assert_allclose(
        found.block(kind="covariance"), g @ torch.linalg.solve(precision, g.T),
        rtol=1e-9, atol=1e-10,
    )  # fmt: skip


def few(problem: bif.Problem) -> bif.Problem:
    return classification(train=labelled(9, seed=1), metric=problem.metric)


def test_at_nbeta_0_it_is_the_gradient_product():
    problem = classification()
    found = linear_kernel(problem, named(problem), nbeta=0.0, gamma=2.0)
    g = item_gradients(problem, problem.loss, problem.train)
    np.testing.assert_allclose(found.block(kind="covariance"), g @ g.T / 2, rtol=1e-9, atol=1e-12)


def trained_regression() -> bif.Problem:
    """Linear regression at its minimum, so that U is Gaussian with its minimum at w*."""
    x, target = normal(30, 4, seed=5), normal(30, 1, seed=6)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, target).solution.T)
    return bif.Problem(
        model, bif.losses.squared_error, train=(x, target), queries=(x[:2], target[:2])
    )


def test_a_cold_sampled_kernel_is_linear_and_a_warm_one_is_not():
    # exact draws of the Gaussian, whose kernel is g S g + ½ tr(H S H S)
    problem = trained_regression()
    x, target = problem.train.take(torch.arange(30))
    curvature = dense_curvature(problem, "gauss_newton")
    w = problem.center()["weight"].flatten()
    for temperature, low, high in ((1e-4, 0.99, 1.01), (3.0, 0.0, 0.9)):
        nbeta = 1 / temperature
        S = torch.linalg.inv(nbeta * curvature + 0.1 * torch.eye(4, dtype=torch.float64))
        draws = w + normal(4000, 4, seed=7) @ torch.linalg.cholesky(S).T
        losses = 0.5 * (x @ draws.T - target).square()
        kernel = LossKernel(losses, torch.arange(4000) // 250, named(problem).ids, {})
        linear = linear_kernel(problem, kernel, nbeta=nbeta, gamma=0.1)
        found = linear_share(kernel, linear, kind="covariance")
        assert low < found.variance_share < high + 0.1 and low < found.correlation < high, found


def test_the_share_is_without_the_noise_of_the_draws():
    items, g, h = 60, normal(60, 40, seed=0), 0.8 * normal(60, 40, seed=1)
    ids = tuple(map(str, range(items)))
    linear = FeatureKernel(g, ids, {})
    off = ~np.eye(items, dtype=bool)
    first, whole = (g @ g.T).numpy()[off], (g @ g.T + h @ h.T).numpy()[off]
    true = np.corrcoef(first, whole)[0, 1]
    found, naive = [], []
    for seed in range(30):
        losses = g @ normal(40, 240, seed=100 + seed) + h @ normal(40, 240, seed=200 + seed)
        kernel = LossKernel(losses, torch.arange(240) // 30, ids, {})
        one = linear_share(kernel, linear, kind="covariance")
        found.append((one.correlation, one.slope, one.correlation_error))
        naive.append(np.corrcoef(first, kernel.block(kind="covariance").numpy()[off])[0, 1])
    correlation, slope, errors = np.array(found).T
    assert abs(correlation.mean() - true) < 5 * correlation.std() / 30**0.5
    slope_true = np.polyfit(first, whole, 1)[0]
    assert abs(slope.mean() - slope_true) < 5 * slope.std() / 30**0.5
    assert abs(np.mean(naive) - true) > 20 * np.std(naive) / 30**0.5  # the mutant
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(correlation.std(), rel=0.5)


def test_a_run_and_its_linear_kernel_have_the_same_items():
    problem = classification()
    kernel = bif.loss_kernel(bif.attribute(problem, TINY), "both")
    linear = linear_kernel(problem, kernel, nbeta=20.0, gamma=5.0, sides="both")
    assert linear.ids == kernel.ids and linear.labels == kernel.labels
    assert np.isfinite(linear_share(kernel, linear).slope)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 0.0}, "nbeta is 1 and gamma 0 with decay 0: expected 0 or more, and gamma"),
        ({"nbeta": -1.0}, "nbeta is -1 and gamma 1"),
        ({"sides": "query"}, "the problem has 5 items on side 'query', and the kernel 20 others"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    problem = classification()
    with pytest.raises(ValueError, match=message):
        linear_kernel(problem, named(problem), **{"nbeta": 1.0, "gamma": 1.0, **changed})


def test_systems_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST_SYSTEM", 42)
    problem = classification()
    with pytest.raises(ValueError, match="43 weights, and 60 outputs of all train items or more"):
        linear_kernel(problem, named(problem), nbeta=1.0, gamma=1.0)
    monkeypatch.setattr(module, "_MOST_SYSTEM", 19)
    with pytest.raises(ValueError, match="20 items and 43 weights: gradients are held of at most"):
        linear_kernel(problem, named(problem), nbeta=1.0, gamma=1.0)
    monkeypatch.setattr(module, "_MOST_SYSTEM", 42)
    monkeypatch.setattr(module, "_MOST_NUMBERS", 43 * 20 - 1)
    with pytest.raises(ValueError, match="held of at most 859 numbers"):
        linear_kernel(problem, named(problem), nbeta=1.0, gamma=1.0)


def test_of_more_items_than_weights_there_is_no_matrix_of_all_pairs():
    problem = classification(train=labelled(60, seed=1))
    found = linear_kernel(problem, named(problem), nbeta=NBETA, gamma=GAMMA)
    assert found.features.shape == (60, 43)
    precision = NBETA * dense_curvature(problem, "gauss_newton") + GAMMA * (
        torch.eye(43, dtype=torch.float64)
    )
    g = item_gradients(problem, problem.loss, problem.train)
    np.testing.assert_allclose(
        found.block(kind="covariance"), g @ torch.linalg.solve(precision, g.T), atol=1e-10
    )


def test_kernels_of_other_items_and_of_one_chain_are_refused():
    kernel = LossKernel(normal(5, 40, seed=0), torch.arange(40) // 10, tuple("abcde"), {})
    with pytest.raises(ValueError, match="kernels of 5 and 3 items"):
        linear_share(kernel, kernel.of_items([0, 1, 2]))
    with pytest.raises(ValueError, match="needs two chains"):
        linear_share(kernel.of_chains([0]), kernel)
