"""Layouts of a kernel's items in the plane."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import bif
from bif.estimate.neighbours import kept_share
from bif.kernel import layout, layout_stability
from bif.kernel.layout import nearest_in_plane
from small_problems import integers, normal

CLASSES = 3


def clustered(count: int, *, draws: int = 40, seed: int = 0) -> bif.LossKernel:
    """Items whose losses are those of their class and noise."""
    of_item = integers(CLASSES, count, seed=seed)
    losses = normal(CLASSES, draws, seed=seed + 1)[of_item] + normal(count, draws, seed=seed + 2)
    ids = tuple(f"item {i}" for i in range(count))
    return bif.LossKernel(
        losses, torch.arange(draws) % 4, ids, {"label": tuple(str(int(c)) for c in of_item)}
    )


@pytest.fixture(scope="module")
def kernel() -> bif.LossKernel:
    return clustered(90)


@pytest.mark.parametrize("count", [12, 60])  # fewer items than draws, and more
def test_principal_components_are_those_of_the_centred_embedding(count: int):
    some = clustered(count)
    places = layout(some, "pca")
    x = some.embedding().numpy()
    _, singular, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = (x - x.mean(axis=0)) @ right[:2].T
    # Float32 keeps 7 digits; the sign of a component is that of its largest entry.
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=2e-6)
    assert (places.max(axis=0) >= -places.min(axis=0)).all()
    np.testing.assert_allclose(
        (places.astype(float) ** 2).sum(axis=0), singular[:2] ** 2, rtol=1e-5
    )


def test_many_items_and_draws_have_nearly_the_same_components(monkeypatch: pytest.MonkeyPatch):
    some = clustered(200, draws=100)
    exact = layout(some, "pca")
    monkeypatch.setattr(importlib.import_module("bif.kernel.layout"), "_EXACT", 50)
    # Two components stand out by the classes, so that 8 iterations leave (s3 / s2)^17 of the rest.
    np.testing.assert_allclose(layout(some, "pca"), exact, atol=1e-4)


def test_neighbours_in_the_plane_are_the_nearest_others_even_where_places_coincide():
    line = np.array([[0.0, 0], [1, 0], [3, 0], [3, 0], [3, 0]])
    assert nearest_in_plane(line, 1)[:2].tolist() == [[1], [0]]
    found = nearest_in_plane(line, 2)
    assert all({*row} == {2, 3, 4} - {i} for i, row in enumerate(found) if i > 1)
    assert nearest_in_plane(line, 15).shape == (5, 4)


def test_a_layout_keeps_all_neighbours_of_itself_and_those_by_chance_of_another():
    first, second = (normal(400, 2, seed=seed).numpy() for seed in (0, 1))
    np.testing.assert_array_equal(layout_stability(first, first), 1.0)
    kept = layout_stability(first, second, count=15)
    # The mean of 400 hypergeometric shares, of standard deviation below sqrt(p / 15) each.
    chance = 15 / 399
    assert abs(kept.mean() - chance) < 5 * (chance / 15 / 400) ** 0.5
    assert kept_share(np.array([[1, 2]]), np.array([[2, 3]])).tolist() == [0.5]


def test_what_does_not_fit_is_refused(kernel: bif.LossKernel):
    with pytest.raises(ValueError, match="a map needs three items, and the kernel has 2"):
        layout(clustered(2))
    with pytest.raises(ValueError, match="no layout 'tsne': expected 'umap' or 'pca'"):
        layout(kernel, "tsne")  # type: ignore[arg-type]
    places, values = kernel.nearest(4)
    with pytest.raises(ValueError, match=r"\(80, 4\) and \(90, 4\), expected positions and"):
        layout(kernel, neighbours=(places[:80], values))
    with pytest.raises(ValueError, match="neighbours are 0 to 99, expected positions of 90 items"):
        layout(kernel, neighbours=(np.where(places == places.max(), 99, places), values))
    with pytest.raises(ValueError, match=r"start is \(3, 2\), expected \(90, 2\): a place an item"):
        layout(kernel, start=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"layouts are \(3, 2\) and \(4, 2\), expected"):
        layout_stability(np.zeros((3, 2)), np.zeros((4, 2)))


def test_without_umap_the_extra_is_named(kernel: bif.LossKernel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"UMAP needs umap-learn: .*\[maps\]"):
        layout(kernel)


@pytest.mark.skipif(find_spec("umap") is None, reason="the extra `maps` is not installed")
class TestUMAP:
    def test_torch_has_as_many_threads_as_before(self):
        # numba starts its own with those of OpenMP for all of the process: two on two cores.
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            layout(clustered(60), "umap")
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    def test_a_seed_gives_the_same_bits_and_leaves_random_numbers_alone(
        self, kernel: bif.LossKernel
    ):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002, the user's own
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        first = layout(kernel, seed=1)
        assert first.dtype == np.float32 and first.shape == (90, 2)
        np.testing.assert_array_equal(first, layout(kernel, seed=1))
        assert not np.array_equal(first, layout(kernel, seed=2))
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002

    def test_items_of_a_class_lie_together_unless_their_neighbours_are_mixed_up(
        self, kernel: bif.LossKernel
    ):
        def share_of_own_class(places: np.ndarray) -> float:
            of_item = np.array(kernel.labels["label"])
            return float((of_item[nearest_in_plane(places, 10)] == of_item[:, None]).mean())

        places, values = kernel.nearest(10)
        mixed = np.random.default_rng(0).permutation(90)[places]
        assert share_of_own_class(layout(kernel, neighbours=(places, values))) > 0.8
        # Lists that are dealt to the items at random have the classes of chance: a third.
        assert share_of_own_class(layout(kernel, neighbours=(mixed, values))) < 0.6

    def test_it_begins_where_it_is_told_to(self, kernel: bif.LossKernel):
        begin = layout(kernel, "pca")
        np.testing.assert_array_equal(layout(kernel, start=begin), layout(kernel))
        assert not np.array_equal(layout(kernel, start=-begin), layout(kernel))

    @pytest.mark.parametrize("count", [3, 4, 5, 17])
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_a_few_items_have_places_too(self, count: int):
        assert np.isfinite(layout(clustered(count))).all()

    def test_items_whose_losses_never_move_have_places(self):
        still = bif.LossKernel(torch.ones(6, 8), torch.arange(8) % 2, tuple("abcdef"), {})
        assert np.isfinite(layout(still)).all()
        np.testing.assert_array_equal(layout(still, "pca"), 0.0)
