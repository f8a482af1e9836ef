"""Items: structures, identities and the errors at the door."""

from __future__ import annotations

import random as python_random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bif import Items
from bif.problem.items import as_items, batch_leaves, map_batch
from small_problems import Pairs, global_randomness_untouched, integers, normal

X, Y = normal(7, 3, 2, seed=0), integers(4, 7, seed=1)


def same(a: Any, b: Any) -> bool:
    left, right = batch_leaves(a), batch_leaves(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    "data",
    [X, (X, Y), {"x": X, "y": Y}, {"inputs": {"x": X}, "pair": (Y, X)}, (X, {"y": Y})],
    ids=["tensor", "tuple", "dict", "nested", "tuple of dict"],
)
class TestStructures:
    def test_take_keeps_the_structure_and_puts_the_indices_axes_in_front(self, data):
        items = Items(data)
        for indices in (torch.tensor([3, 0, 3]), integers(7, 2, 4, seed=2)):
            taken = items.take(indices)
            assert batch_leaves(taken).keys() == batch_leaves(data).keys()
            for leaf, whole in zip(
                batch_leaves(taken).values(), batch_leaves(data).values(), strict=True
            ):
                assert leaf.shape == (*indices.shape, *whole.shape[1:])
                for place in np.ndindex(*indices.shape):
                    assert torch.equal(leaf[place], whole[indices[place]])

    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    def test_chunks_are_all_items_in_order(self, data, size):
        parts = list(Items(data).chunks(size))
        assert [p.start for p, _ in parts] == list(range(0, 7, size))
        assert parts[-1][0].stop == 7
        leaves = [batch_leaves(batch) for _, batch in parts]
        for path, whole in batch_leaves(data).items():
            assert torch.equal(torch.cat([leaf[path] for leaf in leaves]), whole)

    def test_first_is_the_first_items_and_at_most_all(self, data):
        assert same(Items(data).first(2), map_batch(lambda leaf: leaf[:2], data))
        assert same(Items(data).first(99), map_batch(lambda leaf: leaf, data))


def test_a_list_is_a_tuple():
    assert isinstance(Items([X, Y]).data, tuple)
    assert same(Items([X, Y]).data, (X, Y))


def test_a_dataset_gives_the_same_batches_as_its_tensors():
    whole, itemwise = Items((X, Y)), Items(Pairs(X, Y))
    indices = integers(7, 2, 5, seed=3)
    assert len(whole) == len(itemwise) == 7
    assert same(whole.take(indices), itemwise.take(indices))
    for (part, a), (other, b) in zip(whole.chunks(3), itemwise.chunks(3), strict=True):
        assert part == other and same(a, b)


def test_a_dataset_of_dicts_gives_dict_batches():
    class Dicts(Pairs):
        def __getitem__(self, index: int) -> Any:
            return {"x": X[index], "y": int(Y[index])}

    assert same(Items(Dicts(X)).take(torch.arange(7)), {"x": X, "y": Y})


def test_batches_reach_the_device_that_items_were_moved_to():
    meta = torch.device("meta")  # stands for any second device
    for items in (Items((X, Y)).to(meta), Items(Pairs(X, Y)).to(meta)):
        for batch in (items.first(2), next(items.chunks(3))[1]):
            assert {leaf.device.type for leaf in batch_leaves(batch).values()} == {"meta"}
    assert Items(Pairs(X, Y)).to(meta).take(torch.tensor([[0, 1]]))[0].device.type == "meta"


def test_tensors_are_neither_copied_nor_tied_to_a_graph():
    x = X.clone().requires_grad_()
    kept: Any = Items(x).data
    assert kept.data_ptr() == x.data_ptr() and not kept.requires_grad
    assert x.requires_grad


def test_moving_leaves_the_original_where_it_was():
    items = Items(X, ids=list("abcdefg"))
    moved = items.to(torch.device("meta"))
    data: Any = items.data
    assert data.device.type == "cpu" and moved.ids.tolist() == list("abcdefg")


def test_as_items_returns_items_as_they_are():
    items = Items(X)
    assert as_items(items) is items
    assert len(as_items((X, Y))) == 7


class TestIdentities:
    def test_ids_default_to_positions(self):
        assert Items(X).ids.tolist() == [str(i) for i in range(7)]

    def test_labels_may_be_a_tensor(self):
        labels = Items(X, labels=Y).labels
        assert labels is not None and labels.tolist() == [str(int(y)) for y in Y]

    def test_ids_of_another_length_are_refused(self):
        with pytest.raises(ValueError, match="ids has 3 entries for 7 items"):
            Items(X, ids=["a", "b", "c"])

    def test_repeated_ids_are_refused(self):
        with pytest.raises(ValueError, match="ids repeat"):
            Items(X, ids=["a"] * 7)

    def test_labels_of_another_length_are_refused(self):
        with pytest.raises(ValueError, match="labels has 1 entries for 7 items"):
            Items(X, labels=["a"])

    @pytest.mark.parametrize("shape", [(7, 2, 2), (7, 2, 2, 3)])
    def test_grey_and_colour_pictures_are_kept(self, shape):
        images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        kept = Items(X, images=images).images
        assert kept is not None and np.array_equal(kept, images)

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((7, 2, 2), np.float32),
            np.zeros((6, 2, 2), np.uint8),
            np.zeros((7, 4), np.uint8),
            np.zeros((7, 2, 2, 4), np.uint8),
        ],
        ids=["floating", "another length", "flat", "four channels"],
    )
    def test_other_pictures_are_refused(self, images):
        with pytest.raises(ValueError, match=r"images must be uint8 \[7, rows, columns\]"):
            Items(X, images=images)


class TestRefusals:
    @pytest.mark.parametrize("data", [None, (X, np.zeros(7)), {"x": [1]}])
    def test_what_is_no_tensor_is_refused(self, data):
        with pytest.raises(TypeError, match="must be a tensor, or a tuple, list or dict"):
            Items(data)

    def test_a_leaf_that_is_no_tensor_is_named(self):
        with pytest.raises(TypeError, match=r"batch\['a'\]\[1\] must be a tensor.* got int"):
            batch_leaves({"a": (X, 3)})

    @pytest.mark.parametrize("data", [(X, Y[:5]), {"x": X, "s": torch.tensor(1.0)}, ()])
    def test_leading_axes_that_differ_are_refused(self, data):
        with pytest.raises(ValueError, match="every tensor needs the same leading axis"):
            Items(data)

    @pytest.mark.parametrize("data", [X[:0], Pairs(X[:0])])
    def test_no_items_are_refused(self, data):
        with pytest.raises(ValueError, match="there are no items"):
            Items(data)

    def test_an_iterable_dataset_is_refused(self):
        class Stream(torch.utils.data.IterableDataset[Tensor]):
            def __iter__(self):
                return iter(X)

        with pytest.raises(TypeError, match="iterable Dataset has no length"):
            Items(Stream())

    @pytest.mark.parametrize(
        "source",
        [
            lambda: torch.rand(()).item(),
            python_random.random,
            lambda: np.random.rand(),  # noqa: NPY002
        ],
        ids=["torch", "python", "numpy"],
    )
    def test_an_augmenting_dataset_is_refused_and_global_randomness_is_untouched(self, source):
        class Noisy(Pairs):
            def __getitem__(self, index: int) -> Any:
                return X[index] + source(), Y[index]

        with (
            global_randomness_untouched(),
            pytest.raises(ValueError, match=r"two different versions of item '0' \(batch\[0\]\)"),
        ):
            Items(Noisy(X))


class TestAbout:
    def test_texts_are_kept_whole_whatever_their_length(self):
        items = Items(X, about={"source": ["a", "b" * 1000, *"cdefg"]})
        assert items.about["source"].dtype == object
        assert items.about["source"].tolist()[:2] == ["a", "b" * 1000]

    def test_halves_of_surrogate_pairs_are_written_out(self):
        given = ["a\ud800", "ü"]
        items = Items(
            torch.zeros(2, 1), ids=given, labels=given, about={"s": given}, tokens=[given, []]
        )
        expected = ["a\\ud800", "ü"]
        assert items.ids.tolist() == expected
        assert items.labels is not None and items.labels.tolist() == expected
        assert items.about["s"].tolist() == expected and items.tokens == [expected, []]

    def test_another_number_of_texts_is_refused(self):
        with pytest.raises(ValueError, match=r"about\['source'\] has 1 entries for 7 items"):
            Items(X, about={"source": ["a"]})

    def test_names_that_results_have_already_are_refused(self):
        with pytest.raises(ValueError, match="'id'.*results have already"):
            Items(X, about={"id": ["a"] * 7})
