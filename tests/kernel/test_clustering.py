"""Clusters of items and of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bif.kernel.clustering as module
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.partitions import adjusted_rand_index
from bif.kernel import class_linkage, clusters
from small_problems import normal

SIZES = (12, 9, 7, 5)
TRUE = np.repeat(np.arange(4), SIZES)


def kernel_of(sizes: tuple[int, ...] = SIZES, *, seed: int = 0) -> LossKernel:
    """Items that correlate by .8 with those of their group."""
    own = np.repeat(np.arange(len(sizes)), sizes)
    losses = 2 * normal(len(sizes), 160, seed=seed)[own] + normal(len(own), 160, seed=seed + 1)
    order = np.random.default_rng(0).permutation(len(own))
    labels = {"label": tuple(f"class {k}" for k in own[order])}
    chains = torch.arange(160) // 20
    return LossKernel(losses[order], chains, tuple(map(str, range(len(own)))), labels)


def groups(kernel: LossKernel) -> np.ndarray:
    return np.array([int(label[-1]) for label in kernel.labels["label"]])


def test_the_groups_are_found_and_numbered_by_size():
    kernel = kernel_of()
    found = clusters(kernel)
    np.testing.assert_array_equal(found.labels, groups(kernel))
    assert found.count == 4 and found.agreement == found.agreements[4] == 1
    assert set(found.agreements) == set(range(2, 6))
    assert found.named(kernel.labels["label"]) == [f"class {k} 100 %" for k in range(4)]


def test_a_number_of_clusters_may_be_given():
    found = clusters(kernel_of(), 2)
    assert found.count == 2 and set(found.agreements) == {2}


def test_clusters_of_noise_do_not_agree():
    losses = normal(60, 160, seed=7)
    kernel = LossKernel(losses, torch.arange(160) // 20, tuple(map(str, range(60))), {})
    assert abs(clusters(kernel, 6).agreement) < 0.1


def test_items_that_were_not_joined_go_to_the_cluster_they_correlate_with(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "_JOINED", 20)
    kernel = kernel_of()
    np.testing.assert_array_equal(clusters(kernel, 4).labels, groups(kernel))


def test_classes_are_joined_by_their_mean_correlations():
    shared = normal(2, 160, seed=3)[[0, 0, 1, 1]]  # classes 0 and 1 are alike, and 2 and 3
    own = (shared + normal(4, 160, seed=4)).repeat_interleave(5, dim=0)
    losses = 2 * own + normal(20, 160, seed=5)
    labels = {"kind": tuple(f"c{k // 5}" for k in range(20))}
    kernel = LossKernel(losses, torch.arange(160) // 20, tuple(map(str, range(20))), labels)
    names, joins = class_linkage(kernel, "kind")
    assert names == ["c0", "c1", "c2", "c3"]
    assert {tuple(sorted(row[:2].astype(int))) for row in joins} == {(0, 1), (2, 3), (4, 5)}
    means = kernel.class_blocks(labels["kind"])[1]
    assert joins[-1, 2] == pytest.approx(1 - means[:2, 2:].mean())


def test_the_index_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    source = np.random.default_rng(0)
    for _ in range(20):
        a, b = source.integers(source.integers(1, 6), size=(2, 30))
        assert adjusted_rand_index(a, b) == pytest.approx(metrics.adjusted_rand_score(a, b))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: clusters(k, 1), "1 clusters of 33 items, expected 2 or more, at most 33"),
        (lambda k: clusters(k, 34), "34 clusters of 33 items"),
        (lambda k: clusters(k.of_items([0, 1])), "some clusters of 2 items"),
        (lambda k: clusters(k.of_chains([0])), "halves of the chains need two"),
        (lambda k: class_linkage(k.of_items([0])), "all items are of class 'class .'"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(kernel_of())
