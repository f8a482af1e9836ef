"""Squares of kernels against dense matrices, and without the noise of the draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bif import LossKernel
from bif.estimate.item_kernel import FeatureKernel, ItemKernel
from bif.kernel import agreement, squared_kernel, tree_of
from class_trees import graph_of, kernel_of, random_kernel
from small_problems import normal

LABELS = [*"aaaabbbc"]


def features() -> FeatureKernel:
    return FeatureKernel(normal(8, 5, seed=0), tuple(map(str, range(8))), {})


def pairs_of_chains(kernel: LossKernel) -> np.ndarray:
    """Return the mean over pairs of chains of the product of their parts of a correlation."""
    x = kernel.embedding().numpy()
    chains = kernel.chains.numpy()
    parts = {c: x[:, chains == c] @ x[:, chains == c].T for c in np.unique(chains)}
    shares = {c: (chains == c).mean() for c in parts}
    both = [(a, b) for a in parts for b in parts if a != b]
    products = np.sum([parts[a] * parts[b] for a, b in both], axis=0)
    return products / sum(shares[a] * shares[b] for a, b in both)


@pytest.mark.parametrize(
    ("kernel", "dense"),
    [
        (features(), features().block().numpy() ** 2),
        (random_kernel(LABELS), pairs_of_chains(random_kernel(LABELS))),
    ],
)
def test_squares_are_those_of_the_dense_matrix(kernel: ItemKernel, dense: np.ndarray):
    found, close = squared_kernel(kernel), {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(found.block(), dense, **close)
    np.testing.assert_allclose(found.block([1, 4], slice(3, 6)), dense[[1, 4], 3:6], **close)
    np.testing.assert_allclose(next(found.each_block())[1], dense, **close)
    first, second = np.array([0, 3]), np.array([7, 3])
    np.testing.assert_allclose(found.at_pairs(first, second), dense[first, second], **close)
    _, means = found.class_blocks(LABELS)
    assert means[0, 0] == pytest.approx(dense[:4, :4][~np.eye(4, dtype=bool)].mean())
    assert means[0, 1] == pytest.approx(dense[:4, 4:7].mean()) and np.isnan(means[2, 2])
    assert found.mean_block([0, 1], [1, 2]) == pytest.approx(
        (dense[0, 1:3].sum() + dense[1, 2]) / 3
    )
    part = found.of_items([6, 0, 2])
    np.testing.assert_allclose(part.block(), dense[np.ix_([6, 0, 2], [6, 0, 2])], **close)


def test_squares_of_few_draws_are_right_in_the_mean():
    pairs, draws, covariance = 20_000, 8, 0.6
    first, other = normal(pairs, draws, seed=1), normal(pairs, draws, seed=2)
    second = covariance * first + (1 - covariance**2) ** 0.5 * other
    ids = tuple(map(str, range(2 * pairs)))
    kernel = LossKernel(torch.cat([first, second]), torch.arange(draws) // 2, ids, {})
    places = np.arange(pairs)
    found = squared_kernel(kernel).at_pairs(places, pairs + places, kind="covariance")
    # by Isserlis' theorem; the mean over all draws ties the chains by -1/M
    true = covariance**2 + (1 + covariance**2) / (draws - 1) ** 2
    error = found.std() / pairs**0.5
    assert abs(found.mean() - true) < 5 * error
    mutant = found * ((draws - 1) / draws) ** 2  # of shares that are not of one
    assert abs(mutant.mean() - true) > 5 * error


def test_class_blocks_are_the_mean_squares_of_the_loss_kernel():
    kernel = random_kernel(LABELS)
    value, error = squared_kernel(kernel).jackknife(lambda k: k.class_blocks(LABELS)[1][0, 1])
    expected = kernel.jackknife(lambda k: squared_kernel(k).mean_block(range(4), range(4, 7)))
    assert value == pytest.approx(float(expected[0])) and error == pytest.approx(float(expected[1]))


def test_competing_classes_are_alike_by_squares_and_not_by_correlations():
    common = normal(2, 160, seed=3)
    signs, groups = [1, -1, 1, -1], [0, 0, 1, 1]
    rows = [s * common[g] for s, g in zip(signs, groups, strict=True) for _ in range(3)]
    losses = torch.stack(rows) + 0.3 * normal(12, 160, seed=4)
    kernel = kernel_of(losses, [c for c in "abcd" for _ in range(3)])
    tree = tree_of(graph_of("r x", "r y", "x a", "x b", "y c", "y d"))
    given: Any = {"num_bootstrap": 2}
    found = agreement(kernel, tree, **given).figures["triplet_accuracy"]
    squares = agreement(squared_kernel(kernel), tree, **given).figures["triplet_accuracy"]
    assert found.value == 0 and squares.value == 1 and np.isfinite(squares.standard_error)


def test_what_a_square_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a squared kernel has no short rows, .* use nearest"):
        squared_kernel(features()).embedding()
    with pytest.raises(ValueError, match="needs two chains, and there is one"):
        squared_kernel(random_kernel(LABELS).of_chains([0]))
