"""Controls beside the scores: what a ball, the gradient product and shuffled chains would say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import bif
from bif import baselines
from bif.report import render_report
from bif.report.controls import agreement
from bif.runs.controls import controls
from exact_problems import CENTER, QUERIES, TRAIN, Point, quadratic_loss
from small_problems import TINY, classification, labelled

pytestmark = pytest.mark.usefixtures("unchecked")

SETTINGS = bif.Settings(
    nbeta=60.0, gamma=20.0, chains=16, draws=150, burn_in=60, thin=2, step_size=0.1, friction=6.0,
    controls=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(classification(), SETTINGS)


def test_they_lie_beside_the_scores_and_change_nothing_of_them(run):
    without = bif.attribute(classification(), replace(SETTINGS, controls=False))
    for name, variable in without.influence.dataset.variables.items():
        np.testing.assert_array_equal(run.influence.dataset[name].values, variable.values)
    added = set(run.influence.dataset) - set(without.influence.dataset)
    assert added == {"control_nbeta_0", "control_gradient_product", "control_shuffled"}
    assert all(run.influence.dataset[n].shape == (2, 5, 20) for n in added)


def test_the_gradient_product_is_the_rivals_over_gamma(run):
    expected = baselines.gradient_product(classification(), observable="margin") / 20.0
    got = run.influence.dataset["control_gradient_product"].sel(observable="margin")
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_ball_is_exact_for_quadratic_losses():
    problem = bif.Problem(Point(CENTER), quadratic_loss, train=TRAIN.batch, queries=QUERIES.batch)
    settings = replace(SETTINGS, chains=256, block_size=256, draws=40, step_size=0.05)
    got = bif.attribute(problem, settings).influence.dataset["control_nbeta_0"].values[0]
    gradient = QUERIES.gradient(CENTER) @ TRAIN.gradient(CENTER).T / 20.0
    curvature = torch.einsum("qab,iba->qi", QUERIES.hessian, TRAIN.hessian) / (2 * 20.0**2)
    exact = -(gradient + curvature).numpy()
    # 4,096 independent draws: an error of about |l_i| |phi| / 64.
    assert np.abs(got - exact).max() < 0.12 * np.abs(exact).max()
    assert np.abs(got + exact).max() > 0.5 * np.abs(exact).max()


def test_shuffled_chains_have_no_influence_beyond_the_errors(run):
    dataset = run.influence.dataset
    ratio = dataset["control_shuffled"].values / dataset["standard_error"].values
    assert 0.5 < np.sqrt((ratio**2).mean()) < 1.6
    assert (
        abs(agreement(dataset["influence"].values[0], dataset["control_shuffled"].values[0])) < 0.6
    )


def test_candidates_have_controls_too_but_for_the_gradient_product():
    problem = classification(candidates=labelled(4, seed=5))
    dataset = bif.attribute(problem, SETTINGS).influence.dataset
    assert np.isfinite(dataset["control_nbeta_0"]).all()
    assert np.isnan(dataset["control_gradient_product"].values[..., 20:]).all()
    assert np.isfinite(dataset["control_gradient_product"].values[..., :20]).all()


def test_what_cannot_be_had_is_named(monkeypatch):
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no gradients of single items")

    with monkeypatch.context() as patch:
        patch.setattr("bif.runs.controls.signed_products", refuse)
        run = bif.attribute(classification(), replace(TINY, controls=True))
    assert "control_gradient_product" not in run.influence.dataset
    assert "control gradient_product: no gradients of single items" in run.manifest["warnings"]
    flat = replace(TINY, gamma=0.0, nbeta=5.0, controls=True)
    run = bif.attribute(classification(), flat)
    assert any("without gamma there is no ball" in w for w in run.manifest["warnings"])


def test_sums_have_no_traces_to_shuffle():
    with pytest.raises(ValueError, match="controls need the traces"):
        bif.attribute(classification(), SETTINGS, keep="sums")


def test_the_report_shows_the_agreement(run):
    page = render_report(
        run.influence.dataset,
        diagnostics=run.diagnostics,
        summary=run.summary,
        manifest=run.manifest,
    )
    assert "Beside the controls" in page and "chains shuffled" in page
    plain = run.influence.dataset.drop_vars(
        [n for n in run.influence.dataset if str(n).startswith("control_")]
    )
    page = render_report(
        plain, diagnostics=run.diagnostics, summary=run.summary, manifest=run.manifest
    )
    assert "Beside the controls" not in page


def test_agreement_is_spearmans_with_ties_at_their_mean():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (3, 40)).astype(float), rng.normal(size=(3, 40))
    expected = np.median([spearmanr(x, y)[0] for x, y in zip(a, b, strict=True)])
    assert agreement(a, b) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(agreement(np.zeros((1, 5)), b[:1, :5]))


def test_controls_are_deterministic():
    from bif.sampling.engine import Engine

    given = bif.attribute(classification(), SETTINGS)
    engine = Engine(classification(), bif.calibrate(classification(), SETTINGS).settings)
    again, _ = controls(engine, given.traces)
    for name, values in again.items():
        np.testing.assert_array_equal(given.influence.dataset[f"control_{name}"].values, values)
