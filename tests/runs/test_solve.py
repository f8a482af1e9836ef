"""The response by solving: exact where it must be, honest where it stops."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bif
from bif import store
from bif.calibration import tune_solver
from bif.calibration.peak_memory import PeakBytes
from bif.calibration.solving import calibrate_solver
from bif.curvature.derivatives import Derivatives
from bif.curvature.krylov import KrylovSpace
from bif.curvature.passes import AlongDirections, GaussNewtonPass
from bif.curvature.products import CurvatureProduct, split_rows
from bif.curvature.rows import RowsTogether
from bif.curvature.solve import conjugate_gradients
from bif.language.linear_loss import chunked_next_token
from bif.linear_response import solver, vectors
from bif.linear_response.column_gradients import train_gradients
from bif.linear_response.request import Request
from bif.linear_response.solver import Solver
from bif.linear_response.vectors import Vectors
from bif.response import respond
from bif.sampling.item_gradients import NotVmapped, item_gradients
from bif.sampling.posterior import LocalPosterior
from command_line import failed
from language_cases import model
from rival_problems import (
    GN,
    damped,
    dense_gauss_newton,
    dense_hessian,
    dense_scores,
    mlp_problem,
    tokens,
)
from small_problems import TINY, classification, filled, integers, labelled, network, normal
from token_problems import problem as token_problem

TIGHT = bif.Settings(estimator="response", nbeta=20.0, gamma=2.0, solver_residual=1e-10)
RHO = normal(20, seed=4).exp()


def scores(problem: bif.Problem, settings: bif.Settings = TIGHT) -> np.ndarray:
    return bif.attribute(problem, settings).influence.dataset["influence"].values


def rows_that_fit(monkeypatch: pytest.MonkeyPatch, count: float, *, num_weights: int = 43) -> None:
    """Let the host have memory for so many queries of a float64 model, and as much beside them."""
    monkeypatch.setattr(
        vectors, "free_bytes", lambda device: int(2 * count * vectors.VECTORS * 8 * num_weights)
    )


def symmetric(size: int, *, seed: int) -> Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.T / size


def normalised() -> nn.Module:
    """A network with an affine LayerNorm: 53 weights."""
    layers = nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)
    return filled(nn.Sequential(*layers))


class TestExact:
    @pytest.mark.parametrize("curvature", [GN, "hessian"])
    @pytest.mark.parametrize("rho", [None, RHO], ids=["unweighted", "weighted"])
    @pytest.mark.parametrize("make", [network, normalised], ids=["plain", "normalised"])
    def test_scores_are_those_of_the_dense_solve(self, curvature, rho, make):
        problem = classification(train_weights=rho, model=make())
        dense = dense_gauss_newton if curvature == GN else dense_hessian
        damping = 0.1 if curvature == GN else 1.0
        settings = replace(TIGHT, gamma=20 * damping, solver_curvature=curvature)
        matrix = damped(dense(problem), damping)
        for a, observable in enumerate(problem.observables):
            expected = dense_scores(problem, matrix, observable.function) / 20
            got = scores(problem, settings)[a]
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)

    def test_weight_decay_adds_to_the_damping(self):
        with_decay = scores(classification(), replace(TIGHT, gamma=1.0, weight_decay=0.05))
        np.testing.assert_allclose(with_decay, scores(classification()), rtol=1e-6, atol=1e-7)

    def test_weights_that_stay_are_left_out(self):
        problem = classification()
        settings = replace(TIGHT, movable=("0.weight[0:2]",))
        flat = torch.cat(
            [torch.full((x.numel(),), n == "0.weight") for n, x in problem.center().items()]
        )
        rows = torch.zeros_like(flat)
        rows[: 2 * 4] = True  # the first two rows of four inputs
        keep = (flat & rows).nonzero().flatten()
        matrix = dense_gauss_newton(problem)[keep][:, keep]
        g = {
            "train": item_gradients(problem, problem.loss, problem.train)[:, keep],
            "query": item_gradients(problem, problem.loss, problem.query_groups["query"])[:, keep],
        }
        expected = -g["query"] @ torch.linalg.solve(damped(matrix, 0.1), g["train"].T) / 20
        np.testing.assert_allclose(scores(problem, settings)[0], expected, rtol=2e-6, atol=1e-7)

    def test_candidates_and_groups_of_queries_have_columns_and_rows(self):
        queries = {"a": labelled(2, seed=2), "b": labelled(3, seed=4)}
        problem = classification(queries=queries, candidates=labelled(4, seed=6))
        dataset = bif.attribute(problem, TIGHT).influence.dataset
        assert dataset["influence"].shape == (2, 5, 24)
        alone = bif.attribute(classification(queries=queries["b"]), TIGHT).influence.dataset
        np.testing.assert_allclose(
            dataset["influence"].values[:, 2:, :20], alone["influence"].values, rtol=1e-5, atol=1e-8
        )

    @pytest.mark.parametrize("size", [1, 2])
    def test_blocks_of_queries_change_nothing(self, monkeypatch, size):
        whole = scores(mlp_problem())
        rows_that_fit(monkeypatch, size, num_weights=1210)
        monkeypatch.setattr("bif.calibration.solving._DIRECTIONS", 2)
        np.testing.assert_allclose(scores(mlp_problem()), whole, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("metric", [None, "given"])
    def test_items_gradients_and_derivatives_along_solutions_give_the_same_scores(
        self, monkeypatch, metric
    ):
        problem = mlp_problem()
        problem = problem.extended(candidates={"more": problem.train.take(torch.arange(3))})
        if metric:
            center = problem.center()
            problem = problem.with_metric({n: 1 + leaf.abs() for n, leaf in center.items()})
        settings = replace(TIGHT, movable=("0.weight[0:2]", "*bias"))
        called = []
        whole = solver.products_with_gradients
        monkeypatch.setattr(
            solver, "products_with_gradients", lambda *a, **k: called.append(1) or whole(*a, **k)
        )
        found = scores(problem, settings)
        assert called and found.shape[-1] == 43
        monkeypatch.setattr(solver, "_MANY_ROWS", 10**9)
        np.testing.assert_allclose(scores(problem, settings), found, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("refusal", [NotVmapped(), torch.OutOfMemoryError()])
    def test_where_gradients_of_items_are_refused_derivatives_serve(self, monkeypatch, refusal):
        expected = scores(mlp_problem())

        def refused(*given: Any, **named: Any) -> None:
            raise refusal

        monkeypatch.setattr(solver, "products_with_gradients", refused)
        np.testing.assert_allclose(scores(mlp_problem()), expected, rtol=1e-6, atol=1e-9)

    def test_scores_of_tokens_add_up_to_those_of_items(self):
        settings = TIGHT
        by_token = bif.attribute(token_problem(), settings).influence.by_item().dataset
        by_item = bif.attribute(token_problem(tokens=None), settings).influence.dataset
        # Of items whose masks leave out no token with a loss.
        np.testing.assert_allclose(
            by_token["influence"].values, by_item["influence"].values, rtol=1e-5, atol=1e-8
        )

    @pytest.mark.parametrize("curvature", [GN, "hessian"])
    def test_self_influence_is_that_of_the_dense_solve(self, curvature):
        """Of train items and candidates alike."""
        candidates = labelled(4, seed=6)
        problem = classification(train_weights=RHO, candidates=candidates)
        dense = dense_gauss_newton if curvature == GN else dense_hessian
        matrix = damped(dense(problem), 1.0)
        settings = replace(TIGHT, gamma=20.0, solver_curvature=curvature, self_influence=True)
        rows = [item_gradients(problem, problem.loss, x) for x in problem.scored_groups.values()]
        g = torch.cat(rows)
        expected = -(g * torch.linalg.solve(matrix, g.T).T).sum(dim=1) / 20
        run = bif.attribute(problem, settings)
        assert run.influence.self_influence().dims == ("train",) and len(expected) == 24
        np.testing.assert_allclose(run.influence.self_influence(), expected, rtol=2e-6, atol=1e-7)
        np.testing.assert_array_equal(
            run.influence.dataset["influence"],
            scores(problem, replace(settings, self_influence=False)),
        )

    def test_self_influence_is_the_score_of_an_item_that_is_its_own_query(self):
        problem = classification(queries=labelled(20, seed=1))
        run = bif.attribute(problem, replace(TIGHT, self_influence=True))
        on_itself = np.diagonal(run.influence.dataset["influence"].values[0])
        np.testing.assert_allclose(run.influence.self_influence(), on_itself, rtol=1e-5, atol=1e-9)

    def test_self_influence_of_tokens_is_their_own(self):
        problem = token_problem()
        run = bif.attribute(problem, replace(TIGHT, self_influence=True))
        found = run.influence.self_influence().values
        gradients = train_gradients(
            problem, range(problem.num_scored),
            LocalPosterior(problem.center(), 1.0, 1.0, dict.fromkeys(problem.trainable, True)),
        )  # fmt: skip
        product = CurvatureProduct(problem)(torch.eye(gradients.shape[1]).to(gradients))
        solved = torch.linalg.solve(damped(product, 0.1), gradients.T).T
        expected = -(gradients * solved).sum(dim=1) / 20
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
        assert len(found) == problem.num_scored > len(problem.train)

    def test_self_influence_comes_in_blocks_with_errors_that_cover_it(self, monkeypatch):
        asked = replace(TIGHT, gamma=0.2, self_influence=True)
        exact = bif.attribute(mlp_problem(), asked).influence.self_influence()
        rows_that_fit(monkeypatch, 7, num_weights=1210)
        run = bif.attribute(mlp_problem(), replace(asked, solver_residual=0.05))
        error = run.influence.dataset["self_influence_standard_error"]
        gap = abs(run.influence.self_influence() - exact)
        assert (gap <= 3 * error).mean() > 0.95 and float((gap / abs(exact)).max()) > 1e-5
        assert run.diagnostics["self_influence_residual"].max() <= 0.05

    def test_self_influence_that_was_not_solved_for_is_refused_with_what_to_do(self):
        run = bif.attribute(classification(), TIGHT)
        assert run.influence.dataset["self_influence"].isnull().all()
        with pytest.raises(ValueError, match="a linear system an item: .*self_influence=True"):
            run.influence.self_influence()
        with pytest.raises(ValueError, match="self_influence has no use with estimator='cov"):
            bif.Settings(estimator="covariance", self_influence=True)

    def test_losses_in_chunks_of_logits_are_solved_for_in_their_plain_form(self):
        pytest.importorskip("transformers", reason="the extra `lm` is not installed")
        items = {"input_ids": integers(330, 6, 10, seed=1)}
        settings = replace(TIGHT, gamma=200.0, solver_residual=1e-6)
        plain, chunked = (
            scores(bif.Problem(model("neox"), loss, train=items, queries=items), settings)
            for loss in (bif.losses.next_token, chunked_next_token)
        )
        np.testing.assert_allclose(chunked, plain, rtol=1e-9)

    def test_errors_of_sums_are_the_sums_of_errors(self):
        influence = bif.attribute(classification(), replace(TIGHT, solver_residual=0.05)).influence
        names = ["a" if i < 5 else "b" for i in range(20)]
        error = influence.sum_over(names).dataset["standard_error"].values[..., 0]
        expected = influence.dataset["standard_error"].values[..., :5].sum(axis=-1)
        np.testing.assert_allclose(error, expected, rtol=1e-6)
        assert (error > 0).all()

    def test_they_are_the_response_by_descent_within_its_error(self):
        problem = classification()
        solved = scores(problem)[0]
        settings = bif.Settings(nbeta=20.0, gamma=2.0)
        descended = respond(problem, settings, temperature=0.0, curvature=GN, h=1e-3)
        np.testing.assert_allclose(descended.scores, solved, rtol=0.02, atol=2e-3)


class TestProducts:
    @pytest.mark.parametrize("curvature", [GN, "hessian"])
    @pytest.mark.parametrize("forward", [True, False], ids=["forward", "twice backward"])
    @pytest.mark.parametrize("few_sizes", [True, False], ids=["padded", "as they come"])
    def test_products_are_those_of_the_dense_matrix(self, curvature, forward, few_sizes):
        problem = tokens(RHO)[0] if curvature == GN else mlp_problem()
        product = CurvatureProduct(problem, curvature, chunk_size=7, num_together=3)
        product._together = RowsTogether(4, few_sizes=few_sizes)
        if isinstance(made_pass := product._pass._function, GaussNewtonPass):
            made_pass._along.forward = forward
        rows = normal(5, product.num_weights, seed=3)
        whole = CurvatureProduct(problem, curvature)(torch.eye(product.num_weights).double())
        torch.testing.assert_close(product(rows), rows @ whole, rtol=1e-10, atol=1e-12)
        assert product.num_products == 5

    def test_the_hessian_needs_no_forward_derivative_of_a_backward_pass(self):
        model = filled(nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 3)))
        problem = classification(model=model)
        names, leaves = zip(*problem.center().items(), strict=True)

        def loss(*params: Tensor) -> Tensor:
            out = functional_call(
                model, dict(zip(names, params, strict=True)), problem.train.data[0]
            )
            return nn.functional.cross_entropy(out, problem.train.data[1])

        blocks = torch.autograd.functional.hessian(loss, leaves)
        sizes = [x.numel() for x in leaves]
        rows = [
            torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], dim=1)
            for row, n in zip(blocks, sizes, strict=True)
        ]
        dense = torch.cat(rows)
        got = CurvatureProduct(problem, "hessian")(torch.eye(len(dense)).double())
        torch.testing.assert_close(got, dense, rtol=1e-9, atol=1e-11)

    def test_a_subset_of_the_items_has_their_own_curvature(self):
        problem, places = mlp_problem(), torch.tensor([3, 1, 7])
        part = copy(problem)
        part.train = bif.Items(problem.train.take(places))
        rows = normal(2, 1210, seed=3)
        got = CurvatureProduct(problem, items=places)(rows)
        torch.testing.assert_close(got, CurvatureProduct(part)(rows), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("curvature", [GN, "hessian"])
    def test_each_row_may_have_weights_of_the_items_of_its_own(self, curvature):
        problem, rows = mlp_problem(), normal(3, 1210, seed=3)
        weights = normal(3, problem.num_train, seed=4).exp()
        product = CurvatureProduct(problem, curvature, chunk_size=7, num_together=2)
        got = product(rows, weights)
        items = torch.arange(problem.num_train)
        of_items = [CurvatureProduct(problem, curvature, items=i)(rows) for i in items.split(1)]
        expected = torch.einsum("ki,ikp->kp", weights, torch.stack(of_items)) / len(items)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)

    def test_how_the_loss_curves_in_the_outputs_is_found_once_a_chunk(self, monkeypatch):
        product, found = CurvatureProduct(mlp_problem(), chunk_size=7), []
        assert product._split is not None
        root = product._split.root
        monkeypatch.setattr(product._split, "root", lambda batch: found.append(1) or root(batch))
        rows = normal(3, 1210, seed=3)
        first = product(rows)
        torch.testing.assert_close(product(rows), first, rtol=0, atol=0)
        assert len(found) == -(-mlp_problem().num_train // 7)

    def test_models_that_vmap_refuses_are_multiplied_row_by_row(self):
        class Refuses(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                out = self.inner(x)
                return out * (1.0 if out.sum().item() == out.sum().item() else 2.0)

        model = filled(Refuses())
        plain = classification(model=model.inner)
        refused = classification(model=model)
        np.testing.assert_allclose(scores(refused), scores(plain), rtol=1e-5, atol=1e-8)

    def test_derivatives_along_directions_are_products_with_gradients(self):
        problem = classification()
        directions = normal(3, 43, seed=5)
        oracle = Derivatives(problem, num_together=2)
        leaves = split_rows(directions, problem.center())
        got = oracle.values(problem.loss, leaves, problem.train.first(20))
        expected = directions @ item_gradients(problem, problem.loss, problem.train).T
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


class TestSolver:
    matrix, right = symmetric(20, seed=1), normal(3, 20, seed=2)

    def solved(self, damping: float, steps: int, **given: Any):
        return conjugate_gradients(
            lambda x: x @ self.matrix, self.right, damping=damping, tolerance=0.0,
            max_steps=steps, **given,
        )  # fmt: skip

    @pytest.mark.parametrize("damping", [0.1, 1.0])
    @pytest.mark.parametrize("steps", [1, 4, 8])
    def test_one_recursion_gives_every_damping_and_number_of_steps(self, damping, steps):
        space = KrylovSpace(lambda x: x @ self.matrix, self.right, steps=8)
        weights = space.coefficients(damping=damping, steps=steps)
        got = torch.einsum("ks,skp->kp", weights, space.basis[:steps])
        torch.testing.assert_close(got, self.solved(damping, steps).value, rtol=1e-9, atol=1e-11)

    def test_what_a_damping_leaves_is_that_of_the_dense_inverse(self):
        eye = torch.eye(20).double()

        def response(damping: float) -> Tensor:
            return (
                self.right * torch.linalg.solve(self.matrix + damping * eye, self.right.T).T
            ).sum(1)

        found = conjugate_gradients(
            lambda x: x @ self.matrix, self.right, damping=0.5, tolerance=1e-12, max_steps=60
        )
        expected = response(0.5) / response(0.05)
        torch.testing.assert_close(found.kept(-0.45), expected, rtol=1e-6, atol=0)

    def test_a_preconditioner_that_is_the_inverse_needs_one_step(self):
        inverse = torch.linalg.inv(self.matrix + torch.eye(20))
        found = self.solved(1.0, 1, precondition=lambda x: x @ inverse)
        assert float(found.residuals.max()) < 1e-10


class TestMemory:
    def test_conjugate_gradients_hold_as_many_vectors_as_are_forecast(self):
        along, right = torch.linspace(0, 1, 4000).double(), normal(12, 4000, seed=1)
        right[::4, 100:] = 0  # these are solved sooner

        def product(rows: Tensor) -> Tensor:
            total = torch.zeros_like(rows)
            for part, row in zip(total, rows, strict=True):
                part += row * along
            return total

        with PeakBytes() as counter:
            conjugate_gradients(product, right, damping=0.01, tolerance=1e-2, max_steps=200)
        assert vectors.VECTORS - 1 < 1 + counter.peak / right.nbytes <= vectors.VECTORS
        with PeakBytes() as counter:
            KrylovSpace(product, right, steps=max(tune_solver.STEPS))
        held = max(tune_solver.STEPS) + tune_solver._BESIDE
        assert held - 1 < 1 + counter.peak / right.nbytes <= held + 0.1  # numbers of a row, too

    @pytest.mark.parametrize("num_rows", [1, 3, 100])
    def test_candidates_of_tuning_have_the_scores_of_solves_in_whatever_blocks(self, num_rows):
        settings = replace(TIGHT, gamma=0.6, solver_residual=None, solver_steps=4)
        found = calibrate_solver(mlp_problem(), replace(settings, gamma=2.0))
        made = Solver(
            mlp_problem(), found.settings, num_together=8, vectors=Vectors(1, 1, num_rows)
        )
        candidate = tune_solver._Scored(made, "margin", 10).at(0.6 / 20, 4)
        expected = scores(mlp_problem(), settings)[1]
        np.testing.assert_allclose(candidate, expected, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize(("foretold_by", "numbers"), [(2, {2, 8}), (24, {2, 8, 20, 40})])
    def test_tuning_goes_on_to_more_steps_where_the_most_were_best(
        self, monkeypatch, foretold_by, numbers
    ):
        settings = replace(TIGHT, gamma=0.02, solver_residual=None, solver_steps=foretold_by)
        masks = np.random.default_rng(0).permuted(np.tile(np.arange(40) < 20, (12, 1)), axis=1)
        outcomes = {"loss": (masks @ scores(mlp_problem(), settings)[0].T)[None]}
        part: Any = SimpleNamespace(masks=masks, outcomes=outcomes)
        monkeypatch.setattr(tune_solver, "STEPS", (2, 8))
        monkeypatch.setattr(tune_solver, "FACTORS", (0.01, 1.0))
        found = tune_solver.tune_solver(mlp_problem(), replace(TIGHT, gamma=2.0), [part])
        assert {t.steps for t in found.tried} == numbers
        assert found.settings.solver_steps in ({2} if foretold_by == 2 else {20, 40})

    def test_what_a_step_only_adds_to_stays_on_the_host_where_the_device_has_no_room(
        self, monkeypatch
    ):
        rows_that_fit(monkeypatch, 2)
        monkeypatch.setattr(vectors, "run_device", lambda *_: torch.device("cuda"))
        monkeypatch.setattr(vectors, "memory_of_host", lambda: 10**9)
        found = vectors.forecast_vectors(classification(), TIGHT)
        assert (found.num_rows, found.on_host) == (2, False)  # the host would take long
        rows_that_fit(monkeypatch, 0.6)
        found = vectors.forecast_vectors(classification(), TIGHT)
        assert (found.num_rows, found.on_host) == (1, True)
        assert "5 of them on the host" in found.in_words()
        monkeypatch.setattr(vectors, "free_bytes", lambda device: 1000)
        with pytest.raises(ValueError, match="has 5 vectors of 43 weights there.* free on cuda"):
            vectors.forecast_vectors(classification(), TIGHT)

    def test_solutions_wait_where_a_gpu_holds_few_rows_and_are_scored_in_one_pass(
        self, monkeypatch
    ):
        settings = replace(TIGHT, solver_items=20, gradient_precision="bfloat16")
        monkeypatch.setattr(vectors, "run_device", lambda *_: torch.device("cuda"))
        monkeypatch.setattr(vectors, "free_bytes", lambda device: 2 * 10 * 8 * 43)
        found = vectors.forecast_vectors(classification(), settings)
        assert (found.num_rows, found.num_scored) == (1, 5)
        assert "and the solutions of 5 are scored together" in found.in_words()
        monkeypatch.setattr(vectors, "free_bytes", lambda device: 10 * 2 * 10 * 8 * 43)
        assert vectors.forecast_vectors(classification(), settings).num_scored == 0

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_solutions_that_wait_have_the_scores_of_those_that_do_not(self, precision):
        def solved(num_scored: int) -> tuple[list[Any], dict[str, Tensor]]:
            settings = replace(
                TIGHT, gamma=2.0, solver_items=20, solver_steps=12, solver_residual=None,
                gradient_precision=precision,
            )  # fmt: skip
            found = calibrate_solver(mlp_problem(), settings)
            some = Vectors(1, 1, 2, num_scored=num_scored)
            made = Solver(mlp_problem(), found.settings, num_together=8, vectors=some)
            parts = [made.solve(*block) for block in made.blocks()]
            return made.blocks(), {n: torch.cat([p[n] for p in parts]) for n in parts[0]}

        (few, alone), (blocks, together) = solved(0), solved(5)
        assert [len(columns) for _, columns in blocks[:2]] == [5, 1] and len(few[0][1]) == 2
        for name in ("residual", "steps", "kept"):
            torch.testing.assert_close(together[name], alone[name])
        limit = 2.0**-8 if precision == "bfloat16" else 1e-6  # the rows that wait are narrow
        for name in ("scores", "change", "sampling"):
            gap = (together[name] - alone[name]).nan_to_num(0).double()
            assert gap.norm() <= limit * alone["scores"].double().norm(), name

    def test_what_a_block_takes_is_among_the_choices(self, monkeypatch):
        rows_that_fit(monkeypatch, 2)
        run = bif.attribute(classification(), TIGHT)
        said = "queries of a block = 2: each has 10 vectors of 43 weights, 3.36 KiB, which is 6.72"
        assert said in "\n".join(run.manifest.explanations)

    def test_vectors_of_a_query_that_do_not_fit_are_refused_before_anything_is_evaluated(
        self, monkeypatch, tmp_path: Path
    ):
        monkeypatch.setattr(vectors, "free_bytes", lambda device: 10 * 8 * 43 - 1)
        monkeypatch.setattr("bif.calibration.solving.require_derivatives", None)
        with pytest.raises(ValueError, match="10 vectors of 43 weights there, 3.36 KiB, and"):
            bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        monkeypatch.undo()
        few = replace(TIGHT, movable=("0.bias",))
        monkeypatch.setattr(vectors, "free_bytes", lambda device: 10 * 8 * 5)
        assert bif.attribute(classification(), few, out=tmp_path / "run").summary.trusted

    def test_rows_of_a_pass_are_halved_where_they_do_not_fit(self, monkeypatch):
        monkeypatch.setattr(solver, "_MANY_ROWS", 10**9)
        whole, along, passes = scores(mlp_problem()), AlongDirections.__call__, []

        def short(self: Any, function: Any, center: Any, directions: Any) -> Tensor:
            passes.append(len(next(iter(directions.values()))))
            if passes[-1] > 2:
                raise torch.OutOfMemoryError
            return along(self, function, center, directions)

        monkeypatch.setattr(AlongDirections, "__call__", short)
        np.testing.assert_allclose(scores(mlp_problem()), whole, rtol=1e-5, atol=1e-8)
        assert max(passes) == 6 and passes.count(6) == 2  # once for products, once for derivatives

    def test_a_row_that_does_not_fit_is_refused_with_what_to_do(self, monkeypatch):
        def short(*given: Any) -> Tensor:
            raise torch.OutOfMemoryError("there are 3 bytes")

        monkeypatch.setattr(AlongDirections, "__call__", short)
        with pytest.raises(torch.OutOfMemoryError, match="smaller chunk_size.*there are 3 bytes"):
            scores(mlp_problem())


class TestHonesty:
    @pytest.mark.parametrize("residual", [0.1, 0.05, 0.01])
    def test_intervals_cover_the_solution(self, residual):
        problem = mlp_problem()
        stopped = bif.attribute(problem, replace(TIGHT, gamma=0.2, solver_residual=residual))
        exact = scores(problem, replace(TIGHT, gamma=0.2))
        low, high = stopped.influence.interval()
        inside = (low.values <= exact) & (exact <= high.values)
        assert inside.mean() > 0.95
        assert stopped.summary["largest_residual"] <= residual
        actual = stopped.influence.dataset["influence"].values - exact
        relative = np.sqrt((actual**2).mean() / (exact**2).mean())
        assert 0.5 < stopped.summary["truncation"] / relative < 2

    @pytest.mark.parametrize(("count", "jackknifed"), [(16, 4), (30, 4), (30, 2)])
    def test_intervals_cover_the_solution_with_the_curvature_of_some_items(
        self, monkeypatch, count, jackknifed
    ):
        monkeypatch.setattr("bif.linear_response.solver._SPREAD_COLUMNS", jackknifed)
        problem, settings = mlp_problem(), replace(TIGHT, gamma=2.0, solver_residual=1e-3)
        exact, inside, relative = scores(problem, settings), [], []
        for seed in range(6):
            run = bif.attribute(problem, replace(settings, solver_items=count, seed=seed))
            low, high = run.influence.interval()
            inside.append((low.values <= exact) & (exact <= high.values))
            off = run.influence.dataset["influence"].values - exact
            actual = np.sqrt((off**2).mean() / (exact**2).mean())
            relative.append(run.summary["curvature_sampling"] / actual)
            assert run.summary["truncation"] < 0.01
        assert np.mean(inside) > 0.95
        assert 0.5 < np.median(relative) < 2

    def test_the_jackknife_is_the_same_in_blocks_of_one_query(self, monkeypatch):
        settings = replace(TIGHT, gamma=2.0, solver_items=20)
        whole = bif.attribute(mlp_problem(), settings).influence.dataset["standard_error"]
        rows_that_fit(monkeypatch, 1, num_weights=1210)
        alone = bif.attribute(mlp_problem(), settings).influence.dataset["standard_error"]
        np.testing.assert_allclose(alone, whole, rtol=1e-4)

    def test_a_curvature_of_all_items_has_no_sampling_error(self):
        problem = classification()
        run = bif.attribute(problem, replace(TIGHT, solver_items=20))
        assert "curvature_sampling" not in run.summary
        np.testing.assert_array_equal(run.influence.dataset["influence"], scores(problem))

    def test_an_early_stop_is_trusted_only_where_it_was_asked_for(self, monkeypatch):
        asked = bif.attribute(mlp_problem(), replace(TIGHT, solver_residual=None, solver_steps=2))
        assert asked.summary.trusted and asked.summary["largest_residual"] > 0.1
        monkeypatch.setattr("bif.linear_response.solver.MOST_STEPS", 2)
        left = bif.attribute(mlp_problem(), TIGHT)
        assert left.failed_gates == ["residual"] and not left.summary.trusted
        assert "after 2 products" in left.manifest.warnings[0]
        chosen = bif.attribute(mlp_problem(), replace(TIGHT, solver_residual=0.8))
        assert chosen.summary.trusted  # what was asked for
        nowhere = replace(TIGHT, gamma=0.0, solver_residual=None, solver_steps=100)
        assert not bif.attribute(mlp_problem(), nowhere).summary.trusted
        assert "NOT TRUSTED" in repr(left)

    def test_negative_curvature_is_refused_with_a_damping_to_try(self):
        settings = replace(TIGHT, gamma=0.0, solver_curvature="hessian")
        with pytest.raises(ValueError, match="U curves downwards.* Set gamma above"):
            bif.attribute(classification(), settings)

    def test_a_gradient_that_is_not_finite_is_refused_by_query(self):
        def rooted(model: nn.Module, batch: Any) -> Tensor:
            return (model(batch[0])[:, 0] * (batch[1] > 1)).abs().sqrt()

        problem = classification(observables=[bif.Observable("rooted", rooted, "lower")])
        with pytest.raises(ValueError, match="gradient of the observable 'rooted' is NaN"):
            bif.attribute(problem, TIGHT)

    def test_each_query_has_its_own_steps_and_errors(self):
        right = torch.diag_embed(torch.tensor([1.0, 1.0])).double()
        right = torch.cat([right, torch.zeros(2, 18).double()], dim=1)
        matrix = symmetric(20, seed=1)
        matrix[0], matrix[:, 0] = 0, 0
        matrix[0, 0] = 3.0  # an eigenvector: one step
        found = conjugate_gradients(
            lambda x: x @ matrix, right, damping=0.01, tolerance=1e-3, max_steps=60
        )
        assert found.steps[0] == 1 < found.steps[1]
        assert (found.earlier[0] - found.value[0]).abs().max() > 0.1

    def test_nothing_given_comes_to_an_end_and_says_what_was_chosen(self):
        run = bif.attribute(classification(), bif.Settings(estimator="response"))
        text = " ".join(run.manifest.explanations)
        assert "gamma = " in text and "nbeta = " in text and run.summary.trusted


class Recomputes(nn.Module):
    """A model that recomputes its activations."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = network(), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


class Applies(nn.Module):
    """A model with a `torch.autograd.Function` of its own after its layers."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner, self._function = network(), function

    def forward(self, x: Tensor) -> Tensor:
        return self._function.apply(self.inner(x))


class WithoutContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope.clone()


class BackwardOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope.clone()


class ThroughNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        return out * float(out.detach().numpy().max() > -1e9)


def distances(model: nn.Module, batch: Any) -> Tensor:
    """A loss whose second derivative torch does not have."""
    return torch.cdist(model(batch[0])[:, None], batch[0][:, None, :3])[:, 0, 0]


def stepped(model: nn.Module, batch: Any) -> Tensor:
    """A loss without forward derivatives."""
    return nn.functional.cross_entropy(
        BackwardOnly.apply(model(batch[0])), batch[1], reduction="none"
    )


class TestRefusals:
    """What torch does not differentiate is refused in words, before all items are evaluated."""

    @pytest.mark.parametrize("curvature", [GN, "hessian"])
    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            (lambda: {"model": Recomputes(use_reentrant=False)}, "recomputes activations"),
            (lambda: {"model": Recomputes(use_reentrant=True)}, "without setup_context"),
            (lambda: {"model": Applies(WithoutContext)}, "staticmethod setup_context"),
            (lambda: {"model": ThroughNumpy()}, "outside of torch"),
            (lambda: {"loss": distances}, "no such derivative.*_cdist_backward"),
        ],
        ids=["checkpoint", "reentrant", "function", "numpy", "cdist"],
    )
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_the_cause_is_named_before_anything_long_begins(
        self, monkeypatch, changed, words, curvature
    ):
        monkeypatch.setattr("bif.calibration.solving.check_items", None)
        with pytest.raises(ValueError, match=f"(?s){words}.*use estimator='covariance'"):
            scores(classification(**changed()), replace(TIGHT, solver_curvature=curvature))

    def test_the_other_curvature_is_tried_before_it_is_named(self, monkeypatch):
        problem = classification(loss=stepped)
        monkeypatch.setattr("bif.calibration.solving.check_items", None)
        with pytest.raises(ValueError, match="solver_curvature='hessian' was tried too and works"):
            scores(problem, TIGHT)

    def test_what_is_named_works(self):
        settings = replace(TIGHT, solver_curvature="hessian", gamma=20.0)
        np.testing.assert_allclose(
            scores(classification(loss=stepped), settings),
            scores(classification(), settings), rtol=1e-6, atol=1e-9,
        )  # fmt: skip

    def test_a_model_without_gauss_newton_matrix_is_told_the_name_of_the_setting(self):
        def twice(model: nn.Module, batch: Any) -> Tensor:
            return bif.losses.cross_entropy(model, batch) + model(batch[0])[:, 0]

        with pytest.raises(ValueError, match="called the model 2 times.*Use solver_curvature="):
            scores(classification(loss=twice))

    def test_the_folder_takes_the_mended_model(self, tmp_path: Path):
        with pytest.raises(ValueError, match="setup_context"):
            bif.attribute(classification(model=Applies(WithoutContext)), TIGHT, out=tmp_path / "r")
        mended = classification(model=Applies(BackwardOnly))
        run = bif.attribute(mended, TIGHT, out=tmp_path / "r")
        np.testing.assert_allclose(
            run.influence.dataset["influence"], scores(classification()), rtol=1e-5, atol=1e-9
        )


class TestRuns:
    def test_a_run_on_disk_is_read_as_it_was_made_and_not_made_twice(self, tmp_path: Path):
        made = bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        read = bif.load(tmp_path / "run")
        assert read.influence.dataset.equals(made.influence.dataset)
        assert read.summary.others == made.summary.others and "solved in" in repr(read)
        again = bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        assert again.influence.dataset.equals(made.influence.dataset)
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert "Solved at the trained weights in" in page and "Largest residual" in page
        assert "over the draws" not in page and "groups of chains" not in page
        assert "influence = -(1/nbeta) g_i" in repr(read) and "Cov(" not in repr(read)
        assert "A score is −(1/nbeta) g·(C + damping)⁻¹·g′" in page and "Cov(" not in page
        for name in ("thin", "burn_in", "friction", "sampler", "memory", "left_out", "controls"):
            assert f">{name}<" not in page and f">settings.{name}<" not in page
        assert ">solver_residual<" in page and ">settings.weight_decay<" in page

    def test_a_run_goes_on_at_the_block_where_it_stopped(self, tmp_path: Path, monkeypatch):
        rows_that_fit(monkeypatch, 2)
        whole, solve, done = scores(classification()), Solver.solve, []

        def stops(self: Solver, *block: Any) -> dict[str, Tensor]:
            done.append(block)
            if len(done) == 3:
                raise KeyboardInterrupt
            return solve(self, *block)

        monkeypatch.setattr(Solver, "solve", stops)
        with pytest.raises(KeyboardInterrupt):
            bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        assert store.progress(tmp_path / "run") == "4 of 10 linear systems committed"
        rows_that_fit(monkeypatch, 5)  # of another device
        run = bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        assert len(done) == 3 + 4  # six blocks, two of which were kept
        np.testing.assert_array_equal(run.influence.dataset["influence"].values, whole)

    def test_saved_from_memory_it_loads(self, tmp_path: Path):
        made = bif.attribute(classification(), TIGHT)
        made.save(tmp_path / "run")
        assert bif.load(tmp_path / "run").influence.dataset.equals(made.influence.dataset)

    def test_what_needs_chains_is_refused(self, tmp_path: Path):
        problem = classification()
        run = bif.attribute(problem, TIGHT, out=tmp_path / "run")
        bif.attribute(problem, replace(TIGHT, seed=1), out=tmp_path / "other")
        for what in (
            lambda: bif.merge([tmp_path / "run", tmp_path / "other"]),
            lambda: bif.cross_check(problem, run),
        ):
            with pytest.raises(ValueError, match="was solved with estimator='response'"):
                what()
        with pytest.raises(ValueError, match="keep='sums' is for what is sampled"):
            bif.attribute(problem, TIGHT, keep="sums")

    @pytest.mark.parametrize(
        ("asked", "settings"),
        [
            ({"solver_residual": 1e-10}, {"solver_residual": 1e-10}),
            ({"solver_steps": 40}, {"solver_residual": None, "solver_steps": 40}),
        ],
        ids=["residual", "steps"],
    )
    def test_a_run_that_is_solved_further_is_the_longer_solve(self, tmp_path, asked, settings):
        rough = replace(TIGHT, gamma=0.2, solver_residual=0.3)
        run = bif.attribute(mlp_problem(), rough, out=tmp_path / "run")
        whole = bif.attribute(mlp_problem(), replace(rough, **settings))
        longer = bif.extend(tmp_path / "run", mlp_problem(), **asked)
        for found in (longer, bif.load(tmp_path / "run")):
            assert found.influence.dataset.equals(whole.influence.dataset)
            assert found.diagnostics.equals(whole.diagnostics)
            assert found.summary.others == whole.summary.others
            settings_of = store.plain(found.manifest.settings)
            assert settings_of == store.plain(whole.manifest.settings)
        assert run.summary["largest_residual"] > 1e-3 > whole.summary["largest_residual"]
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert f"in {whole.summary['solver_steps']} steps" in page
        again = bif.attribute(mlp_problem(), replace(rough, **settings), out=tmp_path / "run")
        assert again.influence.dataset.equals(whole.influence.dataset)  # that very run

    def test_added_queries_and_candidates_are_as_if_they_had_been_there(
        self, tmp_path: Path, monkeypatch
    ):
        settings, solve, done = replace(TIGHT, self_influence=True), Solver._solve, []

        def counted(self: Solver, *block: Any) -> Any:
            done.append(block)
            return solve(self, *block)

        monkeypatch.setattr(Solver, "_solve", counted)
        rows_that_fit(monkeypatch, 3)
        bif.attribute(classification(), settings, out=tmp_path / "run")
        more = classification().extended(queries={"b": labelled(4, seed=4)})
        done.clear()
        bif.extend(tmp_path / "run", more)
        assert done == [(a, columns) for a in (0, 1) for columns in (range(5, 8), range(8, 9))]
        most = more.extended(candidates={"c": labelled(2, seed=6)})
        got = bif.extend(tmp_path / "run", most).influence.dataset
        whole = bif.attribute(most, settings).influence.dataset
        assert got.sizes == {**whole.sizes, "query": 9, "train": 22}
        for name in whole.data_vars:
            np.testing.assert_allclose(got[name], whole[name], rtol=1e-4, atol=1e-7, err_msg=name)
        for name in whole.coords:
            np.testing.assert_array_equal(got[name], whole[name])

    def test_an_interrupted_extension_keeps_what_was_there_and_goes_on(
        self, tmp_path: Path, monkeypatch
    ):
        rows_that_fit(monkeypatch, 2)
        problem, rough = classification(), replace(TIGHT, solver_residual=0.3)
        before = bif.attribute(problem, rough, out=tmp_path / "run")
        solve, done = Solver.solve, []

        def stops(self: Solver, *block: Any) -> dict[str, Tensor]:
            done.append(block)
            if len(done) == 3:
                raise KeyboardInterrupt
            return solve(self, *block)

        monkeypatch.setattr(Solver, "solve", stops)
        with pytest.raises(KeyboardInterrupt):
            bif.extend(tmp_path / "run", problem, solver_residual=1e-10)
        there = bif.load(tmp_path / "run")
        assert there.influence.dataset.equals(before.influence.dataset)
        assert store.progress(tmp_path / "run") == "4 of 10 linear systems committed"
        run = bif.extend(tmp_path / "run", problem, solver_residual=1e-10)
        assert len(done) == 3 + 4  # six blocks, two of which were kept
        np.testing.assert_array_equal(run.influence.dataset["influence"], scores(problem))

    def test_an_extension_that_is_refused_leaves_the_run_as_it_was(self, tmp_path, monkeypatch):
        rows_that_fit(monkeypatch, 1)  # so that what comes before the bad query is committed

        def rooted(model: nn.Module, batch: Any) -> Tensor:
            return (model(batch[0])[:, 0] * (batch[1] > 1)).abs().sqrt()

        observables = [bif.Observable("rooted", rooted, "lower")]
        good = labelled(2, seed=2)[0], torch.tensor([2, 2])
        bad = labelled(2, seed=8)[0], torch.tensor([2, 0])
        problem = classification(observables=observables, queries=good)
        before = bif.attribute(problem, TIGHT, out=tmp_path / "run")
        with pytest.raises(ValueError, match="gradient of the observable 'rooted' is NaN"):
            bif.extend(tmp_path / "run", problem.extended(queries={"b": bad}))
        there = bif.attribute(problem, TIGHT, out=tmp_path / "run")
        assert there.influence.dataset.equals(before.influence.dataset)
        mended = problem.extended(queries={"b": (labelled(2, seed=9)[0], good[1])})
        extended = bif.extend(tmp_path / "run", mended).influence.dataset
        np.testing.assert_allclose(extended["influence"], scores(mended), rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"solver_residual": 0.1}, "solved to a residual of 1e-10 already: 0.1 would be"),
            ({"solver_steps": 1}, "steps already: 1 would be fewer"),
            ({"solver_steps": 90, "solver_residual": 1e-12}, "one or the other"),
            ({"draws": 10}, "was solved with estimator='response' and cannot be extended by draws"),
        ],
    )
    def test_what_would_be_a_shorter_solve_or_none_is_refused(self, tmp_path, asked, words):
        bif.attribute(classification(), TIGHT, out=tmp_path / "run")
        with pytest.raises(ValueError, match=words):
            bif.extend(tmp_path / "run", classification(), **asked)
        assert bif.load(tmp_path / "run").manifest.complete
        same = bif.extend(tmp_path / "run", classification(), solver_residual=1e-10)
        assert same.manifest.complete  # nothing to do

    def test_a_sampled_run_is_not_solved_further(self, tmp_path: Path):
        bif.attribute(classification(), TINY, out=tmp_path / "run")
        with pytest.raises(ValueError, match="was sampled and cannot be extended by solver_steps"):
            bif.extend(tmp_path / "run", classification(), solver_steps=4)

    def test_the_command_line_solves_further(self, call, tmp_path: Path):
        file = tmp_path / "mine.py"
        file.write_text("from small_problems import classification\n", encoding="utf-8")
        target, solves = f"{file}:classification", ["--estimator", "response"]
        asked = [*solves, "--gamma", 2, "--nbeta", 20, "--solver-residual", 0.5]
        assert call("attribute", target, "--out", tmp_path / "r", *asked)[0] == 0
        further = ["--from", tmp_path / "r", "--out", tmp_path / "copy"]
        code, _, said = call("attribute", target, *further, "--draws", 9)
        assert (
            code == 2 and "cannot be extended by draws" in said and not (tmp_path / "copy").exists()
        )
        code, _, said = call("attribute", target, *further, *solves, "--solver-residual", 1e-10)
        assert code == 0 and "self-influence" not in said
        got = bif.load(tmp_path / "copy").influence.dataset["influence"]
        np.testing.assert_array_equal(got, scores(classification()))
        assert bif.load(tmp_path / "r").summary["largest_residual"] > 1e-3

    def test_the_command_line_solves_and_shows(self, call, tmp_path: Path):
        file = tmp_path / "mine.py"
        file.write_text("from small_problems import classification\n", encoding="utf-8")
        asked = ["--estimator", "response", "--gamma", 2, "--nbeta", 20]
        target, out = f"{file}:classification", tmp_path / "r"
        code, said, progress = call("attribute", target, "--out", out, *asked)
        assert code == 0 and "computed without random draws" in said
        assert "margin: 5 of 5 query columns solved" in progress
        refused = failed(call("attribute", target, "--out", out, *asked, "--controls"))
        assert "bif: controls has no use with estimator='response'" in refused
        code, said, _ = call("show", tmp_path / "r", "--query", "0", "--verbose")
        assert code == 0 and "helpful" in said and "largest residual" in said
        assert "solver steps" in said and "rhat" not in said


class TestSettings:
    def test_what_is_of_the_other_estimator_is_refused(self):
        with pytest.raises(ValueError, match="chains, draws has no use with estimator='response'"):
            bif.Settings(estimator="response", chains=4, draws=10)
        with pytest.raises(ValueError, match="solver_steps has no use with estimator=None"):
            bif.Settings(solver_steps=4, draws=10)
        with pytest.raises(ValueError, match="solver_residual is 2: expected a number between"):
            bif.Settings(estimator="response", solver_residual=2)
        with pytest.raises(ValueError, match="ends by one or the other"):
            bif.Settings(estimator="response", solver_residual=0.1, solver_steps=3)
        with pytest.raises(ValueError, match="nbeta is 0"):
            bif.Settings(estimator="response", nbeta=0.0)

    def test_what_is_for_chains_refuses_settings_that_solve(self):
        for what in (
            lambda: bif.calibrate(classification(), TIGHT),
            lambda: respond(classification(), TIGHT),
        ):
            with pytest.raises(ValueError, match="is for chains, and estimator='response' solves"):
                what()

    def test_settings_of_covariances_are_written_as_before(self):
        assert not {"estimator", "solver_curvature", "solver_steps"} & set(bif.Settings().as_dict())
        assert bif.Settings.from_dict(TIGHT.as_dict()) == TIGHT

    def test_words_of_earlier_versions_name_the_same_curvature(self):
        asked = Request(bif.Settings(), 0.0, "bregman", None, None, 1)
        assert asked.curvature == GN
        assert CurvatureProduct(classification(), "ggn").curvature == GN
