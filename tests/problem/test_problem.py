"""Problem: bad input is refused at construction, and the caller's things stay as they are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.problem.functional import ItemFunction
from bif.problem.validation import check_item_values
from small_problems import (
    TINY,
    Pairs,
    assert_same_state,
    classification,
    dict_cross_entropy,
    filled,
    global_randomness_untouched,
    labelled,
    network,
    normal,
    state_of,
)


class TestLossesThatAreRefused:
    def test_a_scalar_is_refused(self):
        def mean(model: nn.Module, batch: Any) -> Tensor:
            return losses.cross_entropy(model, batch).mean()

        with pytest.raises(ValueError, match=r"loss returned a scalar on train items.*\[3\]"):
            classification(loss=mean)

    @pytest.mark.parametrize(
        "cut", [lambda v: v[:1], lambda v: v[:, None, None], lambda v: v[None]]
    )
    def test_another_shape_is_refused(self, cut):
        def wrong(model: nn.Module, batch: Any) -> Tensor:
            return cut(losses.cross_entropy(model, batch))

        with pytest.raises(ValueError, match=r"returned shape .* for 3 items.*expected \[3\] or"):
            classification(loss=wrong)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_and_infinity_are_refused(self, bad):
        x, y = labelled(20, seed=1)
        x[1] = bad
        with pytest.raises(
            ValueError, match=r"loss is NaN or infinite at w\* on train items.*\['1'\]"
        ):
            classification(train=(x, y))

    def test_nan_beyond_the_probed_items_is_refused_before_any_sampling(self):
        x, y = labelled(20, seed=1)
        x[17] = float("nan")
        problem = classification(train=bif.Items((x, y), ids=[f"item-{i}" for i in range(20)]))
        with pytest.raises(ValueError, match=r"at w\* for 1 of 20 train items: 'item-17' \("):
            bif.attribute(problem, TINY)

    def test_nan_in_a_later_query_is_refused(self):
        x, y = labelled(5, seed=2)
        x[4] = float("nan")
        with pytest.raises(
            ValueError, match=r"observable 'loss' is NaN .* 1 of 5 queries .*: '4' \("
        ):
            bif.attribute(classification(queries=(x, y)), TINY)

    def test_what_is_no_tensor_is_refused(self):
        with pytest.raises(TypeError, match="loss must return a tensor, got float"):
            classification(loss=lambda model, batch: 1.0)

    def test_a_column_of_outputs_that_broadcasts_against_its_targets_is_refused(self):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

        def squared(model: nn.Module, batch: Any) -> Tensor:
            return (model(batch[0]) - batch[1]) ** 2  # [B, 1] - [B]

        for seed in range(40):  # of some the sums over the axis too many agree
            model = filled(nn.Linear(4, 1), seed=seed).float()
            with pytest.raises(ValueError, match=r"changes with the other items .*squeeze"):
                bif.Problem(model, squared, train=(x, x[:, 0]), queries=(x, x[:, 0]))

    def test_what_fails_says_whose_failure_it_is_and_what_it_was_given(self):
        x, y = labelled(20, seed=1)
        message = r"the loss failed on train items with .*batch\[1\] \(3,\) float64.*int64 \[B\]"
        with pytest.raises(ValueError, match=message):
            classification(train=(x, y.double()), queries=(x, y.double()))

    def test_observables_that_are_only_names_are_refused(self):
        with pytest.raises(TypeError, match="must be bif.Observable, got 'margin': use bif.MARGIN"):
            classification(observables=["margin"])

    def test_integers_are_refused(self):
        with pytest.raises(TypeError, match=r"loss returned torch.int64.*floating point"):
            classification(loss=lambda model, batch: batch[1])

    def test_the_observable_is_named(self):
        scalar = bif.Observable("spread", lambda model, batch: model(batch[0]).var())
        with pytest.raises(
            ValueError, match="observable 'spread' returned a scalar on group 'query'"
        ):
            classification(observables=[scalar])

    def test_one_item_with_a_token_axis_is_fine(self):
        check_item_values(
            lambda m, b: torch.zeros(1, 3), nn.Identity(), torch.zeros(1), "loss", "x"
        )


class TestQueries:
    def test_other_keys_than_the_train_batch_are_refused(self):
        x, y = labelled(5, seed=2)
        with pytest.raises(
            ValueError, match=r"query group 'query' has another structure.*batch\['z'\]"
        ):
            classification(
                loss=dict_cross_entropy,
                train={"x": x, "y": y},
                queries={"x": x, "z": y},
                observables=None,
            )

    def test_another_dtype_is_refused(self):
        x, y = labelled(5, seed=2)
        with pytest.raises(
            ValueError, match=r"got batch\[0\] float32.*expected batch\[0\] float64"
        ):
            classification(queries=(x.float(), y))

    def test_no_groups_are_refused(self):
        with pytest.raises(ValueError, match="empty mapping: expected at least one group"):
            classification(queries={})

    def test_groups_keep_their_names_and_order(self):
        problem = classification(queries={"b": labelled(2, seed=3), "a": labelled(3, seed=4)})
        assert problem.query_ids.tolist() == ["b/0", "b/1", "a/0", "a/1", "a/2"]
        assert problem.query_group_names.tolist() == ["b", "b", "a", "a", "a"]
        assert problem.num_queries == 5 and problem.num_train == 20

    def test_dict_batches_may_come_alone_or_in_groups(self):
        batch = dict(zip("xy", labelled(6, seed=2), strict=True))
        given: dict[str, Any] = {"loss": dict_cross_entropy, "train": batch, "observables": None}
        alone = classification(queries=batch, **given)
        grouped = classification(queries={"one": batch, "two": bif.Items(batch)}, **given)
        assert alone.query_group_names.tolist() == ["query"] * 6
        assert grouped.query_group_names.tolist() == ["one"] * 6 + ["two"] * 6

    def test_observables_of_one_name_are_refused(self):
        with pytest.raises(ValueError, match="observables need different names"):
            classification(observables=[bif.MARGIN, bif.MARGIN])

    def test_the_loss_is_the_default_observable(self):
        (only,) = classification(observables=None).observables
        assert (only.name, only.better) == ("loss", "lower")


class TestWeights:
    @pytest.mark.parametrize(
        "weights", [[1.0] * 19, [-1.0] + [1.0] * 19, [float("nan")] * 20, [[1.0]] * 20]
    )
    def test_train_weights_that_do_not_fit_are_refused(self, weights):
        with pytest.raises(ValueError, match="train_weights must be 20 finite numbers"):
            classification(train_weights=weights)

    def test_a_model_without_parameters_is_refused(self):
        with pytest.raises(ValueError, match="no parameters: there is nothing to sample"):
            classification(model=nn.Identity())

    def test_what_is_no_model_is_refused(self):
        with pytest.raises(TypeError, match=r"the model is a list: .* must return it"):
            classification(model=[1.0])

    def test_parameters_on_several_devices_are_refused(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta"))
        with pytest.raises(ValueError, match=r"on one device, got \['cpu', 'meta'\]"):
            classification(model=model)

    def test_nothing_movable_is_refused_before_any_long_work(self):
        with pytest.raises(ValueError, match="movable pattern 'head.*' matches no parameter"):
            bif.attribute(classification(), bif.Settings(movable=("head.*",)))
        with pytest.raises(ValueError, match="no movable parameter"):
            bif.attribute(classification(), bif.Settings(movable=()))


class Quantised(nn.Module):
    """A classifier with weights of 8 bits, which cannot be sampled, and a bias that can."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.bias = nn.Parameter(normal(3, seed=0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (0.1 * self.codes.to(x.dtype)).T + self.bias


class TestNonFloatingParameters:
    def test_parameters_that_do_not_float_cannot_move(self):
        with pytest.raises(ValueError, match=r"'codes' is torch.int8, which cannot be sampled"):
            bif.attribute(classification(model=Quantised()), bif.Settings(movable=("*",)))

    @pytest.mark.parametrize("movable", [None, ("bias",)])
    def test_parameters_that_do_not_float_stay_by_default_and_when_left_out(self, movable):
        model = Quantised()
        before = state_of(model)
        run = bif.attribute(
            classification(model=model), bif.Settings(movable=movable, chains=2, draws=4)
        )
        assert run.manifest["num_moving_weights"] == 3
        assert_same_state(model, before)


class Tied(nn.Module):
    """x → tanh(W x) → Wᵀ: one matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4, bias=False)
        self.down = nn.Linear(4, 4, bias=False)
        filled(self)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class TestTiedWeights:
    def test_tied_weights_are_refused_by_default(self):
        with pytest.raises(ValueError, match=r"tied weights: 'down.weight' and 'up.weight'"):
            classification(model=Tied())

    def test_both_names_of_a_weight_are_swapped(self):
        function = ItemFunction(Tied(), lambda model, x: model(x).sum(dim=1))
        (name, leaf), *_ = function.model.named_parameters()
        x, w = normal(2, leaf.shape[1], seed=0), normal(*leaf.shape, seed=1)
        expected = (torch.tanh(x @ w.T) @ w.T).sum(dim=1)
        torch.testing.assert_close(function.at({name: w}, x), expected)

    def test_views_of_one_storage_are_tied_too(self):
        model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)).double()
        model[1].weight = nn.Parameter(model[0].get_parameter("weight").detach().T)
        for tied_weights in ("refuse", "share"):  # two Parameters cannot move as one
            with pytest.raises(ValueError, match="share storage.*make them one Parameter"):
                classification(model=model, tied_weights=tied_weights)

    def test_frozen_tied_weights_need_no_decision_until_they_are_to_move(self):
        model = nn.Sequential(Tied(), nn.Linear(4, 3).double())
        model[0].requires_grad_(False)
        run = bif.attribute(classification(model=model), TINY)
        assert run.manifest["num_moving_weights"] == 15
        by_hand = bif.attribute(
            classification(model=model, tied_weights="share"), replace(TINY, movable=("1.*",))
        )
        np.testing.assert_array_equal(run.influence.dataset["influence"].values,
                                      by_hand.influence.dataset["influence"].values)  # fmt: skip
        everything = replace(TINY, movable=("*",))
        with pytest.raises(ValueError, match=r"tied weights: '0.down.weight' and '0.up.weight'"):
            bif.attribute(classification(model=model), everything)
        shared = bif.attribute(classification(model=model, tied_weights="share"), everything)
        assert shared.manifest["num_moving_weights"] == 31

    def test_views_of_which_one_moves_are_refused(self):
        model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)).double()
        model[1].weight = nn.Parameter(model[0].get_parameter("weight").detach().T)
        model[0].requires_grad_(False)
        with pytest.raises(ValueError, match="share storage"):
            classification(model=model)

    def test_neighbours_in_one_flat_buffer_are_not_tied(self):
        flat = normal(4 * 5 + 5 * 3, seed=0)
        model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))
        model[0].weight = nn.Parameter(flat[:20].reshape(5, 4))
        model[1].weight = nn.Parameter(flat[20:].reshape(3, 5))
        assert list(classification(model=model).center()) == ["0.weight", "1.weight"]

    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    def test_shared_weights_move_as_one_under_every_oracle(self, oracle):
        problem = classification(model=Tied(), tied_weights="share")
        assert list(problem.center()) == ["up.weight"]
        settings = bif.Settings(**{**TINY.as_dict(), "oracle": oracle})  # type: ignore[arg-type]
        run = bif.attribute(problem, settings)
        assert run.manifest["num_moving_weights"] == 16


def batch_norm() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    filled(model)
    bn = model[1]
    assert isinstance(bn, nn.BatchNorm1d) and bn.running_mean is not None
    bn.running_mean.copy_(normal(5, seed=9))
    return model


class TestNothingOfTheCallersChanges:
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    @pytest.mark.parametrize("make", [network, batch_norm, Tied], ids=["plain", "norm", "tied"])
    def test_model_and_global_randomness_are_left_as_they_were(self, make, oracle, training):
        model = make().train(training)
        next(model.parameters()).requires_grad_(False)
        last = list(model.parameters())[-1]
        last.grad = torch.ones_like(last)
        train, queries = labelled(20, seed=1), labelled(5, seed=2)
        copies = [t.clone() for t in (*train, *queries)]
        before = state_of(model)
        settings = bif.Settings(oracle=oracle, chains=2, draws=4, burn_in=2, thin=1)
        with global_randomness_untouched():
            problem = classification(
                model=model, train=train, queries=queries, tied_weights="share"
            )
            bif.attribute(problem, settings)
        assert_same_state(model, before)
        assert all(torch.equal(a, b) for a, b in zip(copies, (*train, *queries), strict=True))

    def test_batch_norm_and_dropout_are_evaluated_in_evaluation_mode(self):
        model = batch_norm().train()
        problem = classification(model=model)
        run = bif.attribute(problem, TINY)
        expected = losses.cross_entropy(batch_norm().eval(), labelled(20, seed=1))
        assert model.training
        np.testing.assert_allclose(
            run.influence.dataset["train_center_loss"].values, expected.detach(), rtol=0, atol=1e-12
        )

    def test_a_dataset_is_only_read(self):
        data = Pairs(*labelled(20, seed=1))
        copies = [t.clone() for t in data.tensors]
        bif.attribute(classification(train=data), TINY)
        assert all(torch.equal(a, b) for a, b in zip(copies, data.tensors, strict=True))

    def test_inference_and_no_grad_modes_make_no_difference(self):
        plain = bif.attribute(classification(), TINY).traces.blocks[0].train
        with torch.no_grad():
            inside = bif.attribute(classification(), TINY).traces.blocks[0].train
        assert torch.equal(plain, inside)


def test_weights_of_frozen_parameters_move_all_the_same():
    # requires_grad says what training moved; movable says what is sampled.
    frozen, free = network(), network()
    frozen.requires_grad_(False)
    runs = [bif.attribute(classification(model=m), TINY) for m in (frozen, free)]
    for a, b in itertools.pairwise(runs):
        assert torch.equal(a.traces.blocks[0].train, b.traces.blocks[0].train)


@pytest.mark.parametrize("given", [{"queries": labelled(2, seed=1)}, {"candidates": [1, 2]}])
def test_further_groups_without_names_are_told_to_have_some(given):
    (kind,) = given
    with pytest.raises(TypeError, match=f"{kind} is a .*, expected a mapping from names of groups"):
        classification().extended(**given)


def test_other_queries_without_names_are_told_to_have_some():
    with pytest.raises(TypeError, match="queries is a tuple, expected a mapping from names"):
        classification().asking(labelled(2, seed=1))  # type: ignore[arg-type]
