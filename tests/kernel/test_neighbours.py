"""Neighbours against the dense matrix, and what is said of their noise against its law."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

import bif.estimate.neighbours as module
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.neighbours import kept_share
from bif.kernel import find_neighbours, neighbour_stability, recall, shared_neighbours
from small_problems import normal

CHAINS = 8


def kernel_of(losses: torch.Tensor) -> LossKernel:
    chains = torch.arange(losses.shape[1]) * CHAINS // losses.shape[1]
    return LossKernel(losses, chains, tuple(map(str, range(len(losses)))), {})


def grouped(items: int, draws: int = 80, *, groups: int = 20, seed: int = 0) -> torch.Tensor:
    common = normal(groups, draws, seed=seed)
    return common[torch.arange(items) % groups] + normal(items, draws, seed=seed + 1)


@pytest.mark.slow  # its compilation takes half a minute
def test_an_approximate_search_finds_the_neighbours_and_their_exact_correlations():
    kernel = kernel_of(grouped(1500))
    threads = torch.get_num_threads()
    found = find_neighbours(kernel, 15, search="approximate")
    assert torch.get_num_threads() == threads  # numba starts its own for all of the process
    exact = find_neighbours(kernel, 15)
    assert exact.exact and exact.recall == 1 and not found.exact
    assert found.recall == pytest.approx(recall(kernel, found.places))
    assert found.recall >= 0.9
    dense = kernel.block().numpy()
    np.testing.assert_allclose(
        found.values, np.take_along_axis(dense, found.places, axis=1), atol=1e-6
    )
    assert (np.diff(found.values, axis=1) <= 0).all()
    assert (found.places != np.arange(1500)[:, None]).all()


def test_of_a_descents_candidates_the_nearest_are_taken_by_their_exact_correlations(
    monkeypatch: pytest.MonkeyPatch,
):
    """The descent itself: the test above.  This one takes no compilation."""
    kernel = kernel_of(grouped(40))
    before = torch.get_num_threads()

    class Descent:
        def __init__(self, x: np.ndarray, *, n_neighbors: int, **_: object) -> None:
            torch.set_num_threads(before + 1)  # as OpenMP's are when numba starts
            order = np.argsort(-(x @ x.T), axis=1)[:, :n_neighbors].astype(np.int32)
            order[:, -1] = -1  # where a descent found fewer
            self.neighbor_graph = order[:, ::-1], np.zeros(order.shape)

    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Descent))
    try:
        found, exact = (find_neighbours(kernel, 3, search=s) for s in ("approximate", "exact"))
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert not found.exact and found.recall == 1
    np.testing.assert_array_equal(found.places, exact.places)
    np.testing.assert_allclose(found.values, exact.values, atol=1e-6)


def test_large_kernels_are_searched_approximately(monkeypatch: pytest.MonkeyPatch):
    kernel = kernel_of(grouped(30))
    monkeypatch.setattr(module, "MOST_EXACT", 29)
    monkeypatch.setattr(module, "_descend", lambda k, count, seed: k.nearest(count))
    found = find_neighbours(kernel, 3)
    assert not found.exact and found.recall == 1


def test_recall_is_the_share_of_true_neighbours():
    kernel = kernel_of(grouped(40))
    true = kernel.nearest(4)[0]
    half = np.concatenate([true[:, :2], kernel.nearest(8)[0][:, 6:]], axis=1)
    assert recall(kernel, half) == 0.5
    assert recall(kernel, half, num_items=7) == 0.5


def test_halves_of_the_chains_are_compared_as_the_kernel_does():
    kernel = kernel_of(grouped(60))
    found = neighbour_stability(kernel, 5)
    np.testing.assert_array_equal(found.kept, shared_neighbours(kernel.halves(), 5))


def test_several_kernels_are_compared_two_by_two():
    kernels = [kernel_of(grouped(40, seed=seed)) for seed in (0, 10, 20)]
    places = [kernel.nearest(5)[0] for kernel in kernels]
    expected = [kept_share(places[a], places[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(shared_neighbours(kernels, 5), np.mean(expected, axis=0))


def false_alarms(losses: torch.Tensor, rate: float) -> tuple[float, float]:
    """The share of items that are called stable, and five standard errors above the rate."""
    stable = neighbour_stability(kernel_of(losses), 15, false_alarms=rate).stable
    return stable.mean(), rate + 5 * (rate / len(stable)) ** 0.5


def test_of_noise_at_most_the_stated_share_is_called_stable():
    called, most = false_alarms(normal(1000, 80, seed=3), 0.05)
    assert called <= most


def test_items_that_are_near_to_all_make_no_neighbours_stable():
    # a common factor with loadings of its own: both halves name the same few items everywhere
    loading = 1 + normal(1000, 1, seed=4).abs()
    losses = loading * normal(1, 80, seed=5) + normal(1000, 80, seed=6)
    called, most = false_alarms(losses, 0.05)
    kept = neighbour_stability(kernel_of(losses), 15).kept
    assert called <= most
    blind = binom.sf(np.round(15 * kept) - 1, 15, 15 / 999) <= 0.05
    assert blind.mean() > 2 * most  # the mutant, which knows no hubs


def test_neighbours_of_noise_are_kept_by_chance_and_those_of_twins_always():
    kept = neighbour_stability(kernel_of(normal(200, 80, seed=7)), 10).kept
    assert kept.mean() == pytest.approx(10 / 199, rel=0.2)
    twins = normal(20, 80, seed=3).repeat_interleave(2, dim=0) + 0.1 * normal(40, 80, seed=4)
    assert (neighbour_stability(kernel_of(twins), 1).kept == 1).all()


def test_items_that_never_move_have_no_stable_neighbours():
    losses = grouped(60, 80)
    losses[5], losses[17] = 0.3, 0.3
    losses[30, kernel_of(losses).chains % 2 == 0] = 1.5  # moves in one half of the chains alone
    found = neighbour_stability(kernel_of(losses), 5)
    assert not found.stable[[5, 17, 30]].any() and not found.kept[[5, 17, 30]].any()
    assert found.stable.any()


def test_true_neighbours_are_called_stable():
    found = neighbour_stability(kernel_of(grouped(200, 400)), 9)
    assert found.stable.mean() > 0.95 and found.kept.mean() > 0.9
    assert found.by_hubs.mean() == pytest.approx(9 / 199, rel=0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda k: find_neighbours(k, 3, search="fast"),  # type: ignore[arg-type]
            "no search 'fast': expected 'auto'",
        ),
        (lambda k: find_neighbours(k, 20), "20 neighbours of 20 items"),
        (lambda k: find_neighbours(k, 0, search="approximate"), "0 neighbours of 20 items"),
        (lambda k: recall(k, np.zeros((3, 2), int)), "neighbours of 3 items, expected of 20"),
        (lambda k: shared_neighbours([k]), "1 kernels, expected two or more"),
        (lambda k: shared_neighbours([k, k.of_items(range(9))]), "kernel 1 is of 9 items, and not"),
        (lambda k: neighbour_stability(k, 3, false_alarms=0), "false_alarms is 0, expected a sh"),
        (lambda k: neighbour_stability(k.of_chains([0]), 3), "halves of the chains need two"),
        (lambda k: kept_share(np.zeros((3, 2)), np.zeros((3, 1))), "expected the same"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(kernel_of(grouped(20)))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pynndescent", None)
    with pytest.raises(ImportError, match=r"needs pynndescent.*\[maps\]"):
        find_neighbours(kernel_of(grouped(20)), 3, search="approximate")
