"""EK-FAC: scale, eigenbasis and refusals, against hand-made factors and dense Gauss-Newton."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.baselines import EKFAC, ExactInfluence
from bif.baselines import ekfac as ekfac_module
from bif.baselines.exact import dense_curvature
from bif.curvature import fisher as fisher_module
from rival_problems import (
    GN,
    close,
    dense_gauss_newton,
    dense_gradients,
    mlp,
    mlp_problem,
    problem_of,
    regression_problem,
    scores_of,
    tokens,
)
from small_problems import (
    assert_same_state,
    classification,
    filled,
    integers,
    labelled,
    normal,
    state_of,
)

pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")


def total(fitted: EKFAC) -> float:
    return float(sum(values.sum() for values in fitted.eigenvalues.values()))


def made(*layers: nn.Module) -> nn.Module:
    return filled(nn.Sequential(*layers), scale=0.3)


def images(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    return normal(num_items, 2, 5, 5, seed=seed), integers(3, num_items, seed=seed + 50)


def image_problem(*layers: nn.Module, **changed: Any) -> bif.Problem:
    with torch.random.fork_rng(devices=[]):
        model = made(*layers)
    given: dict[str, Any] = {"train": images(12, seed=1), "queries": images(4, seed=2), **changed}
    return problem_of(model, **given)


class TestWhereTheKroneckerProductIsExact:
    @pytest.mark.parametrize("fisher_type", ["type-2", "mc"])
    def test_linear_regression_of_several_outputs_is_exact(self, fisher_type):
        # Every item curves alike in its outputs, so the matrix is I ⊗ A; sampled, it is not.
        problem, *_ = regression_problem(num_outputs=3)
        got = scores_of(EKFAC, problem, damping=0.2, fisher_type=fisher_type)
        expected = scores_of(ExactInfluence, problem, damping=0.2, curvature=GN)
        if fisher_type == "type-2":
            close(got, expected)
        else:
            assert 1e-3 < (got - expected).norm() / expected.norm() < 0.5

    def test_softmax_regression_whose_items_predict_alike_is_exact(self):
        # At zero weights every p is uniform: the matrix is (mean a aᵀ) ⊗ (diag p - p pᵀ).
        model = nn.Linear(4, 3).double()
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        problem = problem_of(model, train=labelled(20, seed=1), queries=labelled(5, seed=2))
        for name in ("loss", "margin"):
            got = scores_of(EKFAC, problem, damping=0.1, observable=name)
            close(
                got,
                scores_of(ExactInfluence, problem, damping=0.1, curvature=GN, observable=name),
            )

    def test_elsewhere_ekfac_is_another_matrix_of_the_same_trace(self):
        with torch.random.fork_rng(devices=[]):
            model = filled(nn.Linear(4, 3), scale=2.0)
        problem = problem_of(model, train=labelled(20, seed=1), queries=labelled(5, seed=2))
        got = scores_of(EKFAC, problem, damping=0.1)
        expected = scores_of(ExactInfluence, problem, damping=0.1, curvature=GN)
        assert (got - expected).norm() > 1e-3 * expected.norm()
        assert total(EKFAC.fit(problem)) == pytest.approx(
            float(dense_gauss_newton(problem).trace()), rel=1e-10
        )

    def test_a_convolution_as_large_as_the_image_is_a_linear_layer(self):
        conv = image_problem(nn.Conv2d(2, 3, 5), nn.Flatten())
        linear = image_problem(nn.Flatten(), nn.Linear(50, 3))
        with torch.no_grad():
            for ours, theirs in zip(
                linear.model.parameters(), conv.model.parameters(), strict=True
            ):
                ours.copy_(theirs.reshape(ours.shape))
        close(scores_of(EKFAC, conv, damping=0.1), scores_of(EKFAC, linear, damping=0.1))


def by_hand(problem: bif.Problem, damping: float, *, joint: bool = True) -> Tensor:
    """EK-FAC's scores of a tanh MLP, from explicit factors, one layer after the other."""
    first, second = problem.model[0], problem.model[2]  # type: ignore[index]
    x = problem.train.data[0]
    hidden = torch.tanh(first(x)).detach()
    p = second(hidden).softmax(dim=1).detach()
    # Columns of a square root of diag p - p pᵀ, carried back to each layer's outputs.
    root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    back = (second.weight.detach().T @ root) * (1 - hidden.square()).unsqueeze(2)
    ones = torch.ones(len(x), 1).double()
    scores, start = torch.zeros(problem.num_queries, len(x)).double(), 0
    function = problem.observables[0].function
    g_train = dense_gradients(problem, problem.loss, problem.train.data)
    g_query = dense_gradients(problem, function, problem.query_groups["query"].data)
    for layer, inputs, outputs in ((first, x, back), (second, hidden, root)):
        inputs = torch.cat([inputs, ones], dim=1)
        A = inputs.T @ inputs
        G = torch.einsum("nic,njc->ij", outputs, outputs)
        q_a, q_g = torch.linalg.eigh(A)[1], torch.linalg.eigh(G)[1]
        turned = torch.einsum("nic,ij,na,ab->ncjb", outputs, q_g, inputs, q_a)
        eigenvalues = turned.square().sum(dim=(0, 1)) / len(x)

        def matrix(rows: Tensor, start: int = start, layer: Any = layer) -> Tensor:
            out, width = layer.weight.shape
            middle, stop = start + out * width, start + out * (width + 1)
            weight = rows[:, start:middle].view(-1, out, width)
            return torch.cat([weight, rows[:, middle:stop].unsqueeze(2)], dim=2)

        queries = q_g.T @ matrix(g_query) @ q_a / (eigenvalues + damping)
        scores -= torch.einsum("qij,nij->qn", queries, q_g.T @ matrix(g_train) @ q_a)
        start += layer.weight.numel() + layer.bias.numel()
    return scores


class TestByHand:
    def test_two_layers_are_their_factors_corrected_eigenvalues_and_exact_damping(self):
        problem = mlp_problem()
        close(scores_of(EKFAC, problem, damping=0.05), by_hand(problem, 0.05))

    @pytest.mark.parametrize("mutant", ["scale", "damping", "bias"])
    def test_a_wrong_scale_damping_or_bias_is_noticed(self, monkeypatch, mutant):
        true_chunks, true_apply = fisher_module.weighted_chunks, ekfac_module._Layer.apply

        def scaled(*args: Any, **kw: Any) -> Any:
            return ((2 * share, batch) for share, batch in true_chunks(*args, **kw))

        def apply(self: Any, rows: Tensor, values: Tensor) -> list[Tensor]:
            if mutant == "damping":
                return true_apply(self, rows, values**0.5)
            pieces = true_apply(self, rows, values)
            return [pieces[0], torch.zeros_like(pieces[1])]

        if mutant == "scale":
            monkeypatch.setattr(fisher_module, "weighted_chunks", scaled)
        else:
            monkeypatch.setattr(ekfac_module._Layer, "apply", apply)
        with pytest.raises(AssertionError):
            self.test_two_layers_are_their_factors_corrected_eigenvalues_and_exact_damping()

    def test_a_damping_scale_is_each_layers_own(self):
        problem = mlp_problem()
        fitted = EKFAC.fit(problem)
        means = [float(v.mean()) for v in fitted.eigenvalues.values()]
        assert means[0] != pytest.approx(means[1], rel=0.1)
        both = [by_layer(problem, fitted, layer, 2 * m) for layer, m in enumerate(means)]
        close(fitted.scores(problem, damping_scale=2.0), both[0] + both[1])
        one = total(fitted) / 1210
        assert fitted.mean_eigenvalue == pytest.approx(one, rel=1e-12)


def by_layer(problem: bif.Problem, fitted: EKFAC, layer: int, damping: float) -> Tensor:
    movable = [f"{2 * layer}.*"]
    return EKFAC.fit(problem, movable=movable).scores(problem, damping=damping)


class TestScale:
    """The trace of EK-FAC is that of the matrix it approximates, exactly."""

    @pytest.mark.parametrize("weighted", [False, True])
    def test_type_2_has_the_trace_of_the_gauss_newton_matrix(self, weighted):
        weights = normal(20, seed=4).exp() if weighted else None
        problem = classification(train_weights=weights)
        expected = float(dense_gauss_newton(problem).trace())
        assert total(EKFAC.fit(problem)) == pytest.approx(expected, rel=1e-10)

    def test_of_squared_errors_type_2_has_the_trace_too(self):
        problem, *_ = regression_problem(num_outputs=2)
        expected = float(dense_gauss_newton(problem, softmax=False).trace())
        assert total(EKFAC.fit(problem)) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_empirical_has_the_mean_squared_gradient(self, weighted):
        rho = normal(20, seed=4).exp() if weighted else torch.ones(20).double()
        problem = classification(train_weights=rho)
        gradients = dense_gradients(problem, problem.loss, problem.train.data)
        expected = float((rho * gradients.square().sum(dim=1)).mean())
        fitted = EKFAC.fit(problem, fisher_type="empirical")
        assert total(fitted) == pytest.approx(expected, rel=1e-10)

    def test_the_sampled_matrix_is_unbiased(self):
        # 500 passes: the sum of squares of normal numbers has a relative error of at most
        # sqrt(2 / 500) in each eigen-direction of an item, so of the whole.
        problem = classification()
        expected = float(dense_gauss_newton(problem).trace())
        fitted = EKFAC.fit(problem, fisher_type="mc", num_samples=500)
        assert total(fitted) == pytest.approx(expected, rel=5 * (2 / 500) ** 0.5)
        assert total(fitted) != pytest.approx(expected, rel=1e-6)
        again = EKFAC.fit(problem, fisher_type="mc", num_samples=1, seed=1)
        same = EKFAC.fit(problem, fisher_type="mc", num_samples=1, seed=1)
        other = EKFAC.fit(problem, fisher_type="mc", num_samples=1, seed=2)
        assert total(again) == total(same) != total(other)

    def test_a_convolutional_net_has_the_trace_too(self):
        problem = image_problem(
            nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
        )
        expected = float(dense_curvature(problem, GN).trace())
        assert total(EKFAC.fit(problem)) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("fisher_type", ["type-2", "mc"])
    def test_tokens_have_the_trace_too(self, fisher_type):
        problem, _ = tokens()
        names = [n for n, _ in problem.model.named_parameters()]
        sizes = [p.numel() for p in problem.model.parameters()]
        diagonal = dense_curvature(problem, GN).diagonal().split(sizes)
        expected = float(
            sum(d.sum() for n, d in zip(names, diagonal, strict=True) if "embed" not in n)
        )
        fitted = EKFAC.fit(
            problem, fisher_type=fisher_type, other_layers="leave_out",
            num_samples=500 if fisher_type == "mc" else 1,
        )  # fmt: skip
        tolerance = 1e-10 if fisher_type == "type-2" else 5 * (2 / 500) ** 0.5
        assert total(fitted) == pytest.approx(expected, rel=tolerance)
        assert fitted.scores(problem, damping_scale=1.0).shape == (6, 20)

    @pytest.mark.parametrize("movable", [["2.weight"], ["2.bias"], ["0.*", "2.bias"]])
    def test_only_what_is_movable_counts(self, movable):
        problem = classification()
        named = dict(problem.model.named_parameters())
        diagonal = dense_gauss_newton(problem).diagonal().split([p.numel() for p in named.values()])
        globs = tuple(m.rstrip("*") for m in movable)
        expected = float(
            sum(d.sum() for n, d in zip(named, diagonal, strict=True) if n.startswith(globs))
        )
        fitted = EKFAC.fit(problem, movable=movable)
        assert total(fitted) == pytest.approx(expected, rel=1e-10)
        assert fitted.scores(problem, damping=0.1).abs().max() > 0

    @pytest.mark.parametrize("chunk_size", [1, 7])
    def test_chunks_change_nothing(self, chunk_size):
        problem = mlp_problem()
        fitted = EKFAC.fit(problem, chunk_size=chunk_size)
        close(fitted.scores(problem, damping=0.1), scores_of(EKFAC, problem, damping=0.1))


class TestRounding:
    def test_factors_that_float32_does_not_diagonalise_are_taken_in_double(self, monkeypatch):
        # As LAPACK does not where eigenvalues repeat, in layers that are nearly dead.
        x, y = images(12, seed=1)
        with torch.random.fork_rng(devices=[]):
            model = made(nn.Flatten(), nn.Linear(50, 3)).float()
        problem = problem_of(model, train=(x.float(), y), queries=(x[:4].float(), y[:4]))
        expected = scores_of(EKFAC, problem, damping=0.1)
        eigh = torch.linalg.eigh

        def narrow_fails(matrix: Tensor) -> Any:
            if matrix.dtype == torch.float32:
                raise torch.linalg.LinAlgError("the algorithm failed to converge")
            return eigh(matrix)

        monkeypatch.setattr(torch.linalg, "eigh", narrow_fails)
        got = scores_of(EKFAC, problem, damping=0.1)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


class Twice(nn.Module):
    """One layer run twice, one never, one shared, one with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
        self.own, self.head = Doubled(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.own(self.repeated(torch.tanh(self.repeated(x)))))


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))


class TestRefusals:
    @pytest.mark.parametrize(
        ("layers", "reason"),
        [
            ((nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(50, 3)), r"0\.weight \(BatchNorm2d\)"),
            ((nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 3)), "with 2 groups"),
            (
                (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(),
                 nn.Linear(75, 3)),
                "padded by 'circular'",
            ),
        ],
    )  # fmt: skip
    def test_weights_without_factors_are_named_and_left_out_only_on_demand(self, layers, reason):
        problem = image_problem(*layers)
        with pytest.raises(ValueError, match=f"no factors for .*{reason}"):
            scores_of(EKFAC, problem, damping=1.0)
        fitted = EKFAC.fit(problem, other_layers="leave_out")
        head = len(layers) - 1
        assert list(fitted.eigenvalues) == [str(head)]
        close(
            fitted.scores(problem, damping=0.1),
            EKFAC.fit(problem, movable=[f"{head}.*"]).scores(problem, damping=0.1),
        )

    def test_layers_run_twice_or_with_a_forward_of_their_own_are_refused(self):
        with torch.random.fork_rng(devices=[]):
            model = filled(Twice(), scale=0.3)
        problem = problem_of(model, train=labelled(20, seed=1), queries=labelled(5, seed=2))
        with pytest.raises(ValueError, match=r"no factors for 40 of 75 weights") as error:
            EKFAC.fit(problem)
        assert "repeated.weight (Linear called 2 times a pass)" in str(error.value)
        assert "own.weight (Doubled with a forward of its own)" in str(error.value)
        assert "idle" not in str(error.value)  # it never reaches the loss
        assert list(EKFAC.fit(problem, other_layers="leave_out").eigenvalues) == ["head"]

    def test_shared_weights_are_refused(self):
        with torch.random.fork_rng(devices=[]):
            model = filled(Tied())
        problem = bif.Problem(
            model, losses.next_token, train={"input_ids": integers(5, 8, 3, seed=1)},
            queries={"input_ids": integers(5, 2, 3, seed=2)}, tied_weights="share",
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"embed.weight \(shared by embed and head\)"):
            EKFAC.fit(problem)
        fitted = EKFAC.fit(problem, other_layers="leave_out")  # the head's bias alone
        assert {n: tuple(v.shape) for n, v in fitted.eigenvalues.items()} == {"head": (5, 1)}
        assert fitted.scores(problem, damping=1.0).shape == (2, 8)

    def test_a_model_without_a_layer_left_is_refused(self):
        x, qx = images(12, seed=1)[0], images(4, seed=2)[0]
        problem = image_problem(
            nn.BatchNorm2d(2), nn.AvgPool2d(5), nn.Flatten(),
            train=(x, integers(2, 12, seed=3)), queries=(qx, integers(2, 4, seed=4)),
        )  # fmt: skip
        with pytest.raises(ValueError, match="found no Linear or Conv2d layer"):
            EKFAC.fit(problem, other_layers="leave_out")

    def test_choices_that_do_not_exist_are_refused(self):
        problem = classification()
        for given, message in (
            ({"fisher_type": "exact"}, "fisher_type is 'exact': expected one of type-2, mc"),
            ({"other_layers": "ignore"}, "other_layers is 'ignore': expected one of refuse"),
            ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
            ({"movable": ["head.*"]}, "matches no parameter"),
            ({"movable": ["0.weight[0:2]"]}, r"movable has slices of \['0.weight'\]"),
        ):
            with pytest.raises(ValueError, match=message):
                EKFAC.fit(problem, **given)  # type: ignore[arg-type]

    def test_too_many_outputs_for_type_2_are_refused(self, monkeypatch):
        monkeypatch.setattr(fisher_module, "_MAX_OUTPUTS", 2)
        with pytest.raises(ValueError, match="each of 3 outputs of an item, at most 2: use .*'mc'"):
            EKFAC.fit(classification())
        EKFAC.fit(classification(), fisher_type="mc")
        EKFAC.fit(classification(), fisher_type="empirical")

    def test_no_damping_is_refused_where_an_eigenvalue_is_zero(self):
        fitted = EKFAC.fit(mlp_problem())  # 40 items in 65 directions
        with pytest.raises(ValueError, match="layer '0' has eigenvalues from .* damping 0:"):
            fitted.scores(mlp_problem(), damping=0.0)

    def test_both_or_neither_of_the_dampings_are_refused(self):
        fitted = EKFAC.fit(mlp_problem())
        both: dict[str, Any] = {"damping": 1.0, "damping_scale": 1.0}
        for given in ({}, both):
            with pytest.raises(ValueError, match="give either damping .* or damping_scale"):
                fitted.scores(mlp_problem(), **given)

    def test_another_model_than_the_one_fitted_is_refused(self):
        fitted = EKFAC.fit(mlp_problem())
        other = mlp_problem()
        other.model = mlp(seed=5)
        with pytest.raises(ValueError, match="model's weights are not those that were fitted"):
            fitted.scores(other, damping=1.0)


def test_the_model_is_left_as_it_was():
    model = mlp().train()
    before = state_of(model)
    problem = problem_of(
        model,
        train=(normal(8, 64, seed=1), integers(10, 8, seed=2)),
        queries=(normal(2, 64, seed=3), integers(10, 2, seed=4)),
    )
    scores_of(EKFAC, problem, damping=1.0)
    assert_same_state(model, before)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_float32_models_work_and_answer_in_float64():
    problem, exact = mlp_problem(), mlp_problem()
    x, y = problem.train.data
    qx, qy = problem.query_groups["query"].data
    single = problem_of(mlp().float(), train=(x.float(), y), queries=(qx.float(), qy))
    got = scores_of(EKFAC, single, damping=0.1)
    expected = scores_of(EKFAC, exact, damping=0.1)
    assert got.dtype == torch.float64
    # Sums of some thousand float32 terms: a few hundred roundings of 6e-8 of the largest score.
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
