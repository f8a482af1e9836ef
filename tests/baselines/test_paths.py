"""TracIn and SOURCE against dense references, and against training unrolled step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bif
from bif.baselines import (
    EKFAC,
    Checkpoint,
    ExactInfluence,
    Source,
    TracIn,
    gradient_product,
    item_gradients,
    kronecker,
)
from bif.baselines import source as source_module
from bif.problem.checkpoints import at_checkpoint
from rival_problems import (
    GN,
    close,
    damped,
    dense_gauss_newton,
    dense_gradients,
    mlp_problem,
    problem_of,
    regression_problem,
    scores_of,
    tokens,
)
from small_problems import assert_same_state, classification, network, normal, state_of

RATES, STEPS = (0.3, 0.2, 0.1, 0.05), (10, 20, 30, 15)


def path_of(problem: bif.Problem) -> list[Checkpoint]:
    """Four checkpoints around the problem's weights, all different."""
    return [
        Checkpoint(
            {
                name: leaf + 0.2 * normal(*leaf.shape, seed=10 * k + i)
                for i, (name, leaf) in enumerate(problem.center().items())
            },
            RATES[k],
            STEPS[k],
        )
        for k in range(4)
    ]


def gradients_at(problem: bif.Problem, checkpoint: Checkpoint) -> Tensor:
    here = at_checkpoint(problem, checkpoint)
    return dense_gradients(here, here.loss, here.train.data)


def mean_over(checkpoints: list[Checkpoint], values: list[Tensor]) -> Tensor:
    times = [c.learning_rate * c.num_steps for c in checkpoints]
    return sum(t * v for t, v in zip(times, values, strict=True)) / sum(times)  # type: ignore[return-value]


def dense_source(
    problem: bif.Problem,
    segments: list[list[Checkpoint]],
    curvatures: list[Tensor],
    damping: float,
    function: Any = None,
) -> Tensor:
    """SOURCE by matrix exponentials and solves."""
    queries = dense_gradients(problem, function or problem.loss, problem.query_groups["query"].data)
    total = torch.zeros(len(queries), problem.num_train).double()
    for s, checkpoints in enumerate(segments):
        change = mean_over(checkpoints, [gradients_at(problem, c) for c in checkpoints]).T
        for later, matrix in list(enumerate(curvatures))[s:]:
            matrix = damped(matrix, damping)
            time = sum(c.learning_rate * c.num_steps for c in segments[later])
            left = torch.linalg.matrix_exp(-time * matrix)
            if later == s:
                change = torch.linalg.solve(matrix, change - left @ change)
            else:
                change = left @ change
        total -= queries @ change
    return total


class TestTracIn:
    @pytest.mark.parametrize("observable", ["loss", "margin"])
    def test_scores_are_the_sum_of_weighted_gradient_products(self, observable):
        problem = classification()
        function = {o.name: o.function for o in problem.observables}[observable]
        expected = torch.zeros(5, 20).double()
        for checkpoint in path_of(problem):
            here = at_checkpoint(problem, checkpoint)
            queries = dense_gradients(here, function, problem.query_groups["query"].data)
            rate = checkpoint.learning_rate * checkpoint.num_steps
            expected -= rate * queries @ gradients_at(problem, checkpoint).T
        fitted = TracIn.fit(problem, path_of(problem))
        close(fitted.scores(problem, observable=observable), expected)

    def test_one_checkpoint_at_the_end_is_the_gradient_product(self):
        problem = classification()
        here = Checkpoint(problem.center(), 0.5, 4)
        close(TracIn.fit(problem, [here]).scores(problem), 2 * gradient_product(problem))


class TestSource:
    @pytest.mark.parametrize("num_segments", [1, 2, 3, 4])
    @pytest.mark.parametrize("weights", [None, normal(20, seed=4).exp()], ids=["plain", "weighted"])
    def test_the_gauss_newton_matrix_gives_the_dense_formula(self, num_segments, weights):
        problem = classification(train_weights=weights)
        checkpoints = path_of(problem)
        cuts = {1: [4], 2: [2, 2], 3: [2, 1, 1], 4: [1, 1, 1, 1]}[num_segments]
        segments = [list(part) for part in _split(checkpoints, cuts)]
        curvatures = [
            mean_over(own, [dense_gauss_newton(at_checkpoint(problem, c)) for c in own])
            for own in segments
        ]
        fitted = Source.fit(problem, checkpoints, num_segments=num_segments, curvature=GN)
        for name, function in (("loss", problem.loss), ("margin", bif.MARGIN.function)):
            got = fitted.scores(problem, damping=0.01, observable=name)
            close(got, dense_source(problem, segments, curvatures, 0.01, function))

    @pytest.mark.parametrize("mutant", ["kept", "gained", "order"])
    def test_a_wrong_function_or_order_is_noticed(self, monkeypatch, mutant):
        true = {name: getattr(source_module, f"_{name}") for name in ("kept", "gained")}
        if mutant == "order":
            monkeypatch.setattr(source_module, "reversed", tuple, raising=False)
        else:
            halved = lambda *args, duration, **kw: true[mutant](*args, duration=duration / 2, **kw)  # noqa: E731
            monkeypatch.setattr(source_module, f"_{mutant}", halved)
        with pytest.raises(AssertionError):
            self.test_the_gauss_newton_matrix_gives_the_dense_formula(2, None)

    def test_every_step_a_segment_is_training_unrolled(self):
        # Gradient descent on a quadratic.  A step's eigenvalues are x = rate · curvature at most:
        # F is off by x/2 of itself, and each later S by x²/2.
        problem, x, _, _ = regression_problem()
        y = problem.train.data[1]
        matrix = x.T @ x / len(x)
        largest = float(torch.linalg.eigvalsh(matrix)[-1])
        num_steps, rate = 60, 0.02 / largest
        weight = torch.zeros(1, 4).double()
        change, size = torch.zeros(4, len(x)).double(), torch.zeros(len(x)).double()
        checkpoints = []
        for _ in range(num_steps):
            checkpoints.append(Checkpoint({"weight": weight.clone()}, rate, 1))
            gradients = -((y - x @ weight.T) * x).T
            change = change - rate * matrix @ change - rate * gradients
            size += rate * gradients.norm(dim=0)
            weight = weight + rate * -gradients.mean(dim=1, keepdim=True).T
        end = at_checkpoint(problem, Checkpoint({"weight": weight}, rate, 1))
        queries = dense_gradients(end, end.loss, end.query_groups["query"].data)
        for curvature in (GN, "ekfac"):
            if curvature == "ekfac":
                pytest.importorskip("curvlinops")
            fitted = Source.fit(end, checkpoints, num_segments=num_steps, curvature=curvature)
            error = (fitted.scores(end) - queries @ change).abs()
            x_max = rate * largest
            bound = (x_max / 2 + num_steps * x_max**2 / 2) * queries.norm(dim=1)[:, None] * size
            assert (error <= bound).all() and float((queries @ change).abs().max()) > 0.05

    def test_one_long_segment_at_the_end_is_classical_influence(self):
        problem = classification()
        here = Checkpoint(problem.center(), 1.0, 100_000)
        fitted = Source.fit(problem, [here], num_segments=1, curvature=GN)
        exact = scores_of(ExactInfluence, problem, damping=0.01, curvature=GN)
        close(fitted.scores(problem, damping=0.01), exact)

    def test_one_short_segment_at_the_end_is_the_gradient_product(self):
        problem = classification()
        here = Checkpoint(problem.center(), 1e-10, 1)
        fitted = Source.fit(problem, [here], num_segments=1, curvature=GN)
        # Directions without curvature: 0/0 becomes the duration.
        close(1e10 * fitted.scores(problem), gradient_product(problem))

    def test_directions_without_curvature_add_up_for_the_whole_duration(self):
        values = torch.tensor([0.0, 1e-14, 2.0]).double()
        got = source_module._gained(values, damping=0.0, duration=3.0)
        assert got.tolist() == pytest.approx([3.0, 3.0, (1 - math.exp(-6.0)) / 2], rel=1e-13)


def _split(checkpoints: list[Checkpoint], sizes: list[int]) -> list[list[Checkpoint]]:
    found, start = [], 0
    for size in sizes:
        found.append(checkpoints[start : start + size])
        start += size
    return found


class TestMeanEKFAC:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")

    def test_ekfac_gives_the_dense_formula_of_its_own_matrices(self):
        problem = classification()
        checkpoints = path_of(problem)
        segments = _split(checkpoints, [2, 2])
        eye = torch.eye(43).double()
        curvatures = [
            EKFAC.fit(problem, checkpoints=own).apply_function(eye, lambda values: values)
            for own in segments
        ]
        got = Source.fit(problem, checkpoints, num_segments=2).scores(problem, damping=0.01)
        close(got, dense_source(problem, segments, curvatures, 0.01))

    def test_the_mean_over_checkpoints_is_the_mean_matrix_in_the_basis_of_mean_factors(self):
        problem = mlp_problem()
        checkpoints = path_of(problem)[:2]
        fitted = EKFAC.fit(problem, checkpoints=checkpoints)
        eye = torch.eye(1210).double()
        got = fitted.apply_function(eye, lambda values: values)
        mean = mean_over(
            checkpoints, [dense_gauss_newton(at_checkpoint(problem, c)) for c in checkpoints]
        )
        _assert_diagonal_in_a_kronecker_basis(got, mean, problem, checkpoints)

    @pytest.mark.parametrize("mutant", ["factors", "eigenvalues"])
    def test_a_mean_of_the_first_checkpoint_alone_is_noticed(self, monkeypatch, mutant):
        true = kronecker.mean_of

        def first_alone(leaves: Any, shares: Any) -> Tensor:
            square = leaves[0].shape[0] == leaves[0].shape[1]
            chosen = square == (mutant == "factors")
            return leaves[0] if chosen else true(leaves, shares)

        monkeypatch.setattr(kronecker, "mean_of", first_alone)
        with pytest.raises(AssertionError):
            self.test_the_mean_over_checkpoints_is_the_mean_matrix_in_the_basis_of_mean_factors()

    def test_the_mean_over_one_checkpoint_at_the_end_is_ekfac_itself(self):
        problem = mlp_problem()
        here = [Checkpoint(problem.center(), 0.1, 3)]
        plain = scores_of(EKFAC, problem, damping=0.05)
        close(EKFAC.fit(problem, checkpoints=here).scores(problem, damping=0.05), plain)

    def test_weights_without_factors_have_their_mean_diagonal(self):
        problem, _ = tokens()
        checkpoints = path_of(problem)[:2]
        fitted = EKFAC.fit(
            problem, checkpoints=checkpoints, fisher_type="mc", other_layers="diagonal"
        )
        squares = []
        for checkpoint in checkpoints:
            here = at_checkpoint(problem, checkpoint)
            squares.append(item_gradients(here, here.loss, here.train).square().mean(dim=0)[:15])
        close(fitted.eigenvalues["weights without factors"], mean_over(checkpoints, squares))
        source = Source.fit(
            problem, checkpoints, num_segments=1, fisher_type="mc", other_layers="diagonal"
        )
        assert source.scores(problem).isfinite().all()

    def test_functions_of_one_weights_curvature_are_the_solve(self):
        problem = mlp_problem()
        fitted = EKFAC.fit(problem)
        rows = normal(3, 1210, seed=5)
        close(
            fitted.apply_function(rows, lambda values: 1 / (values + 0.05)),
            fitted.apply_inverse(rows, 0.05),
        )


def _assert_diagonal_in_a_kronecker_basis(
    got: Tensor, mean: Tensor, problem: bif.Problem, checkpoints: list[Checkpoint]
) -> None:
    """Each layer's block is `U diag(Uᵀ mean U) Uᵀ`, U = Q_G ⊗ Q_A of the mean moments."""
    start = 0
    moments = [_moments(at_checkpoint(problem, c)) for c in checkpoints]
    for layer, (width, out) in enumerate(((64, 16), (16, 10))):
        q_a, q_g = (
            torch.linalg.eigh(mean_over(checkpoints, [m[layer][side] for m in moments]))[1]
            for side in (0, 1)
        )
        # Rows of gradients hold the weight `[out, width]`, then the bias `[out]`.
        basis = torch.einsum("oj,wi->owji", q_g, q_a)
        weight, bias = basis[:, :width], basis[:, width]
        basis = torch.cat([weight.flatten(0, 1), bias]).flatten(1)
        part = slice(start, start + out * (width + 1))
        values = (basis * (mean[part, part] @ basis)).sum(dim=0)
        close(got[part, part], basis * values @ basis.T)
        start = part.stop
    assert start == len(got)


def _moments(problem: bif.Problem) -> list[tuple[Tensor, Tensor]]:
    """Second moments of each layer's inputs, with a 1, and of its rooted output gradients."""
    first, second = problem.model[0], problem.model[2]  # type: ignore[index]
    x = problem.train.data[0]
    hidden = torch.tanh(first(x)).detach()
    p = second(hidden).softmax(dim=1).detach()
    root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    back = (second.weight.detach().T @ root) * (1 - hidden.square()).unsqueeze(2)
    ones = torch.ones(len(x), 1).double()
    found = []
    for inputs, outputs in ((x, back), (hidden, root)):
        inputs = torch.cat([inputs, ones], dim=1)
        found.append((inputs.T @ inputs, torch.einsum("nic,njc->ij", outputs, outputs)))
    return found


METHODS = {
    "tracin": lambda problem, path: TracIn.fit(problem, path),
    "source": lambda problem, path: Source.fit(problem, path, num_segments=1, curvature=GN),
}


@pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
class TestBadInput:
    def test_no_checkpoint_is_refused(self, fit):
        with pytest.raises(ValueError, match="checkpoints is empty"):
            fit(classification(), [])

    def test_a_state_dict_alone_is_refused(self, fit):
        problem = classification()
        with pytest.raises(TypeError, match="checkpoint 0 is a OrderedDict; expected Checkpoint"):
            fit(problem, [problem.model.state_dict()])

    def test_weights_of_another_model_are_refused_by_number(self, fit):
        problem = classification()
        fine = Checkpoint(problem.center(), 0.1, 1)
        other = Checkpoint(mlp_problem().center(), 0.1, 1)
        with pytest.raises(ValueError, match="checkpoint 1: the checkpoint has other shapes"):
            fit(problem, [fine, other])

    def test_another_model_is_refused_when_asked(self, fit):
        problem = classification()
        fitted = fit(problem, path_of(problem))
        with pytest.raises(ValueError, match="model's weights are not those"):
            fitted.scores(classification(model=network(seed=1)))

    def test_an_unknown_observable_is_refused(self, fit):
        problem = classification()
        with pytest.raises(KeyError, match="nothing"):
            fit(problem, path_of(problem)).scores(problem, observable="nothing")

    def test_the_model_is_left_as_it_is(self, fit):
        problem = classification()
        before = state_of(problem.model)
        fit(problem, path_of(problem)).scores(problem)
        assert_same_state(problem.model, before)


class TestCheckpoints:
    @pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
    def test_a_learning_rate_that_is_not_positive_is_refused(self, rate):
        with pytest.raises(ValueError, match="expected a positive number"):
            Checkpoint({}, rate, 1)

    def test_no_step_is_refused(self):
        with pytest.raises(ValueError, match="num_steps is 0"):
            Checkpoint({}, 0.1, 0)

    def test_frozen_parameters_may_be_left_out_and_buffers_given(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5),
                                    torch.nn.Linear(5, 3)).double()  # fmt: skip
        model[0].requires_grad_(False)
        problem = problem_of(
            model.eval(), train=classification().train, queries=classification().train
        )
        state = {n: x for n, x in model.state_dict().items() if not n.startswith("0.")}
        changed = state | {"1.running_mean": torch.ones(5).double()}
        here = at_checkpoint(problem, Checkpoint(changed, 0.1, 1))
        assert torch.equal(here.model.state_dict()["1.running_mean"], torch.ones(5).double())
        assert torch.equal(here.parameters()["0.weight"], problem.parameters()["0.weight"])
        assert torch.equal(model.state_dict()["1.running_mean"], torch.zeros(5).double())


class TestSettings:
    @pytest.mark.parametrize("number", [0, 5])
    def test_as_many_segments_as_fit_are_asked_for(self, number):
        problem = classification()
        with pytest.raises(ValueError, match=f"num_segments is {number}; expected 1 to 4"):
            Source.fit(problem, path_of(problem), num_segments=number)

    def test_another_curvature_is_refused(self):
        problem = classification()
        with pytest.raises(ValueError, match="hessian"):
            Source.fit(problem, path_of(problem), curvature="hessian")  # type: ignore[arg-type]

    def test_a_negative_damping_is_refused(self):
        problem = classification()
        fitted = Source.fit(problem, path_of(problem), curvature=GN)
        with pytest.raises(ValueError, match="damping must be a finite number"):
            fitted.scores(problem, damping=-0.1)
