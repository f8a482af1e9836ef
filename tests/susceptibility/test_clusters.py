"""Clusters of contexts on matrices that have some, and on those that only look so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bif.estimate.partitions import adjusted_rand_index, largest_first
from bif.susceptibility import context_clusters
from law_checks import STANDARD_ERRORS
from made_matrices import made

KINDS = np.repeat(np.arange(3), [60, 40, 20])


def of_kinds(seed: int) -> np.ndarray:
    """Susceptibilities of 6 components that depend on the kind of context alone."""
    return np.random.default_rng(seed).normal(size=(6, 3))[:, KINDS]


def noise(seed: int, size: float) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda: size * rng.normal(size=(6, 120))


def test_kinds_of_contexts_are_found():
    found = context_clusters(made(of_kinds(0), noise(1, 0.2)))
    assert found.count == 3 and found.agreement > 0.95 and found.above_nulls
    np.testing.assert_array_equal(found.labels, KINDS)  # the largest first
    assert set(found.agreements) == set(range(2, 11)) and set(found.nulls) == {
        "shuffled", "cloud", "noise",
    }  # fmt: skip
    between = sum(
        (KINDS == k).sum() * (found_mean**2).sum()
        for k, found_mean in enumerate(_means(made(of_kinds(0), noise(1, 0.2)).standardised()))
    )
    assert found.separation == pytest.approx(between / (6 * 120))


def _means(x: np.ndarray) -> list[np.ndarray]:
    return [x[:, KINDS == k].mean(axis=1) for k in range(3)]


def test_a_cloud_that_components_share_is_not_called_clusters():
    """One direction in normal numbers: above shuffled contexts, and no groups.  One in twenty."""
    above, shuffled = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=(6, 1)) @ rng.normal(size=(1, 120)) + 0.5 * rng.normal(
            size=(6, 120)
        )
        found = context_clusters(made(signal, noise(seed, 1e-3)), 3, num_shuffles=20)
        above.append(found.above_nulls)
        shuffled.append(found.separation > found.nulls["shuffled"])
    assert np.mean(above) < 0.05 + STANDARD_ERRORS * (0.05 * 0.95 / 20) ** 0.5
    assert np.mean(shuffled) > 0.5  # mutant: the weaker null alone


def test_noise_that_is_alike_for_like_contexts_is_not_called_clusters():
    above, mutants = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = made(np.zeros((6, 120)), lambda rng=rng: rng.normal(size=(6, 3))[:, KINDS])
        found = context_clusters(matrix, 3, num_shuffles=20)
        above.append(found.above_nulls)
        mutants.append(
            context_clusters(replace(matrix, noise=0 * matrix.noise), 3, num_shuffles=20)
        )
    assert np.mean(above) < 0.05 + STANDARD_ERRORS * (0.05 * 0.95 / 20) ** 0.5
    assert np.mean([one.above_nulls for one in mutants]) > 0.5


def test_without_anything_in_common_halves_agree_by_chance():
    found = [
        context_clusters(made(np.zeros((6, 120)), noise(seed, 1.0)), 3, num_shuffles=20)
        for seed in range(12)
    ]
    agreements = np.array([one.agreement for one in found])
    assert abs(agreements.mean()) < STANDARD_ERRORS * agreements.std() / 12**0.5


def test_clusters_are_numbered_from_the_largest_on():
    labels = largest_first(np.array([4, 4, 1, 9, 9, 9]))
    assert labels.tolist() == [1, 1, 2, 0, 0, 0]
    assert adjusted_rand_index(labels, np.array([0, 0, 1, 2, 2, 2])) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: context_clusters(m, 1), "count is 1: expected 2 to 120"),
        (lambda m: context_clusters(m, num_shuffles=3), "at least 20 shuffles"),
        (lambda m: context_clusters(m, level=0.0), "quantile between 0 and 1"),
        (
            lambda m: context_clusters(
                replace(m, value=m.value[:1], components=("a",), halves=m.halves[:, :1])
            ),
            "at least 2 components and 3 contexts, got 1 and 120",
        ),
    ],
)
def test_clusters_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(made(of_kinds(0), noise(1, 0.2)))
