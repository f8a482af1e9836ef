"""Runs with `estimator="anchored"`: exact cases, growth, tokens, files, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_exact_regression import Regression
from torch import nn

import bif
from bif import Settings, calibrate
from bif.problem.proxy import known_proxy
from bif.runs.merge import merge
from bif.runs.retention import forecast
from bif.sampling.factory import make_posterior
from exact_problems import GaussianPosterior, Point, Quadratics, quadratic_loss
from law_checks import STANDARD_ERRORS
from same_bits import assert_same_run, preempted
from small_problems import TINY, classification, labelled, normal
from token_problems import TINY as TINY_TEXTS
from token_problems import problem as texts

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")

ANCHORED = replace(TINY, estimator="anchored")
GAUSSIAN = {"nbeta": 10.0, "gamma": 4.0, "step_size": 0.3, "friction": 1.0, "burn_in": 40}


def regression(**changed) -> bif.Run:
    """Scores of weights that a linear regression has, by few draws."""
    case = Regression()
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    model.weight.data.copy_(case.center[None])
    problem = bif.Problem(
        model, bif.losses.squared_error, train=(case.x, case.y),
        queries=(torch.eye(3).double(), torch.zeros(3).double()),
        observables=[bif.Observable("weight", lambda model, batch: model(batch[0])[:, 0])],
    )  # fmt: skip
    given = {**GAUSSIAN, "chains": 8, "draws": 12, "thin": 2, "solver_residual": 1e-9, **changed}
    return bif.attribute(problem, Settings(estimator="anchored", **given))


def exact_regression() -> np.ndarray:
    """`BIF(z_j, w) = S x_j r_j` with residuals at the posterior mean, `[3, N]`."""
    case = Regression()
    mean, covariance = case.posterior(torch.ones(case.num_items).double())
    residual = case.y - case.x @ mean
    return (covariance @ (case.x * residual[:, None]).T).numpy()


class TestExactCases:
    def test_the_linear_part_of_a_regression_is_the_bif_itself(self):
        found = regression().influence.dataset["linear"].values[0]
        np.testing.assert_allclose(found, exact_regression(), rtol=0, atol=1e-6)

    def test_nothing_is_left_of_an_observable_that_is_linear(self):
        found = regression()
        assert found.summary["variance_left"] < 1e-8
        assert (found.influence.dataset["effective_draws"] > 100).all()

    def test_scores_are_within_their_errors(self):
        dataset = regression().influence.dataset
        away = dataset["influence"].values[0] - exact_regression()
        assert (np.abs(away) < STANDARD_ERRORS * dataset["standard_error"].values[0]).all()

    def test_of_quadratic_losses_the_correction_is_the_trace(self):
        """`influence = -g_i S g_q - ½ tr(H_i S H_q S)`, whose first term is `linear`."""
        train, queries = Quadratics.random(6, 3, seed=0), Quadratics.random(3, 3, seed=20)
        center, nbeta, gamma = normal(3, seed=40), 6.0, 3.0
        problem = bif.Problem(
            Point(center), quadratic_loss, train=train.batch, queries=queries.batch,
        )  # fmt: skip
        found = bif.attribute(
            problem,
            Settings(
                estimator="anchored", solver_curvature="hessian", solver_residual=1e-9, chains=16,
                draws=400, burn_in=40, thin=3, nbeta=nbeta, gamma=gamma, step_size=0.3,
                friction=1.0,
            ),
        ).influence.dataset  # fmt: skip
        posterior = GaussianPosterior.of(train, center, nbeta=nbeta, gamma=gamma)
        S, mean = posterior.covariance, posterior.mean
        linear = -queries.gradient(mean) @ S @ train.gradient(mean).T
        np.testing.assert_allclose(found["linear"].values[0], linear, rtol=0, atol=1e-5)
        exact = posterior.influence(queries, train).numpy()
        error = found["standard_error"].values[0]
        assert (np.abs(found["influence"].values[0] - exact) < STANDARD_ERRORS * error).all()
        assert (np.abs(linear.numpy() - exact) > STANDARD_ERRORS * error).mean() > 0.5

    def test_items_asked_as_queries_have_their_self_influence_with_anchors(self):
        """At low temperature an item's own variance is nearly that of its linear part."""
        train, center = Quadratics.random(6, 3, seed=0), normal(3, seed=40)
        first = Quadratics(train.minimum[:2], train.hessian[:2])
        problem = bif.Problem(
            Point(center), quadratic_loss, train=train.batch, queries=first.batch
        )  # fmt: skip
        given = {"nbeta": 600.0, "gamma": 300.0, "step_size": 0.03, "friction": 10.0}
        found = bif.attribute(
            problem, replace(
                ANCHORED, solver_curvature="hessian", chains=8, draws=60, burn_in=60, **given
            ),
        ).influence.dataset  # fmt: skip
        posterior = GaussianPosterior.of(train, center, nbeta=600.0, gamma=300.0)
        exact = posterior.influence(first, first).diagonal().numpy()
        own = found["influence"].values[0][[0, 1], [0, 1]]
        error = found["standard_error"].values[0][[0, 1], [0, 1]]
        sampled = found["self_influence"].values[:2]
        assert (np.abs(own - exact) < STANDARD_ERRORS * error + 0.01 * np.abs(exact)).all()
        assert (np.abs(own - exact) < 0.5 * np.abs(sampled - exact)).all()

    def test_a_proxy_is_anchored_as_it_is_recorded(self):
        """The recorded column is linear in the margin, so at low temperature little is left."""
        loss = bif.Observable(
            "loss", bif.losses.cross_entropy, "lower", through=known_proxy(bif.losses.cross_entropy)
        )
        problem = classification(observables=[loss])
        settings = Settings(
            estimator="anchored", chains=8, draws=40, burn_in=60, thin=4, nbeta=4000.0,
            gamma=4000.0, step_size=0.01, friction=0.5, weight_decay=0.01,
        )  # fmt: skip
        assert bif.attribute(problem, settings).summary["variance_left"] < 0.2


class TestRunsOfAnyKind:
    @pytest.mark.parametrize("oracle", ["stacked", "sequential"])
    @pytest.mark.parametrize("block_size", [4, 3, 1])
    def test_blocks_of_any_size_have_slopes(self, oracle, block_size):
        settings = replace(ANCHORED, oracle=oracle, block_size=block_size)
        dataset = bif.attribute(classification(), settings).influence.dataset
        assert np.isfinite(dataset["influence"]).all()
        assert dataset.attrs["estimator"] == "anchored"

    @pytest.mark.parametrize("tokens", ["both", "train", "query"])
    def test_scores_of_tokens_add_up_to_those_of_texts(self, tokens):
        settings = replace(TINY_TEXTS, estimator="anchored", solver_residual=1e-9)
        by_token = bif.attribute(texts(tokens), settings).influence
        for side in ("train", "query"):
            if tokens in ("both", side):
                by_token = by_token.by_item(side)
        whole = bif.attribute(texts(None), settings).influence.dataset
        np.testing.assert_allclose(
            by_token.dataset["linear"], whole["linear"], rtol=1e-4, atol=1e-6
        )
        assert np.isfinite(by_token.dataset["standard_error"]).all()

    def test_groups_have_the_sums_of_scores_and_of_linear_parts(self):
        run = bif.attribute(classification(), ANCHORED)
        groups = {"a": [0, 3], "b": [1, 2, 5]}
        found, dataset = run.influence.sum_over(groups).dataset, run.influence.dataset
        for name in ("influence", "linear"):
            sums = np.stack(
                [dataset[name].values[..., m].sum(axis=-1) for m in groups.values()], -1
            )
            np.testing.assert_allclose(found[name], sums, rtol=1e-4, atol=1e-7)

    def test_masks_of_weights_that_move_are_kept(self):
        settings = replace(ANCHORED, movable=("2.weight[0:1]",), solver_residual=1e-6)
        run = bif.attribute(classification(), settings)
        assert run.manifest.num_moving_weights == 5
        assert np.isfinite(run.influence.dataset["linear"]).all()

    def test_mini_batches_are_warned_of(self):
        settings = replace(ANCHORED, gradient="minibatch", batch_size=6)
        run = bif.attribute(classification(), settings)
        (said,) = [x for x in run.manifest.warnings if "chains that mini-batches drive" in x]
        assert f"the anchors leave {run.summary['variance_left']:.0%} of the variance" in said

    def test_anchors_that_do_not_fit_are_said_so(self):
        """At this temperature the draws leave the place where the losses are linear."""
        settings = replace(ANCHORED, nbeta=1e-3, gamma=0.05, draws=40, step_size=1.0, friction=0.5)
        run = bif.attribute(classification(), settings)
        assert run.summary["variance_left"] > 0.9
        assert any("do not fit" in warning for warning in run.manifest.warnings)
        found = run.influence.dataset
        plain = bif.attribute(classification(), replace(settings, estimator="covariance"))
        unused = found["variance_left"].values == 1
        assert unused.any()
        for name in ("influence", "standard_error"):
            np.testing.assert_allclose(
                found[name].values[unused], plain.influence.dataset[name].values[unused], rtol=1e-6
            )


class TestFiles:
    def test_two_interruptions_leave_no_trace(self, tmp_path):
        settings = replace(ANCHORED, block_size=2, draws=12)
        problem, out = classification(), tmp_path / "run"
        for block, step in ((0, 6), (1, 9)):
            with preempted(block=block, step=step):
                bif.attribute(problem, settings, out=out)
        got = bif.attribute(problem, settings, out=out)
        assert_same_run(got, bif.attribute(problem, settings))

    def test_more_draws_and_chains_are_those_from_the_start(self, tmp_path):
        settings, problem = replace(ANCHORED, block_size=2), classification()
        bif.attribute(problem, settings, out=tmp_path / "run")
        got = bif.extend(tmp_path / "run", problem, draws=30, chains=6)
        expected = bif.attribute(problem, replace(settings, draws=30, chains=6))
        assert_same_run(got, expected)

    def test_a_saved_run_is_loaded_with_its_anchors(self, tmp_path):
        run = bif.attribute(classification(), ANCHORED)
        run.save(tmp_path / "run")
        got = bif.load(tmp_path / "run")
        assert got.traces.anchored
        found = got.influence.sum_over({"a": [0, 1]}).dataset["standard_error"].values
        expected = run.influence.sum_over({"a": [0, 1]}).dataset["standard_error"].values
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_runs_of_two_seeds_are_merged(self, tmp_path):
        problem = classification()
        for seed in (0, 1):
            bif.attribute(problem, replace(ANCHORED, seed=seed), out=tmp_path / str(seed))
        got = merge([tmp_path / "0", tmp_path / "1"])
        assert got.traces.anchored and got.traces.num_chains == 8
        assert got.influence.dataset["effective_draws"].shape == (2, 5)


def test_the_forecast_counts_anchors_and_slopes():
    """20 items and 10 query columns: float64, 4 chains, 6 draws."""
    plain, anchored = (
        forecast(problem, make_posterior(problem, s), s, "traces")
        for problem in [classification()]
        for s in (calibrate(problem, each).settings for each in (TINY, ANCHORED))
    )
    assert plain["traces"] == 8 * 4 * 6 * 30
    assert anchored["traces"] == 8 * 4 * 6 * 40
    assert anchored["memory"] == anchored["traces"] + 8 * 4 * 10 * 20


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"self_influence": True}, "self_influence solves"),
            ({"nbeta": 0.0}, "nbeta is 0"),
        ],
    )
    def test_settings_without_anchors_are_refused(self, changed, message):
        with pytest.raises(ValueError, match=message):
            replace(ANCHORED, **changed)

    @pytest.mark.parametrize(
        "changed", [{}, {"memory": "lean", "sampler": "sgld", "friction": None}]
    )
    def test_a_live_module_is_refused_with_the_memory_that_anchors_would_take(self, changed):
        settings = replace(ANCHORED, oracle="live", **changed)
        message = "10 query columns are vectors of 43 weights, 1.68 KiB, and oracle='live'"
        with pytest.raises(ValueError, match=message):
            bif.attribute(classification(), settings)

    @pytest.mark.parametrize("given", [{"keep": "sums"}, {"top": 3}])
    def test_scores_that_are_not_all_held_are_refused(self, given):
        with pytest.raises(ValueError, match="slopes along every anchor"):
            bif.attribute(classification(), ANCHORED, **given)

    def test_new_queries_are_refused_and_the_run_stays(self, tmp_path):
        problem = classification()
        before = bif.attribute(problem, ANCHORED, out=tmp_path / "run")
        more = problem.extended(queries={"more": labelled(2, seed=7)})
        with pytest.raises(ValueError, match="new queries or candidates lack slopes"):
            bif.extend(tmp_path / "run", more)
        assert_same_run(bif.load(tmp_path / "run"), before)

    def test_anchors_that_do_not_fit_into_memory_are_refused_before_they_are_solved(
        self, monkeypatch
    ):
        monkeypatch.setattr("bif.runs.anchoring.free_bytes", lambda device: 1000)
        with pytest.raises(ValueError, match="ask fewer queries at a time"):
            bif.attribute(classification(), ANCHORED)
