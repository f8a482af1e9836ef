"""Similarities beside the loss kernel: their items, their numbers, and a ball without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.kernel import (
    FeatureKernel,
    TokenOverlap,
    activation_kernel,
    agreement,
    ball_kernel,
    gradient_kernel,
    input_kernel,
    label_kernel,
    tree_of,
)
from class_trees import graph_of
from small_problems import TINY, classification, labelled, normal


def problem() -> bif.Problem:
    """Twenty train items and six candidates with labels, and five queries without."""
    x, y = labelled(20, seed=1)
    more, classes = labelled(6, seed=5)
    return classification(
        train=bif.Items((x, y), labels=[f"c{int(c)}" for c in y]),
        candidates=bif.Items((more, classes), labels=[f"c{int(c)}" for c in classes]),
    )


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(problem(), TINY)


@pytest.mark.parametrize("sides", ["train", "query", "both"])
def test_all_have_the_items_and_labels_of_the_loss_kernel(run: bif.Run, sides):
    posed, kernel = problem(), bif.loss_kernel(run, sides)
    others = [
        activation_kernel(posed, sides), gradient_kernel(posed, sides),
        input_kernel(posed, sides), ball_kernel(posed, run, sides),
    ]  # fmt: skip
    for other in others:
        assert other.ids == kernel.ids and other.labels == kernel.labels
        assert other.block().shape == (len(kernel), len(kernel))


def test_activations_are_the_inputs_of_the_last_linear_layer():
    posed = problem()
    x = torch.cat([labelled(20, seed=1)[0], labelled(6, seed=5)[0]])
    assert isinstance(posed.model, nn.Sequential)
    with torch.no_grad():
        hidden = posed.model[:2](x)
    found = activation_kernel(posed)
    torch.testing.assert_close(found.features, hidden)
    torch.testing.assert_close(activation_kernel(posed, layer="0").features, x)
    with pytest.raises(ValueError, match="no layer 'none'"):
        activation_kernel(posed, layer="none")


def test_gradients_are_those_of_single_items_and_projections_keep_cosines():
    posed = problem()
    model, (x, y) = posed.model, labelled(20, seed=1)
    found = gradient_kernel(posed)
    for k in (0, 7):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1]).backward()
        row = torch.cat([leaf.grad.flatten() for leaf in model.parameters()])  # type: ignore[union-attr]
        torch.testing.assert_close(found.features[k], row)
    model.zero_grad()
    projected = gradient_kernel(posed, dimension=4096, seed=1)
    assert projected.features.shape == (26, 4096)
    difference = (projected.block() - found.block())[~torch.eye(26, dtype=torch.bool)]
    # each has a variance of (1 + cosine²) / 4096 at most, before its length is divided out
    assert difference.square().mean() < 2 / 4096
    with pytest.raises(ValueError, match="at least 1, got 0"):
        gradient_kernel(posed, dimension=0)


def test_inputs_are_centred_over_the_items():
    x, _ = labelled(20, seed=1)
    more, _ = labelled(6, seed=5)
    rows = torch.cat([x, more])
    rows = nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
    found = input_kernel(problem())
    assert isinstance(found, FeatureKernel)
    torch.testing.assert_close(found.block(), rows @ rows.T)
    with pytest.raises(ValueError, match=r"no tensor 'pixels': it has batch\[0\], batch\[1\]"):
        input_kernel(problem(), leaf="pixels")


def test_tokens_are_compared_as_sets():
    found = input_kernel(problem(), leaf="batch[1]", padding=0)
    assert isinstance(found, TokenOverlap)
    y = labelled(20, seed=1)[1]
    expected = (y[:, None] == y) & (y > 0)
    np.testing.assert_array_equal(found.block(slice(20), slice(20)), expected.double())


def test_the_label_kernel_is_one_within_a_class():
    kernel = activation_kernel(problem())
    classes = np.array(kernel.labels["label"])
    found = label_kernel(kernel)
    np.testing.assert_array_equal(found.block(), classes[:, None] == classes)
    with pytest.raises(KeyError, match="no label 'species': they have label"):
        label_kernel(kernel, "species")


def test_agreement_takes_them_and_the_labels_alone_say_nothing():
    tree = tree_of(graph_of("r x", "x c0", "x c1", "r c2"))
    kernel = activation_kernel(problem())
    found = agreement(kernel, tree, num_bootstrap=2).figures
    assert np.isfinite(found["rank_correlation"].value)
    assert np.isnan(found["rank_correlation"].standard_error)
    found = agreement(label_kernel(kernel), tree, num_bootstrap=2).figures
    assert np.isnan(found["rank_correlation"].value) and found["triplet_accuracy"].value == 0.5


def linear_problem() -> bif.Problem:
    """A linear loss, whose covariance under the ball is exact."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return 1 + model(batch[0])[:, 0]

    model = nn.Linear(3, 1, bias=False).double()
    return bif.Problem(model, loss, train=(normal(12, 3, seed=0),), queries=(normal(2, 3, seed=1),))


def test_the_ball_has_the_covariance_of_the_gaussian_around_w():
    posed, gamma, draws = linear_problem(), 5.0, 400
    settings = bif.Settings(
        chains=4, draws=draws, burn_in=0, thin=1, step_size=1e-3, friction=1.0, gamma=gamma,
        nbeta=1.0, estimator="covariance",
    )  # fmt: skip
    run = bif.attribute(posed, settings)
    ball = ball_kernel(posed, run)
    assert ball.chains.bincount().tolist() == [200] * 8
    x = normal(12, 3, seed=0)
    exact = x @ x.T / gamma
    # Wishart: Var K_ij = (K_ij² + K_ii K_jj) / (M - 1), M = 1,600 independent draws
    spread = ((exact**2 + exact.diag()[:, None] * exact.diag()) / (4 * draws - 1)) ** 0.5
    error = (ball.block(kind="covariance") - exact) / spread
    assert error.abs().max() < 5
    mutant = (ball.block(kind="covariance") / 2 - exact) / spread
    assert mutant.abs().max() > 5


def test_a_ball_beside_a_run_from_its_folder_is_the_same(run: bif.Run, tmp_path: Path):
    bif.attribute(problem(), TINY, out=tmp_path / "run")
    again = ball_kernel(problem(), bif.load(tmp_path / "run"))
    torch.testing.assert_close(again.losses, ball_kernel(problem(), run).losses)


def test_what_has_no_ball_is_refused(run: bif.Run):
    with pytest.raises(ValueError, match="the problem has other items than the run"):
        ball_kernel(classification(), run)
    solved = bif.attribute(classification(), bif.Settings(estimator="response"))
    with pytest.raises(ValueError, match="the run was solved: a ball stands beside chains"):
        ball_kernel(classification(), solved)
    loose = bif.attribute(
        classification(), bif.Settings(**{**TINY.as_dict(), "gamma": 0.0, "nbeta": 20.0})
    )
    with pytest.raises(ValueError, match="the run has gamma=0, .* Attribute with gamma > 0"):
        ball_kernel(classification(), loose)
    with pytest.raises(ValueError, match="sides"):
        activation_kernel(problem(), "all")  # type: ignore[arg-type]
