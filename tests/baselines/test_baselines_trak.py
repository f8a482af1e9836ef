"""TRAK against its dense formula, and the random projection against its moments."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import bif
from bif import losses
from bif.baselines import TRAK, item_gradients
from bif.baselines.projection import Projection
from rival_problems import (
    close,
    dense_gradients,
    mlp,
    mlp_problem,
    regression_problem,
    scores_of,
    tokens,
)
from small_problems import classification, dict_cross_entropy, labelled, network, normal


def dense(problem: bif.Problem, function: Any, damping: float, project: Any = None) -> Tensor:
    """`+g_phi (ΦᵀΦ + damping)⁻¹ φ_i (1 - p_i)`, written out for a classifier."""
    phi = dense_gradients(problem, losses.margin, problem.train.data)
    queries = torch.cat(
        [dense_gradients(problem, function, g.data) for g in problem.query_groups.values()]
    )
    if project is not None:
        phi, queries = project(phi), project(queries)
    x, y = problem.train.data
    p = problem.model(x).detach().softmax(dim=1)[torch.arange(len(y)), y]
    kernel = phi.T @ phi + damping * torch.eye(phi.shape[1]).double()
    return queries @ torch.linalg.solve(kernel, phi.T) * (1 - p)


class TestScores:
    def test_texts_have_the_log_odds_of_their_probability_as_output(self):
        problem = tokens()[0]
        batch = problem.train.data
        rows = item_gradients(problem, losses.next_token, problem.train)
        with torch.no_grad():
            p = torch.exp(-losses.next_token(problem.model, batch).sum(dim=1))
        phi = rows / (p - 1)[:, None]  # l = -log p and f = log p/(1-p), so df = dl / (p - 1)
        queries = torch.cat(
            [item_gradients(problem, losses.next_token, g)
             for g in problem.query_groups.values()]
        )  # fmt: skip
        kernel = phi.T @ phi + 0.5 * torch.eye(phi.shape[1]).double()
        expected = queries @ torch.linalg.solve(kernel, phi.T) * (1 - p)
        close(scores_of(TRAK, problem, damping=0.5, dimension=None), expected)

    @pytest.mark.parametrize("name", ["loss", "margin"])
    def test_scores_without_projection_are_the_formula(self, name):
        function = losses.margin if name == "margin" else losses.cross_entropy
        got = scores_of(TRAK, mlp_problem(), damping=0.5, dimension=None, observable=name)
        assert got.dtype == torch.float64
        close(got, dense(mlp_problem(), function, 0.5))

    @pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
    def test_scores_with_projection_are_the_formula_too(self, kind):
        problem = mlp_problem()
        project = Projection(1210, 16, kind=kind, seed=3, like=next(problem.model.parameters()))
        fitted = TRAK.fit(problem, dimension=16, projection=kind, seed=3)
        got = fitted.scores(problem, damping=0.5, observable="loss")
        close(got, dense(problem, losses.cross_entropy, 0.5, project))
        other = TRAK.fit(problem, dimension=16, projection=kind, seed=4)
        assert not torch.allclose(got, other.scores(problem, damping=0.5, observable="loss"))

    def test_the_losss_scores_are_the_margins_times_minus_one_minus_p_of_the_query(self):
        problem = mlp_problem()
        x, y = problem.query_groups["query"].data
        p = problem.model(x).detach().softmax(dim=1)[torch.arange(len(y)), y]
        loss, margin = (
            scores_of(TRAK, problem, damping=0.5, observable=name, dimension=32)
            for name in ("loss", "margin")
        )
        close(loss, -(1 - p)[:, None] * margin)

    def test_squared_errors_use_the_output_and_the_residual(self):
        problem, x, residuals, w = regression_problem()
        qx, qy = problem.query_groups["query"].data
        kernel = x.T @ x + 0.7 * torch.eye(4).double()
        slopes = -(qy - qx @ w.T) * qx
        expected = slopes @ torch.linalg.solve(kernel, x.T) * residuals.flatten()
        close(scores_of(TRAK, problem, damping=0.7, dimension=None), expected)

    def test_scores_of_linear_regression_are_exact_influence_over_n(self):
        pytest.importorskip("curvlinops")
        from bif.baselines import ExactInfluence

        problem, *_ = regression_problem()
        exact = scores_of(ExactInfluence, problem, damping=0.1)
        close(scores_of(TRAK, problem, damping=0.1 * 30, dimension=None), exact / 30)

    def test_checkpoints_are_averaged_products_and_weights_apart(self):
        models = [mlp(seed=s) for s in (0, 1)]
        problem = mlp_problem()
        parts, weights = [], []
        for model in models:
            one = mlp_problem()
            one.model = model
            x, y = one.train.data
            p = model(x).detach().softmax(dim=1)[torch.arange(len(y)), y]
            weights.append(1 - p)
            parts.append(dense(one, losses.cross_entropy, 0.5) / (1 - p))
        expected = (parts[0] + parts[1]) / 2 * (weights[0] + weights[1]) / 2
        close(scores_of(TRAK, problem, damping=0.5, models=models, dimension=None), expected)

    def test_a_damping_scale_is_in_units_of_the_mean_eigenvalue(self):
        problem = mlp_problem()
        phi = dense_gradients(problem, losses.margin, problem.train.data)
        mean = float(phi.square().sum()) / 1210
        close(
            scores_of(TRAK, problem, damping_scale=2.0, dimension=None),
            scores_of(TRAK, problem, damping=2 * mean, dimension=None),
        )

    def test_the_soft_threshold_shrinks_every_query_by_a_share_of_its_largest(self):
        problem = mlp_problem()
        fitted = TRAK.fit(problem, dimension=32)
        plain = fitted.scores(problem, damping=0.5)
        shrunk = fitted.scores(problem, damping=0.5, soft_threshold=0.3)
        limit = 0.3 * plain.abs().amax(dim=1, keepdim=True)
        close(shrunk, plain.sign() * (plain.abs() - limit).clamp(min=0))
        assert (shrunk == 0).any() and (shrunk.abs().amax(dim=1) > 0).all()

    def test_an_output_function_of_ones_own_is_used(self):
        def one_minus_p(model: Any, batch: Any) -> Tensor:
            return torch.sigmoid(-losses.margin(model, (batch["x"], batch["y"])))

        def margin(model: Any, batch: Any) -> Tensor:
            return losses.margin(model, (batch["x"], batch["y"]))

        data = {
            "train": dict(zip("xy", labelled(20, seed=1), strict=True)),
            "queries": dict(zip("xy", labelled(5, seed=2), strict=True)),
        }
        problem = classification(loss=dict_cross_entropy, observables=None, **data)
        fitted = TRAK.fit(problem, output=(margin, one_minus_p), dimension=None)
        expected = scores_of(TRAK, classification(), damping=0.5, dimension=None)
        close(fitted.scores(problem, damping=0.5), expected)


class TestProjection:
    LIKE = torch.empty(0).double()

    @pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
    def test_entries_have_mean_zero_and_variance_one_over_k(self, kind):
        # 300 × 400 entries: standard errors of the mean and of the mean square (kurtosis ≤ 3).
        project = Projection(300, 400, kind=kind, seed=0, like=self.LIKE)
        matrix = project(torch.eye(300).double()) * 400**0.5
        assert abs(float(matrix.mean())) < 5 / 120_000**0.5
        assert abs(float(matrix.square().mean()) - 1) < 5 * (2 / 120_000) ** 0.5
        if kind == "rademacher":
            close(matrix.abs(), torch.ones_like(matrix))

    def test_inner_products_are_kept_within_their_standard_deviation(self):
        x, y = normal(2, 500, seed=1)
        products = torch.stack([
            (lambda r: r[0] @ r[1])(
                Projection(500, 64, kind="rademacher", seed=s, like=self.LIKE)(torch.stack([x, y]))
            )
            for s in range(100)
        ])  # fmt: skip
        bound = 5 * float(x.norm() * y.norm()) * (2 / 64 / 100) ** 0.5
        assert abs(float(products.mean() - x @ y)) < bound
        assert float(products.std()) > 0.01 * bound

    def test_blocks_differ_and_give_the_same_kept_or_made_anew(self, monkeypatch):
        module = importlib.import_module("bif.baselines.projection")
        monkeypatch.setattr(module, "_BLOCK_WEIGHTS", 7)
        kept = Projection(20, 5, kind="gaussian", seed=0, like=self.LIKE)
        monkeypatch.setattr(module, "_MAX_KEPT_BYTES", 0)
        anew = Projection(20, 5, kind="gaussian", seed=0, like=self.LIKE)
        eye = torch.eye(20).double()
        assert torch.equal(kept(eye), anew(eye)) and torch.equal(kept(eye), kept(eye))
        assert len(kept._kept) == 3 and not anew._kept
        assert not torch.allclose(kept(eye)[:7], kept(eye)[7:14])

    @pytest.mark.parametrize(
        ("given", "message"),
        [({"dimension": 0}, "at least 1, got 0"), ({"kind": "sparse"}, "projection is 'sparse'")],
    )
    def test_bad_settings_are_refused(self, given, message):
        settings = {"dimension": 4, "kind": "gaussian", **given}
        with pytest.raises(ValueError, match=message):
            Projection(10, settings.pop("dimension"), seed=0, like=self.LIKE, **settings)


class TestRefusals:
    def test_an_unknown_loss_asks_for_the_output_function(self):
        data = {
            "train": dict(zip("xy", labelled(20, seed=1), strict=True)),
            "queries": dict(zip("xy", labelled(5, seed=2), strict=True)),
        }
        problem = classification(loss=dict_cross_entropy, observables=None, **data)
        with pytest.raises(ValueError, match="TRAK's output function is not known"):
            scores_of(TRAK, problem, damping=1.0)

    def test_several_outputs_of_squared_errors_are_refused(self):
        problem, *_ = regression_problem(num_outputs=2)
        with pytest.raises(ValueError, match="needs one output an item, got shape"):
            scores_of(TRAK, problem, damping=1.0)

    def test_a_singular_kernel_without_damping_is_refused(self):
        with pytest.raises(ValueError, match="ΦᵀΦ is singular: 40 items, 64 directions"):
            scores_of(TRAK, mlp_problem(), damping=0.0, dimension=64)

    @pytest.mark.parametrize("threshold", [-0.1, 1.0])
    def test_a_threshold_outside_of_its_range_is_refused(self, threshold):
        fitted = TRAK.fit(classification(), dimension=8)
        with pytest.raises(ValueError, match=r"soft_threshold must be in \[0, 1\)"):
            fitted.scores(classification(), damping=1.0, soft_threshold=threshold)

    def test_models_of_other_weights_or_none_at_all_are_refused(self):
        with pytest.raises(ValueError, match="the model must have the weights of the problem"):
            TRAK.fit(mlp_problem(), models=[network()])
        with pytest.raises(ValueError, match="models is empty"):
            TRAK.fit(mlp_problem(), models=[])
