"""Kernels by features and by sets of tokens, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from bif.estimate.item_kernel import FeatureKernel, ItemKernel
from bif.estimate.token_overlap import TokenOverlap
from small_problems import integers, normal

LABELS = ["a"] * 5 + ["b"] * 4 + ["c"]


def features(count: int = 10, *, seed: int = 0) -> FeatureKernel:
    ids = tuple(f"i{k}" for k in range(count))
    return FeatureKernel(normal(count, 7, seed=seed), ids, {"label": tuple(LABELS[:count])})


def tokens(count: int = 10) -> TokenOverlap:
    sets = [row[: 3 + k % 4].numpy() for k, row in enumerate(integers(9, count, 8, seed=0))]
    return TokenOverlap(tuple(sets), tuple(f"i{k}" for k in range(count)), {"label": tuple(LABELS)})


def jaccard(kernel: TokenOverlap) -> np.ndarray:
    sets = [set(row.tolist()) for row in kernel.tokens]
    return np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])


def cosines(kernel: FeatureKernel) -> np.ndarray:
    rows = kernel.features.numpy()
    lengths = np.linalg.norm(rows, axis=1)
    return rows @ rows.T / np.outer(lengths, lengths)


@pytest.mark.parametrize(
    ("kernel", "dense"), [(features(), cosines(features())), (tokens(), jaccard(tokens()))]
)
def test_blocks_pairs_means_and_neighbours_are_those_of_the_dense_matrix(
    kernel: ItemKernel, dense: np.ndarray
):
    close = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(kernel.block(), dense, **close)
    np.testing.assert_allclose(kernel.block([1, 4], slice(3, 6)), dense[[1, 4], 3:6], **close)
    ((start, block),) = kernel.each_block()
    assert start == 0
    np.testing.assert_allclose(block, dense, **close)
    first, second = np.array([0, 3, 5]), np.array([2, 9, 5])
    np.testing.assert_allclose(kernel.at_pairs(first, second), dense[first, second], **close)
    x = kernel.embedding()
    np.testing.assert_allclose(x @ x.T, dense, **close)
    assert kernel.mean_block([0, 1], [1, 2, 3]) == pytest.approx(
        (dense[0, 1:4].sum() + dense[1, 2:4].sum()) / 5
    )
    names, means = kernel.class_blocks(LABELS)
    assert names == ["a", "b", "c"] and np.isnan(means[2, 2])
    off = ~np.eye(5, dtype=bool)
    assert means[0, 0] == pytest.approx(dense[:5, :5][off].mean())
    assert means[0, 1] == pytest.approx(dense[:5, 5:9].mean())
    assert means[1, 0] == pytest.approx(means[0, 1])
    np.fill_diagonal(dense := dense.copy(), -np.inf)
    values = kernel.nearest(3)[1]
    np.testing.assert_allclose(values, -np.sort(-dense, axis=1)[:, :3], **close)


@pytest.mark.parametrize("kernel", [features(), tokens()])
def test_the_kernel_of_some_items_is_a_part_of_the_kernel(kernel: ItemKernel):
    part = kernel.of_items([7, 2, 5])
    assert part.ids == ("i7", "i2", "i5") and part.labels["label"] == ("b", "a", "b")
    np.testing.assert_allclose(part.block(), kernel.block([7, 2, 5], [7, 2, 5]), atol=1e-12)


def test_inner_products_and_counts_are_the_covariance_kind():
    rows = features().features
    np.testing.assert_allclose(features().block(kind="covariance"), rows @ rows.T)
    sets = [set(row.tolist()) for row in tokens().tokens]
    shared = [[len(a & b) for b in sets] for a in sets]
    np.testing.assert_array_equal(tokens().block(kind="covariance"), shared)
    rows = tokens().embedding("covariance")
    np.testing.assert_array_equal(rows @ rows.T, shared)
    pairs = np.array([0, 1]), np.array([5, 1])
    expected = [shared[0][5], shared[1][1]]
    np.testing.assert_array_equal(tokens().at_pairs(*pairs, kind="covariance"), expected)


def test_blocks_of_more_items_than_one_block_holds_are_whole():
    sets = tuple(row.numpy() for row in integers(40, 1500, 5, seed=1))
    kernel = TokenOverlap(sets, tuple(map(str, range(1500))), {})
    classes = ["a", "b", "c"] * 500
    dense = np.concatenate([block.numpy() for _, block in kernel.each_block()])
    np.fill_diagonal(dense, np.nan)
    means = kernel.class_blocks(classes)[1]
    assert means[1, 1] == pytest.approx(np.nanmean(dense[1::3, 1::3]))
    assert means[0, 2] == pytest.approx(np.nanmean(dense[::3, 2::3]))
    pairs = np.arange(1400), np.arange(1400) + 100
    np.testing.assert_allclose(kernel.at_pairs(*pairs), dense[pairs])


def test_a_kernel_without_chains_has_no_error():
    value, error = features().jackknife(lambda kernel: kernel.class_blocks(LABELS)[1])
    assert value.shape == error.shape == (3, 3) and np.isnan(error).all()


def test_an_item_without_tokens_overlaps_with_none():
    empty = TokenOverlap((np.zeros(0, int), np.array([1])), ("a", "b"), {})
    assert empty.block().tolist() == [[0, 0], [0, 1]]


def test_what_does_not_fit_is_refused():
    rows = normal(3, 2, seed=0)
    with pytest.raises(ValueError, match="2 ids of 3 items, expected one for each"):
        FeatureKernel(rows, ("a", "b"), {})
    with pytest.raises(ValueError, match="1 labels 'x' of 3 items"):
        FeatureKernel(rows, ("a", "b", "c"), {"x": ("y",)})
    with pytest.raises(ValueError, match="NaN or infinite for 3 items, such as a: look at"):
        FeatureKernel(rows / 0, ("a", "b", "c"), {})
    with pytest.raises(ValueError, match="0 ids of 10 items"):
        TokenOverlap(tokens().tokens, (), {})
    with pytest.raises(ValueError, match="1 labels, expected one for each of 10"):
        tokens().class_blocks(["a"])
    with pytest.raises(ValueError, match="10 neighbours of 10 items"):
        features().nearest(10)
    many = TokenOverlap((np.array([1]),) * 5001, tuple(map(str, range(5001))), {})
    with pytest.raises(ValueError, match="5,001 items: .* at most 5,000. Use nearest"):
        many.embedding()
