"""All items are looked at twice at w* before anything is chosen; what is broken is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bags import Bag
from small_problems import TINY, filled, integers, labelled, network

OPEN = bif.Settings(chains=2, draws=4)
MINIBATCH = bif.Settings(chains=2, draws=4, gradient="minibatch", batch_size=4)


def posed(model=None, *, loss=bif.losses.cross_entropy, **given):
    given = {"train": labelled(20, seed=1), "queries": labelled(8, seed=2), **given}
    return bif.Problem(model or network(), loss, **given)


def damaged(number, how, *, at, seed):
    """Items of which one or two are damaged."""
    x, y = labelled(number, seed=seed)
    for position in at:
        if how == "label":
            y[position] = 3
        else:
            x[position, 1] = float(how)
    return bif.Items((x, y), ids=[f"n{i}" for i in range(number)])


class TestUnusableItems:
    @pytest.mark.parametrize("settings", [OPEN, MINIBATCH, TINY], ids=["full", "mini", "given"])
    @pytest.mark.parametrize(("how", "says"), [("nan", "NaN"), ("label", "label")])
    @pytest.mark.parametrize("where", ["train", "queries", "candidates"])
    def test_one_far_from_the_first_is_named_whatever_is_left_open(
        self, settings, how, says, where
    ):
        with pytest.raises(ValueError, match=rf"{says}.*'n7'"):
            bif.attribute(posed(**{where: damaged(9, how, at=[7], seed=5)}), settings)

    @pytest.mark.parametrize(("how", "says"), [("nan", "items .'n1'")])
    def test_one_among_the_first_is_named_too(self, how, says):
        with pytest.raises(ValueError, match=says):
            posed(train=damaged(9, how, at=[1], seed=5))

    def test_messages_name_what_is_not_finite_and_list_few_of_many_items(self):
        train = damaged(20, "nan", at=range(5, 18), seed=5)
        with pytest.raises(ValueError, match=r"13 of 20 .*'n5'.*'n9' and 8 others \(batch\[0\] of"):
            bif.attribute(posed(train=train), OPEN)

    def test_an_infinite_loss_of_finite_data_is_named(self):
        def loss(model, batch):
            return bif.losses.cross_entropy(model, batch) / (batch[0][:, 0] != 9)

        x, y = labelled(20, seed=1)
        x[11, 0] = 9
        with pytest.raises(ValueError, match="loss is infinite at w. for 1 of 20 train .*'11'"):
            bif.attribute(posed(loss=loss, train=(x, y)), OPEN)

    def test_a_gradient_that_is_not_finite_is_named_where_the_loss_is(self):
        train = damaged(9, "inf", at=[7], seed=5)  # which saturates the units
        with pytest.raises(ValueError, match="gradient of the loss is NaN.* 1 of 9 train .*'n7'"):
            bif.attribute(posed(train=train), OPEN)

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_out_of_range_is_named_with_the_number_of_classes(self, label):
        x, y = labelled(20, seed=1)
        y[13] = label
        with pytest.raises(ValueError, match=f"label {label} is out.*3 classes, 0 to 2.*'13'"):
            bif.attribute(posed(train=(x, y)), OPEN)

    def test_any_other_failure_names_the_items_and_keeps_the_words(self):
        words = integers(6, 20, 5, seed=1)
        words[17, 0] = 99
        data = words, integers(3, 20, seed=2)
        queries = integers(6, 3, 5, seed=3), integers(3, 3, seed=4)
        problem = posed(filled(Bag()), train=data, queries=queries)
        with pytest.raises(ValueError, match=r"fails on train items '17' with IndexError: index"):
            bif.attribute(problem, OPEN)


class Augmented(torch.utils.data.Dataset):
    """Items that come out turned around now and then."""

    def __init__(self, share, number=60):
        self.share, (self.x, self.y) = share, labelled(number, seed=1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, position):
        x = self.x[position]
        turned = torch.rand((), dtype=torch.float64) < self.share
        return (x.flip(0) if turned else x), self.y[position]


class TestChangingData:
    @pytest.mark.parametrize("share", [0.5, 0.1])
    @pytest.mark.parametrize("where", ["train", "queries", "candidates"])
    @pytest.mark.parametrize("settings", [OPEN, MINIBATCH, TINY], ids=["full", "mini", "given"])
    def test_rare_augmentation_is_refused_whatever_is_left_open(self, share, where, settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with pytest.raises(ValueError, match="different v.*'[0-9]+'.*without augmentation"):
                bif.attribute(posed(**{where: Augmented(share)}), settings)

    def test_noise_that_a_loss_rarely_draws_is_refused(self):
        def loss(model, batch):
            kept = torch.rand(len(batch[0]), 1, dtype=torch.float64) > 0.1
            return bif.losses.cross_entropy(model, (batch[0] * kept, batch[1]))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            with pytest.raises(ValueError, match="changes from one evaluation|two passes at w"):
                bif.attribute(posed(loss=loss, train=labelled(60, seed=1)), OPEN)

    def test_a_dataset_that_stays_the_same_gives_the_scores_of_its_tensors(self):
        found = bif.attribute(posed(train=Augmented(0.0)), TINY)
        expected = bif.attribute(posed(train=labelled(60, seed=1)), TINY)
        np.testing.assert_array_equal(
            found.influence.dataset["influence"], expected.influence.dataset["influence"]
        )

    def test_a_problem_is_checked_once_however_often_it_is_calibrated(self):
        calls = []

        def loss(model, batch):
            calls.append(len(batch[0]))
            return bif.losses.cross_entropy(model, batch)

        problem = posed(loss=loss, train=labelled(50, seed=1))
        settings = replace(TINY, nbeta=50.0, oracle="sequential", mass="identity", chunk_size=50)
        settings = replace(settings, block_size=4)
        once = bif.calibrate(problem, settings)
        first, calls[:] = sum(calls), []
        assert bif.calibrate(problem, settings).explanations == once.explanations
        assert sum(calls) <= first - 100


class TestWeightsThatNothingMoves:
    def test_weights_that_nothing_moves_are_counted_by_train_items_and_by_queries(self):
        words = torch.tensor([[0, 1, 3], [1, 3, 0], [3, 0, 1], [0, 0, 1]])
        queries = torch.tensor([[4, 0, 1]])
        problem = posed(
            filled(Bag()), train=(words, integers(3, 4, seed=1)),
            queries=(queries, torch.tensor([1])),
        )  # fmt: skip
        found = " ".join(bif.calibrate(problem, TINY).explanations)
        # Of words 0 to 7 the train items have 0, 1, 3, the query 4 besides; 2 pads and stays.
        assert "no train item's loss has a gradient by 16 of 43 weights at w*, of which 4" in found

    def test_nothing_is_said_where_all_have_a_gradient(self):
        assert "no train item" not in " ".join(bif.calibrate(posed(), TINY).explanations)

    def test_weights_of_dead_units_are_counted(self):
        torch.manual_seed(0)  # of other seeds a second unit may be dead
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        with torch.no_grad():
            model.get_parameter("0.bias")[2] = -1e3
        found = " ".join(bif.calibrate(posed(model), TINY).explanations)
        assert "gradient by 8 of 43 weights" in found  # 4 + 1 in, 3 out
