"""attribute: from a problem to a run, and everything that can go wrong on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import Settings, losses
from small_problems import (
    TINY,
    Pairs,
    classification,
    dict_cross_entropy,
    filled,
    labelled,
    network,
    normal,
)


def traces(run: bif.Run) -> Tensor:
    """Train and query losses of all chains, `[C, D, N + A·Q]`."""
    return torch.cat([torch.cat([b.train, b.query], dim=2) for b in run.traces.blocks])


class TestKnownAnswer:
    """Linear regression: losses are quadratic, and the covariance is known exactly."""

    NBETA, GAMMA = 15.0, 2.0

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls) -> tuple[bif.Run, np.ndarray]:
        x, y = normal(12, 3, seed=0), normal(12, seed=1)
        qx, qy = normal(4, 3, seed=2), normal(4, seed=3)
        model = filled(nn.Linear(3, 1, bias=False))
        problem = bif.Problem(model, losses.squared_error, train=(x, y), queries=(qx, qy))
        run = bif.attribute(
            problem, Settings(nbeta=cls.NBETA, gamma=cls.GAMMA, chains=128, draws=200)
        )
        precision = cls.NBETA * x.T @ x / 12 + cls.GAMMA * torch.eye(3, dtype=torch.float64)
        spread = torch.linalg.inv(precision)
        start = model.weight.detach()[0]  # type: ignore[union-attr, operator]
        mean = spread @ (cls.NBETA * x.T @ y / 12 + cls.GAMMA * start)
        g = x * (x @ mean - y)[:, None]
        g_q = qx * (qx @ mean - qy)[:, None]
        # gᵀSg + ½ tr(H S H S), with H = x xᵀ.
        exact = g_q @ spread @ g.T + 0.5 * (qx @ spread @ x.T).square()
        return run, -exact.numpy()

    def test_influences_are_the_exact_ones_within_their_errors(self, run):
        got, exact = run
        dataset = got.influence.dataset.sel(observable="loss")
        error = dataset["standard_error"].values
        assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((exact**2).mean())
        # 48 entries, t with 15 degrees of freedom: beyond 6 with probability 1e-3 in all.
        assert (np.abs(dataset["influence"].values - exact) < 6 * error).all()
        # The mutant: the papers' sign forgotten.
        assert not (np.abs(dataset["influence"].values + exact) < 6 * error).all()

    def test_the_derivative_is_scaled_by_nbeta_over_n(self, run):
        dataset = run[0].influence.dataset
        np.testing.assert_allclose(
            dataset["derivative"], self.NBETA / 12 * dataset["influence"], rtol=1e-6
        )
        assert dataset.attrs["nbeta"] == self.NBETA and dataset.attrs["gamma"] == self.GAMMA

    def test_diagnostics_of_a_healthy_run_are_within_their_limits(self, run):
        summary = run[0].summary
        assert summary["rhat_max"] < 1.05 and summary["reliability"] > 0.9
        assert summary["chains"] == 128 and summary["draws"] == 128 * 200
        assert summary["complete"] is True and summary["diverged_chains"] == []
        assert 500 < summary["ess_median"] < 2 * 128 * 200
        assert summary["trusted"] is True
        # The center of this problem is not the minimum of its losses.
        (warning,) = run[0].manifest["warnings"]
        assert "no minimum of U" in warning

    def test_it_prints_its_sign_and_its_figures(self, run):
        text = repr(run[0])
        assert "-Cov(train loss, observable)" in text
        number = run[0].manifest["num_moving_weights"]
        assert f"{number} of {number} weights move, held in float64\n" in text
        assert "25600 draws of 128 chains in" in text and "R-hat at most 1.0" in text


class TestBlocks:
    SETTINGS = replace(TINY, block_size=2)

    def test_the_same_seed_gives_the_same_bits_and_another_seed_others(self):
        first, again, other = (
            bif.attribute(classification(), replace(self.SETTINGS, seed=seed)) for seed in (0, 0, 1)
        )
        assert len(first.traces.blocks) == 2
        assert torch.equal(traces(first), traces(again))
        assert (traces(first) != traces(other)).any(dim=2).all()

    @pytest.mark.parametrize("gradient", ["full", "minibatch", "control_variate"])
    def test_a_block_does_not_depend_on_how_many_there_are(self, gradient):
        batch = {} if gradient == "full" else {"batch_size": 5}
        settings = replace(self.SETTINGS, gradient=gradient, **batch)
        two = bif.attribute(classification(), settings)
        one = bif.attribute(classification(), replace(settings, chains=2))
        assert torch.equal(one.traces.blocks[0].train, two.traces.blocks[0].train)
        assert torch.equal(one.traces.blocks[0].query, two.traces.blocks[0].query)

    def test_blocks_differ_from_each_other(self):
        a, b = bif.attribute(classification(), self.SETTINGS).traces.blocks
        assert a.chains == (0, 1) and b.chains == (2, 3)
        assert (a.train != b.train).any(dim=2).all()

    def test_a_last_smaller_block_is_run_too(self):
        run = bif.attribute(classification(), replace(self.SETTINGS, chains=3))
        assert [b.chains for b in run.traces.blocks] == [(0, 1), (2,)]


STEPS = {"baoab": 0.02, "sgld": 1e-3, "rmsprop_sgld": 1e-4, "rmsprop_sgld_frozen": 1e-4,
         "sgnht": 0.02}  # fmt: skip


@pytest.mark.parametrize("gradient", ["full", "minibatch", "control_variate"])
@pytest.mark.parametrize("sampler", STEPS)
def test_every_sampler_and_gradient_gives_the_same_chains_under_every_oracle(sampler, gradient):
    found = []
    for oracle in ("stacked", "sequential", "live"):
        settings = replace(
            TINY, sampler=sampler, gradient=gradient, oracle=oracle, block_size=1,
            step_size=STEPS[sampler], batch_size=None if gradient == "full" else 5,
            friction=2.0 if sampler in ("baoab", "sgnht") else None, chunk_size=20,
        )  # fmt: skip
        run = bif.attribute(classification(), settings)
        assert run.manifest["settings"]["oracle"] == oracle
        assert np.isfinite(run.influence.dataset["influence"]).all()
        found.append(traces(run))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-10)
    assert found[0].std(dim=1).min() > 1e-6  # all losses move


class TestWhatIsRecorded:
    def test_loss_and_margin_come_from_the_same_draws(self):
        both = bif.attribute(classification(), TINY)
        loss = bif.attribute(
            classification(observables=[bif.Observable("loss", losses.cross_entropy, "lower")]),
            TINY,
        )
        margin = bif.attribute(classification(observables=[bif.MARGIN]), TINY)
        query = torch.cat(
            [both.traces.blocks[0].query[..., :5], both.traces.blocks[0].query[..., 5:]]
        )
        assert torch.equal(
            query, torch.cat([loss.traces.blocks[0].query, margin.traces.blocks[0].query])
        )
        # Margin and loss of a draw are functions of each other: loss = log(1 + exp(-margin)).
        given = both.traces.blocks[0].query
        torch.testing.assert_close(
            given[..., :5], torch.nn.functional.softplus(-given[..., 5:]), rtol=0, atol=1e-12
        )
        assert both.influence.dataset["better"].values.tolist() == ["lower", "higher"]

    def test_groups_of_queries_are_their_parts(self):
        x, y = labelled(5, seed=2)
        groups = {"first": bif.Items((x[:2], y[:2]), ids=["a", "b"]), "rest": (x[2:], y[2:])}
        run = bif.attribute(classification(queries=groups), TINY)
        whole = bif.attribute(classification(), TINY)
        torch.testing.assert_close(traces(run), traces(whole), rtol=0, atol=1e-12)
        dataset = run.influence.dataset
        assert dataset["query_id"].values.tolist() == [
            "first/a", "first/b", "rest/0", "rest/1", "rest/2",
        ]  # fmt: skip
        assert dataset["query_group"].values.tolist() == ["first"] * 2 + ["rest"] * 3
        assert run.influence.top("rest/1", observable="margin").query_id == "rest/1"

    def test_datasets_and_dicts_give_the_bits_of_their_tensors(self):
        train, queries = labelled(20, seed=1), labelled(5, seed=2)
        only_loss = {"observables": None}
        plain = bif.attribute(classification(**only_loss).without_proxies(), TINY)
        other = [
            classification(train=Pairs(*train), queries=Pairs(*queries), **only_loss),
            classification(
                loss=dict_cross_entropy, train=dict(zip("xy", train, strict=True)),
                queries=dict(zip("xy", queries, strict=True)), **only_loss,
            ),
        ]  # fmt: skip
        for problem in other:
            run = bif.attribute(problem.without_proxies(), TINY)
            assert torch.equal(traces(run), traces(plain))

    @pytest.mark.parametrize("chunk_size", [1, 6, 19])
    def test_chunks_change_nothing(self, chunk_size):
        whole = bif.attribute(classification(), replace(TINY, chunk_size=20))
        parts = bif.attribute(classification(), replace(TINY, chunk_size=chunk_size))
        torch.testing.assert_close(traces(parts), traces(whole), rtol=0, atol=1e-11)

    def test_values_at_the_center_labels_and_pictures_are_kept(self):
        train, queries = labelled(20, seed=1), labelled(5, seed=2)
        pictures = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
        problem = classification(
            train=bif.Items(train, labels=[f"t{i}" for i in range(20)], images=pictures),
            queries=bif.Items(queries, labels=list("abcde"), images=pictures[:5]),
        )
        dataset = bif.attribute(problem, TINY).influence.dataset
        model = network()
        close = {"rtol": 0, "atol": 1e-12}
        np.testing.assert_allclose(
            dataset["train_center_loss"], losses.cross_entropy(model, train).detach(), **close
        )
        np.testing.assert_allclose(
            dataset["query_center"],
            torch.stack([losses.cross_entropy(model, queries), losses.margin(model, queries)])
            .detach().numpy(),
            **close,
        )  # fmt: skip
        assert dataset["train_label"].values[3] == "t3" and dataset["query_label"].values[4] == "e"
        assert np.array_equal(dataset["train_image"], pictures)
        assert np.array_equal(dataset["query_image"], pictures[:5])
        assert (dataset.attrs["complete"], dataset.attrs["num_train"]) == (1, 20)

    def test_losses_more_exact_than_the_gradients_get_a_pass_of_their_own(self):
        model = network().float()
        (x, y), (qx, qy) = labelled(20, seed=1), labelled(5, seed=2)
        settings = replace(TINY, burn_in=0, gradient_precision="bfloat16")
        problem = classification(model=model, train=(x.float(), y), queries=(qx.float(), qy))
        exact = losses.cross_entropy(model, (x.float(), y)).detach()
        for loss_precision, same in (("float32", True), ("bfloat16", False)):
            run = bif.attribute(problem, replace(settings, loss_precision=loss_precision))
            first = run.traces.blocks[0].train[0, 0]
            assert first.dtype == torch.float32
            assert bool(((first - exact).abs().max() < 1e-5).item()) == same


class TestPosteriorChoices:
    def test_weights_that_do_not_move_stay_at_the_center(self):
        # Moving the last layer alone is sampling a linear model on the features below it.
        whole = network()
        features = nn.Sequential(*list(whole)[:2])  # type: ignore[call-overload]
        train, queries = labelled(20, seed=1), labelled(5, seed=2)
        head = classification(
            model=list(whole)[2],  # type: ignore[call-overload]
            train=(features(train[0]).detach(), train[1]),
            queries=(features(queries[0]).detach(), queries[1]),
        )
        run = bif.attribute(classification(), replace(TINY, movable=("2.*",)))
        assert run.manifest["num_moving_weights"] == 18
        torch.testing.assert_close(
            traces(run), traces(bif.attribute(head, TINY)), rtol=0, atol=1e-11
        )

    def test_train_weights_enter_the_potential_and_no_recorded_loss(self):
        plain = bif.attribute(classification(), TINY)
        ones = bif.attribute(classification(train_weights=[1.0] * 20), TINY)
        assert torch.equal(traces(ones), traces(plain))
        # All weights 0: the Gaussian ball of nbeta = 0.
        none = bif.attribute(classification(train_weights=[0.0] * 20), TINY)
        ball = bif.attribute(classification(), replace(TINY, nbeta=0.0))
        torch.testing.assert_close(traces(none), traces(ball), rtol=0, atol=1e-12)
        # An item of weight 0 does not pull, but its loss is recorded.
        x, y = labelled(20, seed=1)
        weights = torch.ones(20, dtype=torch.float64)
        weights[7] = 0
        without = bif.attribute(classification(train_weights=weights), replace(TINY, nbeta=20.0))
        rest = [i for i in range(20) if i != 7]
        alone = bif.attribute(
            classification(train=(x[rest], y[rest])), replace(TINY, nbeta=20.0 * 19 / 20)
        )
        torch.testing.assert_close(
            without.traces.blocks[0].train[..., rest], alone.traces.blocks[0].train,
            rtol=0, atol=1e-11,
        )  # fmt: skip

    def test_weight_decay_enters_where_asked_for(self):
        # On a loss of 0: U = nbeta wd/2 w² + gamma/2 (w - w*)² is a Gaussian whose pull at w* is
        # nbeta wd w*; with gamma doubled instead there is none.
        decayed = bif.attribute(classification(), replace(TINY, weight_decay=0.1))
        plain = bif.attribute(classification(), TINY)
        assert (traces(decayed) != traces(plain)).any()
        assert decayed.manifest["settings"]["weight_decay"] == 0.1
        assert plain.manifest["settings"]["weight_decay"] == 0.0
