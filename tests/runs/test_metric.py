"""A metric of the localisation: for solver, samplers and rivals, against dense references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.baselines import (
    EKFAC,
    ConjugateGradients,
    ExactInfluence,
    gradient_product,
)
from bif.sampling.factory import make_oracle, make_posterior
from exact_problems import (
    CENTER,
    QUERIES,
    TRAIN,
    GaussianPosterior,
    assert_influence,
    quadratic_problem,
    settings_for,
)
from rival_problems import GN, close, dense_gauss_newton, dense_scores
from small_problems import classification, filled, normal
from token_problems import problem as token_problem

pytestmark = pytest.mark.usefixtures("unchecked")

SOLVED = bif.Settings(estimator="response", nbeta=20.0, gamma=2.0, solver_residual=1e-10)


def metric_of(problem: bif.Problem, *, seed: int = 7) -> dict[str, Tensor]:
    leaves = problem.parameters().items()
    return {n: normal(*leaf.shape, seed=seed + i).exp() for i, (n, leaf) in enumerate(leaves)}


def flat(leaves: dict[str, Tensor]) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in leaves.values()])


def in_metric(**changed: Any) -> tuple[bif.Problem, Tensor]:
    problem = classification(**changed)
    metric = metric_of(problem)
    return problem.with_metric(metric), torch.diag(flat(metric))


class TestSolver:
    @pytest.mark.parametrize("decay", [0.0, 0.05])
    def test_scores_are_those_of_the_dense_solve(self, decay):
        problem, metric = in_metric()
        run = bif.attribute(problem, replace(SOLVED, weight_decay=decay))
        matrix = dense_gauss_newton(problem) + (0.1 + decay) * metric
        for observable, got in zip(
            problem.observables, run.influence.dataset["influence"].values, strict=True
        ):
            expected = dense_scores(problem, matrix, observable.function) / 20
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)

    def test_scores_of_tokens_add_up_to_those_of_items(self):
        whole = token_problem()
        whole = whole.with_metric(metric_of(whole))
        by_token = token_problem(tokens="both").with_metric(whole.metric)
        items = bif.attribute(whole, SOLVED).influence.dataset["influence"].values[0]
        tokens = bif.attribute(by_token, SOLVED).influence.dataset["influence"].values[0]
        np.testing.assert_allclose(tokens.sum(), items.sum(), rtol=1e-5)
        plain = bif.attribute(whole.with_metric(None), SOLVED).influence.dataset["influence"]
        assert np.abs(plain.values[0] - items).max() > 1e-3 * np.abs(items).max()

    def test_a_metric_of_ones_changes_nothing_but_the_identity(self):
        plain = classification()
        ones = {n: torch.ones_like(leaf) for n, leaf in plain.parameters().items()}
        runs = [bif.attribute(p, SOLVED) for p in (plain, plain.with_metric(ones))]
        same = [run.influence.dataset["influence"].values for run in runs]
        np.testing.assert_allclose(same[1], same[0], rtol=1e-9)
        identities = [run.manifest.identity for run in runs]
        assert "metric" not in identities[0] and "metric" in identities[1]


class TestPath:
    def test_scores_are_the_mean_over_the_path_and_the_end(self):
        problem, metric = in_metric()
        other = filled(problem.evaluation_copy(problem.device), seed=3)
        places = [problem, problem.with_model(other)]
        expected = np.mean(
            [dense_scores(p, dense_gauss_newton(p) + 0.1 * metric) / 20 for p in places], axis=0
        )
        for one in (other, other.state_dict()):
            run = bif.attribute(problem.with_path([one]), SOLVED)
            got = run.influence.dataset["influence"].values[0]
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)
        assert len(run.manifest.identity["path"]) == 1

    def test_what_is_no_path_is_refused(self):
        problem = classification()
        with pytest.raises(ValueError, match="path, number 1: "):
            problem.with_path([problem.model, nn.Linear(2, 2)])
        with pytest.raises(ValueError, match="the problem has a path, along which responses are"):
            bif.attribute(problem.with_path([problem.model]), bif.Settings(draws=4))
        for one in (problem.model, problem.model.state_dict()):
            with pytest.raises(TypeError, match="expected a list of models or state dicts"):
                problem.with_path(one)  # type: ignore[arg-type]

    def test_what_would_ignore_a_path_refuses_it(self):
        problem = classification()
        along = problem.with_path([problem.model])
        for ignorant in (bif.respond, bif.calibrate):
            with pytest.raises(ValueError, match="at w\\* alone, and the problem has a path"):
                ignorant(along, bif.Settings())

    def test_an_error_on_the_way_says_where(self):
        problem = classification()
        broken = {n: leaf * float("nan") for n, leaf in problem.parameters().items()}
        with pytest.raises(ValueError, match="path, number 1, there: the loss is NaN"):
            bif.attribute(problem.with_path([problem.model, broken]), SOLVED)


class TestPairs:
    def test_responses_of_pairs_are_those_of_the_dense_solve(self):
        problem, metric = in_metric()
        cold = bif.respond(
            problem, bif.Settings(nbeta=20.0, gamma=2.0), temperature=0.0,
            curvature="gauss_newton", h=1e-3,
        )  # fmt: skip
        expected = dense_scores(problem, dense_gauss_newton(problem) + 0.1 * metric) / 20
        # Of finite h an error of h², with the curvature's change along the way.
        np.testing.assert_allclose(cold.scores, expected, atol=1e-5 * float(expected.abs().max()))

    def test_a_metric_of_fours_is_four_times_gamma(self):
        plain = classification()
        fours = {n: torch.full_like(leaf, 4.0) for n, leaf in plain.parameters().items()}
        found, expected = (
            bif.respond(p, bif.Settings(nbeta=20.0, gamma=gamma), temperature=0.0, h=1e-3).scores
            for p, gamma in ((plain.with_metric(fours), 3.0), (plain, 12.0))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


class TestRivals:
    def test_gradient_products_and_solves_are_in_the_metric(self):
        problem, metric = in_metric()
        close(gradient_product(problem), dense_scores(problem, metric))
        matrix = dense_gauss_newton(problem) + 0.1 * metric
        exact = ExactInfluence.fit(problem, curvature=GN).scores(problem, damping=0.1)
        close(exact, dense_scores(problem, matrix))
        fitted = ConjugateGradients.fit(problem, curvature=GN, tolerance=1e-12)
        close(fitted.scores(problem, damping=0.1), dense_scores(problem, matrix))
        with pytest.raises(ValueError, match="the metric's numbers are not those that were fitted"):
            fitted.scores(problem.with_metric(None), damping=0.1)

    def test_ekfac_damps_without_it_and_preconditions_nothing_with_it(self):
        pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")
        problem, _ = in_metric()
        plain = problem.with_metric(None)
        fitted = EKFAC.fit(problem)
        close(fitted.scores(problem, damping=0.1), EKFAC.fit(plain).scores(plain, damping=0.1))
        with pytest.raises(ValueError, match="precondition an isotropic damping"):
            ConjugateGradients.fit(problem, curvature=GN, preconditioner=fitted)


class TestSamplers:
    @pytest.mark.parametrize("oracle", ["stacked", "sequential"])
    def test_forces_are_those_of_the_potential_of_weights(self, oracle):
        problem, metric = in_metric()
        settings = bif.Settings(
            nbeta=20.0, gamma=2.0, weight_decay=0.3, oracle=oracle, chunk_size=20
        )
        posterior = make_posterior(problem, settings)
        made = make_oracle(problem, settings, list(posterior.center))
        away = {n: normal(2, *leaf.shape, seed=i) for i, (n, leaf) in
                enumerate(posterior.center.items())}  # fmt: skip
        at = {n: posterior.center[n] + leaf for n, leaf in away.items()}
        share = torch.full((20,), 1 / 20, dtype=torch.float64)
        found, losses = made.gradient(at, problem.train.data, share, per_chain=False)
        potential = posterior.potential(losses.mean(dim=1), at)
        force = posterior.potential_gradient_(found, at)
        root, model = metric.diagonal().sqrt(), problem.evaluation_copy(problem.device)
        center = flat(problem.center())
        for c in range(2):
            weights = center + flat({n: leaf[c] for n, leaf in away.items()}) / root
            weights.requires_grad_()
            leaves = dict(zip(
                posterior.center,
                [part.view(leaf.shape) for part, leaf in zip(
                    weights.split([x.numel() for x in posterior.center.values()]),
                    posterior.center.values(), strict=True)],
                strict=True,
            ))  # fmt: skip
            mean = torch.func.functional_call(_Loss(model, problem), {
                f"model.{n}": leaf for n, leaf in leaves.items()
            }, (problem.train.data,)).mean()  # fmt: skip
            moved = weights - center
            expected = 20 * mean + (2.0 * moved @ metric @ moved) / 2
            expected = expected + 20 * 0.3 * (weights @ metric @ weights) / 2
            slope = torch.autograd.grad(expected, weights)[0] / root
            got = flat({n: leaf[c] for n, leaf in force.items()})
            torch.testing.assert_close(got, slope, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(potential[c], expected.detach(), rtol=1e-10, atol=0)

    def test_covariances_are_those_of_the_exact_posterior(self):
        metric = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
        run = bif.attribute(
            quadratic_problem().with_metric({"w": metric}),
            settings_for(_precision(metric), nbeta=1.0, gamma=2.0),
        )
        assert_influence(run, _answer(metric), precision=0.1)
        with pytest.raises(AssertionError, match="standard errors"):
            assert_influence(run, _answer(torch.ones(3).double()), precision=0.1)

    def test_the_live_oracle_is_refused(self):
        problem, _ = in_metric()
        with pytest.raises(ValueError, match="oracle='live' moves the model's own weights"):
            bif.attribute(problem, bif.Settings(oracle="live", chains=2, draws=4))


def _precision(metric: Tensor) -> Tensor:
    """Of U in the metric's coordinates, whose eigenvalues set the sampler's step."""
    root = metric.rsqrt()
    return root[:, None] * TRAIN.hessian.mean(dim=0) * root + 2.0 * torch.eye(3).double()


def _answer(metric: Tensor) -> Tensor:
    pull = torch.einsum("bij,bj->bi", TRAIN.hessian, TRAIN.minimum).mean(dim=0)
    covariance = torch.linalg.inv(TRAIN.hessian.mean(dim=0) + 2.0 * torch.diag(metric))
    mean = covariance @ (pull + 2.0 * metric * CENTER)
    return GaussianPosterior(mean, covariance).influence(QUERIES, TRAIN).unsqueeze(0)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, problem: bif.Problem) -> None:
        super().__init__()
        self.model, self._loss = model, problem.loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


class TestAdam:
    def test_the_metric_is_what_adam_divides_by(self):
        problem = classification()
        model = problem.evaluation_copy(problem.device).requires_grad_()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            problem.loss(model, problem.train.data).mean().backward()
            optimizer.step()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        found = bif.adam_metric(optimizer, model, floor=0.0)
        raised = bif.adam_metric(optimizer, model, floor=0.5)
        mean = flat(found).mean()
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(raised[name], found[name] + 0.5 * mean)
            # The next step, of a gradient of 0: v shrinks by beta2 and both corrections grow.
            root = ((found[name] - 1e-3).square() * (1 - 0.999**3) * 0.999 / (1 - 0.999**4)).sqrt()
            step = 0.01 * moments[name] * 0.9 / (1 - 0.9**4) / (root + 1e-3)
            torch.testing.assert_close(before[name] - parameter.detach(), step)

    def test_squared_gradients_of_whole_batches_are_that_of_the_mean(self):
        problem = classification()
        found = bif.gradient_metric(problem, batch_size=20, num_batches=2, floor=0.0)
        model = problem.evaluation_copy(problem.device).requires_grad_()
        problem.loss(model, problem.train.data).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad.abs())

    def test_frozen_weights_that_move_are_refused(self):
        model = classification().evaluation_copy(torch.device("cpu")).requires_grad_()
        name = next(iter(dict(model.named_parameters())))
        model.get_parameter(name).requires_grad_(False)
        problem = classification().with_model(model)
        problem = bif.Problem(
            model, problem.loss, train=problem.train, queries=problem.query_groups
        )
        metric = {n: leaf for n, leaf in metric_of(problem).items() if n != name}
        with pytest.raises(ValueError, match="no leaf of .* which the model freezes and movable"):
            bif.attribute(problem.with_metric(metric), replace(SOLVED, movable=(name,)))

    def test_what_is_no_metric_is_refused(self):
        problem = classification()
        good = metric_of(problem)
        name = next(iter(good))
        for bad, message in (
            ({}, "the metric lacks"),
            ({**good, "other": torch.ones(1)}, "has unknown \\['other'\\]"),
            ({**good, name: torch.ones(2)}, "has shape \\(2,\\), expected"),
            ({**good, name: -good[name]}, "not positive and finite"),
            ({**good, name: 1.0}, "has shape \\(\\), expected"),
        ):
            with pytest.raises(ValueError, match=message):
                problem.with_metric(bad)
        with pytest.raises(ValueError, match="batch_size must be from 1 to 20"):
            bif.gradient_metric(problem, batch_size=21)
        with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
            bif.gradient_metric(problem, batch_size=20, num_batches=0)
        with pytest.raises(ValueError, match="floor must be at least 0"):
            bif.gradient_metric(problem, batch_size=20, floor=-1.0)
        model = problem.evaluation_copy(problem.device).requires_grad_()
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="SGD has no second moments of"):
            bif.adam_metric(plain, model)
