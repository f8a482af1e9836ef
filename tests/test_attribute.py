"""attribute: from a problem to a run, and everything that can go wrong on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import Settings, losses, store
from bif.manifest import identity
from bif.types import Draw
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

SAMPLING = sys.modules["bif.sampling"]


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

    def test_diagnostics_are_in_order(self, run):
        summary = run[0].summary
        assert summary["rhat_max"] < 1.05 and summary["reliability"] > 0.9
        assert summary["chains"] == 128 and summary["draws"] == 128 * 200
        assert summary["complete"] is True and summary["diverged_chains"] == []
        assert 500 < summary["ess_median"] < 2 * 128 * 200
        assert run[0].manifest["warnings"] == []

    def test_it_prints_its_sign_and_its_figures(self, run):
        text = repr(run[0])
        assert "-Cov(train loss, observable)" in text
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
        plain = bif.attribute(classification(**only_loss), TINY)
        other = [
            classification(train=Pairs(*train), queries=Pairs(*queries), **only_loss),
            classification(
                loss=dict_cross_entropy, train=dict(zip("xy", train, strict=True)),
                queries=dict(zip("xy", queries, strict=True)), **only_loss,
            ),
        ]  # fmt: skip
        for problem in other:
            assert torch.equal(traces(bif.attribute(problem, TINY)), traces(plain))

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
        without = bif.attribute(classification(train_weights=weights), TINY)
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


class Disturbed:
    """`run_chains` with one chain pushed at one draw."""

    def __init__(self, chain: int, index: int, push: float) -> None:
        self.chain, self.index, self.push = chain, index, push
        self.original = SAMPLING.run_chains

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[Draw]:
        for draw in self.original(*args, **kwargs):
            if draw.index == self.index:
                for leaf in draw.params.values():
                    leaf[self.chain] += self.push
            yield draw


class TestDivergence:
    @pytest.mark.parametrize("push", [float("nan"), float("inf"), 1e4])
    def test_a_chain_that_diverges_is_left_out_named_and_warned_of(self, monkeypatch, push):
        calm = bif.attribute(classification(), TINY)
        monkeypatch.setattr(SAMPLING, "run_chains", Disturbed(1, 3, push))
        run = bif.attribute(classification(), TINY)
        assert run.traces.blocks[0].chains == (0, 2, 3)
        assert torch.equal(traces(run), traces(calm)[[0, 2, 3]])
        assert run.summary["diverged_chains"] == [1] and run.summary["chains"] == 3
        assert run.diagnostics.attrs["diverged_chains"] == [1]
        assert run.diagnostics["chain"].values.tolist() == [0, 2, 3]
        (warning,) = [w for w in run.manifest["warnings"] if "diverged" in w]
        assert warning.startswith("chain 1 diverged by step")
        assert "step_size=0.02" in warning and "lower step_size" in warning
        expected = bif.estimate.estimate_covariance(run.traces)
        np.testing.assert_allclose(
            run.influence.dataset["influence"].values.reshape(10, 20), -expected.value, rtol=1e-6
        )

    def test_the_warning_reaches_the_report(self, monkeypatch, tmp_path):
        monkeypatch.setattr(SAMPLING, "run_chains", Disturbed(2, 1, float("nan")))
        folder = bif.attribute(classification(), TINY).save(tmp_path / "out")
        assert "chain 2 diverged" in (folder / "report.html").read_text()
        assert any("chain 2 diverged" in w for w in store.read_run(folder)["manifest"]["warnings"])

    def test_with_fewer_than_two_survivors_the_run_fails_and_says_what_to_change(self):
        with pytest.raises(RuntimeError, match="only 0 of 4 chains survived") as error:
            bif.attribute(classification(), replace(TINY, step_size=50.0))
        text = str(error.value)
        assert "chain 3 diverged" in text
        assert "Lower step_size (it was 50; try half), raise gamma, or lower nbeta" in text

    def test_a_block_whose_chains_have_all_diverged_is_not_run_to_the_end(self):
        steps = []

        def counting(model: nn.Module, batch: Any) -> Tensor:
            steps.append(1)
            return losses.cross_entropy(model, batch)

        problem = classification(loss=counting, observables=None)
        steps.clear()
        with pytest.raises(RuntimeError, match="only 0 of 4"):
            bif.attribute(problem, replace(TINY, step_size=50.0, draws=10_000))
        assert len(steps) < 3 * 1000

    def test_a_single_survivor_is_not_enough(self, monkeypatch):
        monkeypatch.setattr(SAMPLING, "run_chains", Disturbed(0, 1, float("nan")))
        with pytest.raises(RuntimeError, match="only 1 of 2 chains survived"):
            bif.attribute(classification(), replace(TINY, chains=2))

    def test_an_ordinary_run_is_far_from_the_limit(self):
        run = bif.attribute(classification(), replace(TINY, draws=200))
        assert run.summary["diverged_chains"] == []


class Interrupted:
    """A loss during which Ctrl-C is pressed."""

    def __init__(self, after: float) -> None:
        self.after, self.calls = after, 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        if self.calls > self.after:
            self.after = float("inf")
            raise KeyboardInterrupt
        return losses.cross_entropy(model, batch)


class TestInterruption:
    SETTINGS = replace(TINY, oracle="sequential", block_size=2, draws=12)

    def run(self, share: float) -> tuple[bif.Run, bif.Problem]:
        whole = Interrupted(float("inf"))
        bif.attribute(classification(loss=whole, observables=None), self.SETTINGS)
        problem = classification(loss=Interrupted(share * whole.calls), observables=None)
        return bif.attribute(problem, self.SETTINGS), problem

    @pytest.mark.parametrize("share", [0.4, 0.75, 0.95])
    def test_what_there_is_is_kept_and_marked_as_incomplete(self, share):
        run, _ = self.run(share)
        whole = bif.attribute(classification(observables=None), self.SETTINGS)
        for part, all_of_it in zip(run.traces.blocks, whole.traces.blocks, strict=False):
            assert torch.equal(part.train, all_of_it.train[:, : part.num_draws])
            assert torch.equal(part.query, all_of_it.query[:, : part.num_draws])
        assert 0 < run.traces.total_draws < whole.traces.total_draws
        assert run.summary["complete"] is False and run.manifest["complete"] is False
        assert run.influence.dataset.attrs["complete"] == 0
        (warning,) = [w for w in run.manifest["warnings"] if "interrupted" in w]
        assert "of 48 draws: the result is partial" in warning
        assert np.isfinite(run.influence.dataset["influence"]).all()

    def test_the_partial_result_is_saved_and_recognised_as_cut_short(self, tmp_path):
        run, problem = self.run(0.75)
        folder = run.save(tmp_path / "out")
        assert "partial" in (folder / "report.html").read_text()
        with pytest.raises(store.FolderInUse, match="cut short"):
            store.check_folder(folder, identity(problem, self.SETTINGS), overwrite=False)
        assert bif.Influence.load(folder).dataset.sizes["train"] == 20

    def test_too_early_it_fails_and_says_why(self):
        with pytest.raises(
            RuntimeError, match=r"only 0 of 4 chains .*interrupted after 2 of 48.*run longer\.$"
        ):
            self.run(0.12)


class TestWarnings:
    def test_chains_that_have_not_mixed_are_warned_of(self):
        # One long slide from w*: far from level, and every chain on its own way.
        settings = replace(TINY, draws=40, burn_in=0, thin=1, step_size=1e-3, gamma=0.01)
        run = bif.attribute(classification(), settings)
        assert run.summary["rhat_max"] > 1.05
        assert any("the chains have not mixed" in w for w in run.manifest["warnings"])

    def test_the_progress_bar_writes_to_the_terminal_only_where_asked_for(self, capsys):
        bif.attribute(classification(), TINY)
        assert capsys.readouterr() == ("", "")
        bif.attribute(classification(), TINY, show_progress=True)
        out, err = capsys.readouterr()
        assert out == "" and "24/24 draws" in err and "reliability" in err


class TestManifest:
    def test_it_says_what_was_run(self):
        run = bif.attribute(classification(), TINY)
        manifest = run.manifest
        assert manifest["settings"] == bif.calibrate(classification(), TINY).settings.as_dict()
        assert manifest["versions"]["bif"] == bif.__version__
        assert (manifest["num_train"], manifest["num_queries"]) == (20, 5)
        assert manifest["device"] == "cpu" and manifest["num_moving_weights"] == 43
        assert manifest["identity"] == identity(classification(), TINY)["identity"]

    def test_the_identity_changes_with_everything_that_matters(self):
        plain = identity(classification(), TINY)["identity"]
        x, y = labelled(20, seed=1)
        nudged = x.clone()
        nudged.view(torch.int64)[3, 2] ^= 1
        model = network()
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-15
        qx, qy = labelled(5, seed=2)
        others = {
            "train": classification(train=(nudged, y)),
            "queries.query": classification(queries=(qx, (qy + 1) % 3)),
            "model": classification(model=model),
            "train_weights": classification(train_weights=[1.0] * 20),
            "loss": classification(loss=losses.margin),
            "observable.margin": classification(
                observables=[
                    bif.Observable("loss", losses.cross_entropy),
                    bif.Observable("margin", losses.cross_entropy),
                ]
            ),
        }
        for key, problem in others.items():
            found = identity(problem, TINY)["identity"]
            assert [k for k in plain if plain[k] != found.get(k)] == [key]
        assert identity(classification(), replace(TINY, seed=1))["identity"] != plain
        assert identity(classification(), TINY)["identity"] == plain

    def test_a_dataset_has_the_fingerprint_of_its_tensors(self):
        a = identity(classification(), TINY)["identity"]["train"]
        b = identity(classification(train=Pairs(*labelled(20, seed=1))), TINY)["identity"]["train"]
        assert a == b

    def test_functions_without_source_have_a_name(self):
        built = eval("lambda model, batch: model(batch[0])[:, 0]")
        problem = classification(loss=built, observables=None)
        assert identity(problem, TINY)["identity"]["loss"] == "<lambda>"


def test_a_saved_run_holds_everything(tmp_path):
    run = bif.attribute(classification(), TINY)
    folder = run.save(tmp_path / "out", extra={"mine": 3})
    got = store.read_run(folder)
    assert got["summary"]["mine"] == 3 and got["summary"]["draws"] == 24
    assert got["manifest"]["identity"] == store._plain(run.manifest["identity"])
    np.testing.assert_array_equal(got["influence"]["influence"], run.influence.dataset["influence"])
    assert "<html" in (folder / "report.html").read_text()
    loaded = bif.Influence.load(folder)
    assert str(loaded.top("3", 2)) == str(run.influence.top("3", 2))
    assert str(loaded.top(0, 2, observable="margin")) == str(
        run.influence.top(0, 2, observable="margin")
    )


def test_a_saved_run_is_replaced_only_where_asked_for(tmp_path):
    run = bif.attribute(classification(), TINY)
    run.save(tmp_path / "run")
    with pytest.raises(store.FolderInUse, match="holds a run already.*overwrite=True"):
        run.save(tmp_path / "run")
    run.save(tmp_path / "run", overwrite=True)


def test_warnings_are_printed_with_the_run():
    run = bif.attribute(classification(), TINY)
    warned = replace(run, manifest={**run.manifest, "warnings": ["mind the gap"]})
    assert repr(warned).endswith("\nwarning: mind the gap")
