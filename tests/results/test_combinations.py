"""Scores of several models averaged, and sampled scores drawn to their linear parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bif
from bif.estimate.intervals import t_quantile
from command_line import caller
from small_problems import TINY, classification, labelled, network

pytestmark = pytest.mark.usefixtures("unchecked", "no_page")


def run_of(seed: int, **changed) -> bif.Run:
    return bif.attribute(classification(model=network(seed=seed), **changed), TINY)


@pytest.fixture(scope="module")
def runs() -> list[bif.Run]:
    return [run_of(seed) for seed in range(3)]


class TestAverage:
    def test_it_is_the_mean_and_its_error_that_of_models(self, runs):
        found = bif.average([run.influence for run in runs]).dataset
        each = np.stack([run.influence.dataset["influence"].values for run in runs])
        np.testing.assert_allclose(found["influence"], each.mean(axis=0), rtol=1e-6)
        error = each.std(axis=0, ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(found["standard_error"], error, rtol=1e-5)
        assert found.attrs["num_models"] == 3
        assert found.attrs["error_quantile"] == t_quantile(3)

    def test_it_is_trusted_only_if_all_runs_are(self, runs):
        marked = [
            bif.Influence(run.influence.dataset.assign_attrs(trusted=int(i > 0)))
            for i, run in enumerate(runs)
        ]
        assert not bif.average(marked).trusted
        assert bif.average(marked[1:]).trusted

    def test_a_single_model_is_refused(self, runs):
        with pytest.raises(ValueError, match="two models or more, got 1"):
            bif.average([runs[0].influence])

    def test_other_queries_are_refused_by_name(self, runs):
        other = run_of(0, queries=labelled(4, seed=2))
        with pytest.raises(ValueError, match="model 1 was asked about another query_id"):
            bif.average([runs[0].influence, other.influence])

    def test_runs_made_with_top_are_refused(self, runs):
        top = bif.attribute(classification(), TINY, top=2)
        with pytest.raises(ValueError, match="average runs that keep all"):
            bif.average([top.influence, runs[0].influence])

    def test_the_command_writes_scores_and_figures(self, runs, tmp_path, monkeypatch, capsys):
        for i, run in enumerate(runs[:2]):
            run.save(tmp_path / str(i))
        out = tmp_path / "mean"
        bif_command = caller(monkeypatch, capsys)
        code, said, err = bif_command("average", tmp_path / "0", tmp_path / "1", "--out", out)
        assert code == 0, err
        assert "num models" in said
        assert (out / "influence.zarr").is_dir() and (out / "summary.json").is_file()


class TestShrinkage:
    @staticmethod
    def scores(*, tau: float, sigma: float, seed: int = 0) -> bif.Influence:
        """Corrections of spread tau under noise of spread sigma, 4,000 items."""
        source = np.random.default_rng(seed)
        run = run_of(0)
        dataset = run.influence.dataset.isel(observable=[0], query=[0]).drop_dims("train")
        linear = source.normal(size=(1, 1, 4000))
        true = linear + tau * source.normal(size=linear.shape)
        axes = ("observable", "query", "train")
        noisy = true + sigma * source.normal(size=linear.shape)
        return bif.Influence(
            dataset.assign(
                influence=(axes, noisy), derivative=(axes, noisy), correlation=(axes, noisy),
                standard_error=(axes, np.full(linear.shape, sigma)), linear=(axes, linear),
                truth=(axes, true),
            )
        )  # fmt: skip

    def test_kappa_is_the_share_of_the_spread_that_is_no_noise(self):
        found = self.scores(tau=1.0, sigma=2.0).shrunk_to_linear().dataset["kappa"]
        # Var of the mean of 4,000 squares of spread 5: 5·sqrt(2/4000) = .11 of 5.
        assert abs(float(found.squeeze()) - 0.2) < 5 * 0.8 * np.sqrt(2 / 4000)

    def test_it_is_nearer_to_the_truth_than_either(self):
        before = self.scores(tau=1.0, sigma=1.0)
        after = before.shrunk_to_linear().dataset
        truth = before.dataset["truth"]
        errors = [
            float(((x - truth) ** 2).mean())
            for x in (after["influence"], before.dataset["influence"], before.dataset["linear"])
        ]
        assert errors[0] < 0.6 * min(errors[1:])

    def test_without_anything_that_is_not_linear_kappa_is_near_zero(self):
        found = self.scores(tau=0.0, sigma=1.0).shrunk_to_linear().dataset["kappa"]
        assert 0 <= float(found.squeeze()) < 5 * np.sqrt(2 / 4000)

    def test_runs_without_a_linear_part_are_refused(self, runs):
        with pytest.raises(KeyError, match="no linear part"):
            runs[0].influence.shrunk_to_linear()

    def test_of_a_run_with_anchors_derivatives_follow(self):
        run = bif.attribute(classification(), replace(TINY, estimator="anchored"))
        found = run.influence.shrunk_to_linear().dataset
        ratio = found.attrs["nbeta"] / found.attrs["num_train"]
        np.testing.assert_allclose(found["derivative"], ratio * found["influence"], rtol=1e-5)
        assert ((found["kappa"] >= 0) & (found["kappa"] <= 1)).all()
