"""Exact influence: Hessian and Gauss-Newton matrix against dense algebra and closed forms."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.baselines import ConjugateGradients, ExactInfluence, gradient_product
from bif.baselines.exact import dense_curvature
from bif.curvature.outputs import SplitLoss
from bif.curvature.passes import RootedOutputs
from rival_problems import (
    GN,
    close,
    damped,
    dense_gauss_newton,
    dense_gradients,
    dense_hessian,
    dense_scores,
    mlp_problem,
    problem_of,
    regression_problem,
    scores_of,
    token_jacobian,
    tokens,
)
from small_problems import (
    assert_same_state,
    classification,
    dict_cross_entropy,
    filled,
    labelled,
    network,
    normal,
    state_of,
)

pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")

RHO = normal(20, seed=4).exp()


def without_centring(self: SplitLoss, outputs: Tensor, root: Tensor) -> Tensor:
    return (root * outputs.detach().softmax(dim=-1).sqrt() * outputs).flatten(1)


class TestGaussNewton:
    @pytest.mark.parametrize("weights", [None, RHO], ids=["unweighted", "weighted"])
    def test_the_matrix_is_the_mean_of_jacobians_around_the_softmax_hessian(self, weights):
        problem = classification(train_weights=weights)
        close(dense_curvature(problem, GN), dense_gauss_newton(problem))

    def test_the_matrix_of_squared_errors_has_no_half(self):
        problem, x, _, _ = regression_problem(num_outputs=2)
        close(dense_curvature(problem, GN), dense_gauss_newton(problem, softmax=False))
        expected = torch.kron(torch.eye(2).double(), x.T @ x / len(x))
        close(dense_curvature(problem, GN), expected)

    def test_the_matrix_of_a_model_linear_in_its_weights_is_the_hessian(self):
        problem = problem_of(filled(nn.Linear(4, 3)), train=labelled(20, seed=1),
                             queries=labelled(5, seed=2))  # fmt: skip
        close(dense_curvature(problem, GN), dense_hessian(problem))
        assert not torch.allclose(
            dense_curvature(classification(), GN),
            dense_hessian(classification()),
            atol=1e-3,
        )

    @pytest.mark.parametrize("criterion", [None, "cross_entropy"])
    def test_a_users_loss_is_split_with_or_without_a_criterion(self, criterion):
        data = {
            "train": dict(zip("xy", labelled(20, seed=1), strict=True)),
            "queries": dict(zip("xy", labelled(5, seed=2), strict=True)),
        }
        problem = classification(loss=dict_cross_entropy, observables=None, **data)
        close(
            dense_curvature(problem, GN, criterion),
            dense_gauss_newton(classification()),
        )

    @pytest.mark.parametrize("criterion", [None, "cross_entropy"])
    def test_scaled_and_smoothed_cross_entropies_keep_their_curvature(self, criterion):
        def loss(model: Any, batch: Any) -> Tensor:
            x, y = batch
            smooth = nn.functional.cross_entropy(model(x), y, reduction="none", label_smoothing=0.2)
            return 3 * smooth

        problem = classification(loss=loss, observables=None)
        expected = 3 * dense_gauss_newton(classification())
        close(dense_curvature(problem, GN, criterion), expected)

    @pytest.mark.parametrize("criterion", [None, "squared_error"])
    def test_a_users_squared_error_is_split_too(self, criterion):
        def loss(model: Any, batch: Any) -> Tensor:
            return (model(batch[0]) - batch[1]).square().mean(dim=1)

        plain, *_ = regression_problem(num_outputs=2)
        problem = bif.Problem(plain.model, loss, train=plain.train,
                              queries=plain.query_groups)  # fmt: skip
        close(
            dense_curvature(problem, GN, criterion),
            dense_curvature(plain, GN),
        )

    @pytest.mark.parametrize("weights", [None, RHO], ids=["unweighted", "weighted"])
    def test_token_losses_are_summed_and_masked_tokens_left_out(self, weights):
        problem, mask = tokens(weights)
        p = problem.model(problem.train.data["input_ids"]).detach().softmax(dim=-1)
        curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        curvature = curvature * mask[..., None, None]
        if weights is not None:
            curvature = curvature * weights[:, None, None, None]
        jacobian = token_jacobian(problem)
        expected = torch.einsum("ntcp,ntcd,ntdq->pq", jacobian, curvature, jacobian) / 20
        close(dense_curvature(problem, GN), expected)

    @pytest.mark.parametrize(
        ("target", "name", "mutant"),
        [
            (SplitLoss, "apply_root", without_centring),
            (RootedOutputs, "forward", lambda self, x: self._of(x)),
        ],
        ids=["softmax not centred", "weights forgotten"],
    )
    def test_a_wrong_root_is_noticed(self, monkeypatch, target, name, mutant):
        monkeypatch.setattr(target, name, mutant)
        with pytest.raises(AssertionError):
            self.test_the_matrix_is_the_mean_of_jacobians_around_the_softmax_hessian(RHO)


class TestScores:
    @pytest.mark.parametrize("name", ["loss", "margin"])
    @pytest.mark.parametrize("curvature", ["hessian", GN])
    @pytest.mark.parametrize("weights", [None, normal(40, seed=4).exp()], ids=["plain", "weighted"])
    def test_scores_are_those_of_the_dense_solve(self, curvature, name, weights):
        problem = mlp_problem(train_weights=weights)
        matrix = dense_hessian(problem) if curvature == "hessian" else dense_gauss_newton(problem)
        damping = 0.3 - min(0.0, float(torch.linalg.eigvalsh(matrix)[0]))
        function = losses.margin if name == "margin" else losses.cross_entropy
        expected = dense_scores(problem, damped(matrix, damping), function)
        fitted = ExactInfluence.fit(problem, curvature=curvature)
        got = fitted.scores(problem, damping=damping, observable=name)
        assert got.dtype == torch.float64
        close(got, expected)

    def test_scores_times_damping_tend_to_the_gradient_product(self):
        # d (H + d)⁻¹ = 1 - H/d + …: the error is at most ‖g_q‖ ‖H‖ ‖g_i‖ / d.
        problem, damping = classification(), 1e6
        product = gradient_product(problem)
        got = damping * scores_of(ExactInfluence, problem, damping=damping)
        queries, train = problem.query_groups["query"].data, problem.train.data
        g_q = dense_gradients(problem, problem.loss, queries).norm(dim=1)
        g_i = dense_gradients(problem, problem.loss, train).norm(dim=1)
        bound = g_q[:, None] * g_i * torch.linalg.matrix_norm(dense_hessian(problem), 2) / damping
        assert ((got - product).abs() <= 1.01 * bound + 1e-12).all()
        assert (got - product).abs().max() > 0.01 * bound.max()  # and not nearer than that

    @pytest.mark.parametrize("curvature", ["hessian", GN])
    def test_linear_regression_has_its_closed_form(self, curvature):
        problem, x, residuals, w = regression_problem()
        qx, qy = problem.query_groups["query"].data
        slopes = (qy - qx @ w.T) * qx
        inverse = torch.linalg.inv(damped(x.T @ x / len(x), 0.2))
        expected = -slopes @ inverse @ (residuals * x).T
        close(scores_of(ExactInfluence, problem, damping=0.2, curvature=curvature), expected)

    def test_other_queries_need_no_other_fit(self):
        problem = mlp_problem()
        fitted = ExactInfluence.fit(problem, curvature=GN)
        other = mlp_problem()
        other.query_groups = {"a": problem.train, "b": problem.query_groups["query"]}
        got = fitted.scores(other, damping=0.1)
        assert got.shape == (46, 40)
        close(got[40:], fitted.scores(problem, damping=0.1))
        close(got, scores_of(ExactInfluence, other, damping=0.1, curvature=GN))

    def test_dampings_in_any_order_give_what_each_alone_gives(self):
        problem = classification()
        fitted = ExactInfluence.fit(problem, curvature=GN)
        for damping in (0.1, 0.1, 2.0, 0.1):
            expected = scores_of(ExactInfluence, problem, damping=damping, curvature=GN)
            assert torch.equal(fitted.scores(problem, damping=damping), expected)

    def test_a_damping_scale_is_in_units_of_the_mean_eigenvalue(self):
        problem = mlp_problem()
        fitted = ExactInfluence.fit(problem, curvature=GN)
        mean = float(dense_gauss_newton(problem).trace()) / 1210
        assert fitted.mean_eigenvalue == pytest.approx(mean, rel=1e-10)
        close(fitted.scores(problem, damping_scale=2.0), fitted.scores(problem, damping=2 * mean))

    def test_leaving_items_out_of_a_convex_problem_follows_the_scores(self):
        problem, changes = leave_one_out()
        scores = scores_of(ExactInfluence, problem, damping=RIDGE)
        assert correlation(changes, -scores) > 0.99
        assert correlation(changes, scores) < -0.99  # the mutant with the wrong sign

    def test_the_slope_of_leaving_out_is_one_over_n(self):
        problem, changes = leave_one_out()
        predicted = -scores_of(ExactInfluence, problem, damping=RIDGE) / problem.num_train
        # The second order of removal is the leverage, below 1/3 for all items here.
        slope = float((changes * predicted).sum() / predicted.square().sum())
        assert 1.0 < slope < 1.5


RIDGE = 0.1


@cache
def leave_one_out() -> tuple[bif.Problem, Tensor]:
    """A softmax regression with a ridge, and the change of every query's loss when items leave."""
    train, queries = labelled(40, seed=1), labelled(6, seed=2)
    everything = fitted_weights(train, torch.ones(40).double())
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(everything[:, :4])
        model.bias.copy_(everything[:, 4])
    problem = problem_of(model, train=train, queries=queries)
    changes = []
    for i in range(40):
        kept = torch.ones(40).double()
        kept[i] = 0
        without = fitted_weights(train, kept)
        changes.append(query_losses(without, queries) - query_losses(everything, queries))
    return problem, torch.stack(changes, dim=1)


def fitted_weights(items: tuple[Tensor, Tensor], kept: Tensor) -> Tensor:
    """Minimum of `(1/n) Σ kept·l + (ridge/2) |w|²`, `[3, 5]`, by Newton's method."""

    def objective(flat: Tensor) -> Tensor:
        values = query_losses(flat.view(3, 5), items)
        return (kept * values).mean() + 0.5 * RIDGE * flat.square().sum()

    flat = torch.zeros(15).double()
    for _ in range(6):
        slope = torch.func.grad(objective)(flat)
        flat = flat - torch.linalg.solve(torch.func.hessian(objective)(flat), slope)
    assert torch.func.grad(objective)(flat).norm() < 1e-12
    return flat.view(3, 5)


def query_losses(weights: Tensor, items: tuple[Tensor, Tensor]) -> Tensor:
    logits = items[0] @ weights[:, :4].T + weights[:, 4]
    return nn.functional.cross_entropy(logits, items[1], reduction="none")


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


class TestRefusals:
    def test_a_hessian_that_is_not_positive_names_the_damping_it_needs(self):
        fitted = ExactInfluence.fit(classification())
        lowest = fitted.smallest_eigenvalue
        assert lowest < -1e-3
        with pytest.raises(ValueError, match="damped Hessian is not positive") as error:
            fitted.scores(classification(), damping=0.0)
        needed = float(str(error.value).split("above ")[1].rstrip("."))
        assert needed == pytest.approx(-lowest, rel=1e-2)
        fitted.scores(classification(), damping=1.01 * needed)

    def test_an_unknown_observable_is_refused(self):
        fitted = ExactInfluence.fit(classification())
        with pytest.raises(KeyError, match="no observable 'logit'"):
            fitted.scores(classification(), damping=1.0, observable="logit")

    @pytest.mark.parametrize(("curvature", "name"), [("hessian", "Hessian"),
                                                     (GN, "Gauss-Newton matrix")])  # fmt: skip
    def test_too_many_weights_are_refused(self, monkeypatch, curvature, name):
        module = importlib.import_module("bif.baselines.exact")
        monkeypatch.setattr(module, "_MAX_WEIGHTS", 42)
        with pytest.raises(ValueError, match=f"{name} of 43 weights does not fit: at most 42"):
            scores_of(ExactInfluence, classification(), damping=1.0, curvature=curvature)

    def test_another_curvature_is_refused(self):
        with pytest.raises(
            ValueError, match="curvature is 'fisher': expected one of gauss_newton, hessian"
        ):
            scores_of(ExactInfluence, classification(), damping=1.0, curvature="fisher")  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [{}, {"damping": 1.0, "damping_scale": 1.0}])
    def test_both_or_neither_of_the_dampings_are_refused(self, given):
        fitted = ExactInfluence.fit(classification())
        with pytest.raises(ValueError, match="give either damping .* or damping_scale"):
            fitted.scores(classification(), **given)

    @pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
    def test_a_damping_that_is_none_is_refused(self, damping):
        with pytest.raises(ValueError, match="damping must be a finite number ≥ 0"):
            scores_of(ExactInfluence, classification(), damping=damping)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"train": labelled(19, seed=1)}, "fitted to 20 train items, asked about 19"),
            ({"model": network(seed=9)}, "the model's weights are not those that were fitted"),
            ({"train_weights": [2.0] * 20}, "train weights rho are not those that were fitted"),
        ],
    )
    def test_another_problem_than_the_one_fitted_is_refused(self, changed, message):
        fitted = ExactInfluence.fit(classification())
        with pytest.raises(ValueError, match=message):
            fitted.scores(classification(**changed), damping=1.0)

    def test_a_loss_that_calls_the_model_twice_or_never_is_refused(self):
        def twice(model: Any, batch: Any) -> Tensor:
            return losses.cross_entropy(model, batch) + losses.margin(model, batch)

        def never(model: Any, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(model.inner(batch[0]), batch[1], reduction="none")

        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x)

        for loss, model, times in ((twice, network(), 2), (never, Wrapped(), 0)):
            problem = classification(loss=loss, model=model, observables=None)
            with pytest.raises(ValueError, match=f"called the model {times} times, expected once"):
                scores_of(ExactInfluence, problem, damping=1.0, curvature=GN)
            scores_of(ExactInfluence, problem, damping=10.0)  # the Hessian needs no split

    def test_a_loss_with_a_penalty_on_weights_is_refused(self):
        def loss(model: Any, batch: Any) -> Tensor:
            return losses.cross_entropy(model, batch) + sum(
                p.square().sum() for p in model.parameters()
            )

        problem = classification(loss=loss, observables=None)
        with pytest.raises(ValueError, match="depends on the weights not only through model"):
            scores_of(ExactInfluence, problem, damping=1.0, curvature=GN)

    def test_a_criterion_that_does_not_fit_the_loss_is_refused(self):
        with pytest.raises(ValueError, match="criterion='squared_error' does not fit the loss"):
            scores_of(
                ExactInfluence,
                classification(),
                damping=1.0,
                curvature=GN,
                criterion="squared_error",
            )
        problem, *_ = regression_problem(num_outputs=3)
        with pytest.raises(ValueError, match="criterion='cross_entropy' does not fit the loss"):
            scores_of(
                ExactInfluence,
                problem,
                damping=1.0,
                curvature=GN,
                criterion="cross_entropy",
            )
        with pytest.raises(ValueError, match="criterion is 'hinge': expected one of cross_entropy"):
            scores_of(ExactInfluence, problem, damping=1.0, curvature=GN, criterion="hinge")  # type: ignore[arg-type]

    def test_many_outputs_and_an_unknown_loss_ask_for_a_criterion(self):
        def loss(model: Any, batch: Any) -> Tensor:
            return losses.cross_entropy(model, batch)

        with torch.random.fork_rng(devices=[]):
            model = filled(nn.Linear(4, 70))
        problem = bif.Problem(model, loss, train=labelled(20, seed=1), queries=labelled(5, seed=2))
        with pytest.raises(ValueError, match="unknown how this loss curves in its 70 outputs"):
            scores_of(ExactInfluence, problem, damping=1.0, curvature=GN)
        known = bif.Problem(model, losses.cross_entropy, train=problem.train,
                            queries=problem.query_groups)  # fmt: skip
        close(
            scores_of(
                ExactInfluence,
                problem,
                damping=1.0,
                curvature=GN,
                criterion="cross_entropy",
            ),
            scores_of(ExactInfluence, known, damping=1.0, curvature=GN),
        )

    def test_a_loss_that_is_not_convex_in_the_outputs_is_refused(self):
        def loss(model: Any, batch: Any) -> Tensor:
            return model(batch[0]).sin().sum(dim=1)

        problem = classification(loss=loss, observables=None)
        for criterion in (None, "squared_error"):
            with pytest.raises(ValueError, match="not convex in the model's outputs"):
                scores_of(
                    ExactInfluence,
                    problem,
                    damping=1.0,
                    curvature=GN,
                    criterion=criterion,
                )

    def test_a_model_that_returns_neither_tensor_nor_logits_is_refused(self):
        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network()

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return self.inner(x), x

        def loss(model: Any, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0])[0], batch[1], reduction="none")

        problem = classification(loss=loss, model=Pair(), observables=None)
        with pytest.raises(ValueError, match="the model returned tuple, expected a tensor"):
            scores_of(ConjugateGradients, problem, damping=1.0, curvature=GN)


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = state_of(model)
    problem = classification(model=model)
    ExactInfluence.fit(problem, curvature=GN).scores(problem, damping=1.0)
    assert_same_state(model, before)
    assert "forward" not in model.__dict__
