"""Banks: equal to retraining network by network, the user's own function, two parts apart."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bank_cases import PLAN, RECIPE, TUNING, bank, bits, distance
from bif.bank import Plan
from bif.evaluate import Recipe, retrain
from bif.types import Batch
from small_problems import (
    NotStackable,
    classification,
    global_randomness_untouched,
    labelled,
    network,
)

FULL = Recipe(steps=30, learning_rate=0.2, momentum=0.5, weight_decay=0.01)


def by_torch(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
    """The user's own training: torch's optimiser on all items, from w* or from fresh weights."""
    model = network(seed=seed) if start is None else start
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=FULL.learning_rate, momentum=FULL.momentum, weight_decay=FULL.weight_decay,
    )  # fmt: skip
    for _ in range(FULL.steps):
        optimizer.zero_grad()
        bif.losses.cross_entropy(model, items).mean().backward()
        optimizer.step()
    return model


def test_a_bank_holds_what_retraining_gives_for_both_parts():
    problem, found = classification(), bank()
    assert found.tuning is not None
    for part, queries, seeds, masks in (
        (found.reported, labelled(5, seed=2), (0, 1), PLAN.masks(20)),
        (found.tuning, TUNING, (7,), PLAN.tuning_masks(20)),
    ):
        expected = retrain(
            problem.model, problem.loss, problem.train.data, masks, RECIPE,
            outcomes={o.name: (o.function, queries) for o in problem.observables}, seeds=seeds,
        )  # fmt: skip
        assert np.array_equal(part.masks, masks) and part.seeds == seeds
        assert list(part.outcomes) == ["loss", "margin"]
        for name, values in part.outcomes.items():
            assert values.dtype == np.float64 and values.shape == (
                len(seeds),
                len(masks),
                len(queries[0]),
            )
            assert np.abs(values - expected[name]).max() < 1e-12
    assert found.reported.train_ids.tolist() == [str(i) for i in range(20)]
    assert found.reported.query_ids.tolist() == list("01234")
    assert found.num_networks == 13 and found.seconds > 0
    assert found.target == "scratch" and json.loads(json.dumps(found.recipe))["steps"] == 6


def test_the_same_call_gives_the_same_bits_and_stacks_change_them_by_rounding_only():
    found = bank()
    assert bits(found) == bits(bank())
    assert distance(found, bank(networks_per_stack=1)) < 1e-12
    assert distance(found, bank(networks_per_stack=64)) < 1e-12


def test_a_recipe_and_the_users_own_function_train_the_same_networks_from_the_checkpoint():
    plan = Plan(num_subsets=4)
    a, b = (
        bank(how=how, plan=plan, tuning_queries=None, target="checkpoint")
        for how in (FULL, by_torch)
    )
    assert distance(a, b) < 1e-10
    assert a.tuning is None and a.parts == (a.reported,)


def test_queries_of_several_groups_stand_one_after_another():
    groups = {"a": labelled(3, seed=2), "b": labelled(2, seed=9)}
    plan = Plan(num_subsets=3)
    both = bank(problem=classification(queries=groups), plan=plan, tuning_queries=None).reported
    alone = [
        bank(problem=classification(queries=q), plan=plan, tuning_queries=None).reported
        for q in groups.values()
    ]
    assert both.query_ids.tolist() == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    joined = np.concatenate([part.outcomes["loss"] for part in alone], axis=2)
    assert np.abs(both.outcomes["loss"] - joined).max() < 1e-12


class Seen:
    """A training function that remembers what it was called with and trains nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
        drawn = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
        self.calls.append((start, items, seed, drawn))
        return (start or network()).train()


def test_the_users_function_gets_the_items_of_the_subset_a_fresh_start_and_its_own_seed():
    problem, plan, seen = classification(), Plan(num_subsets=3, seeds=2), Seen()
    bank(problem=problem, how=seen, plan=plan, tuning_queries=None, target="checkpoint")
    assert len(seen.calls) == 6
    inputs, labels = labelled(20, seed=1)
    for (start, items, seed, _), mask in zip(
        seen.calls, np.tile(plan.masks(20), (2, 1)), strict=True
    ):
        assert torch.equal(items[0], inputs[mask]) and torch.equal(items[1], labels[mask])
        assert start is not problem.model and 0 <= seed < 2**31
        for a, b in zip(start.parameters(), problem.model.parameters(), strict=True):
            assert torch.equal(a, b) and a.requires_grad == b.requires_grad
    assert len({id(call[0]) for call in seen.calls}) == 6
    assert len({call[2] for call in seen.calls}) == 6, "every (subset, seed) has its own"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (nn.Linear(4, 3), "is a Linear: expected a function .* not what it returns"),
        (None, "is a NoneType: expected a function"),
        (lambda start, items: start, r"\(start, items\) cannot be called as train\(start, items"),
    ],
)
def test_what_is_no_training_function_is_refused_before_any_training(how, message):
    with pytest.raises(TypeError, match=message):
        bank(how=how, plan=Plan(num_subsets=3), tuning_queries=None)


def test_the_users_function_starts_from_nothing_from_scratch():
    seen = Seen()
    bank(how=seen, plan=Plan(num_subsets=2), tuning_queries=None)
    assert [call[0] for call in seen.calls] == [None, None]


def test_global_generators_are_seeded_for_each_network_and_come_out_as_they_went_in():
    first, second = Seen(), Seen()
    with global_randomness_untouched():
        bank(how=first, plan=Plan(num_subsets=3), tuning_queries=None)
        bank(how=second, plan=Plan(num_subsets=3), tuning_queries=None)
    assert [c[3] for c in first.calls] == [c[3] for c in second.calls]
    assert len({c[3] for c in first.calls}) == 3


def test_the_returned_network_is_evaluated_in_evaluation_mode_and_batch_norm_is_allowed():
    class WithStatistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm1d(4).double(), network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.norm(x))

    def trained(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
        model = WithStatistics().train()
        model(items[0])  # moves the running statistics
        return model

    problem, plan = classification(model=WithStatistics()), Plan(num_subsets=3)
    found = bank(problem=problem, how=trained, plan=plan, tuning_queries=None)
    assert len(np.unique(found.reported.outcomes["loss"][0, :, 0])) == 3
    with pytest.raises(ValueError, match="running statistics"):
        bank(problem=problem)


def test_models_that_vmap_cannot_take_are_retrained_one_by_one():
    problem = classification(model=NotStackable())
    for module in problem.model.modules():  # a parent's weights are its children's
        assert not list(module.parameters(recurse=False)) or hasattr(module, "reset_parameters")
    found = bank(problem=problem, networks_per_stack=1)
    assert distance(found, bank()) < 1e-12
    with pytest.raises(RuntimeError, match="networks_per_stack=1"):
        bank(problem=problem)


def test_the_model_is_left_bit_identical():
    problem = classification()
    before = copy.deepcopy(problem.model.state_dict())
    bank(problem=problem)
    bank(problem=problem, how=by_torch, target="checkpoint")
    assert all(torch.equal(before[n], v) for n, v in problem.model.state_dict().items())


def test_parts_say_what_they_are_for_and_refuse_the_other_use():
    found = bank()
    assert found.tuning is not None
    assert found.reported.required("reported") is found.reported
    assert found.tuning.required("tuning") is found.tuning
    with pytest.raises(ValueError, match="this is the reported part.*pass bank.tuning"):
        found.reported.required("tuning")
    with pytest.raises(ValueError, match="this is the tuning part.*pass bank.reported"):
        found.tuning.required("reported")


def test_no_tuning_query_may_be_a_reported_one():
    x, y = labelled(5, seed=2)
    shared = (torch.cat([TUNING[0], x[3:4]]), torch.cat([TUNING[1], y[3:4]]))
    with pytest.raises(ValueError, match="1 of 5 tuning queries are reported .* named 4 among"):
        bank(tuning_queries=shared)
    other_label = (shared[0], torch.cat([TUNING[1], (y[3:4] + 1) % 3]))
    assert bank(tuning_queries=other_label).tuning is not None


def untrained(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
    return network()


def no_module(start: nn.Module | None, items: Batch, seed: int) -> Any:
    return {"weight": 1}


def diverged(start: nn.Module | None, items: Batch, seed: int) -> nn.Module:
    model = network()
    with torch.no_grad():
        next(model.parameters()).mul_(float("nan"))
    return model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "fresh"}, ValueError, "target is 'fresh': expected one of scratch"),
        ({"networks_per_stack": 0}, ValueError, "networks_per_stack is 0; expected at least 1"),
        ({"precision": "bfloat16"}, ValueError, "precision is 'bfloat16': expected"),
        ({"tuning_queries": None}, ValueError, "tuning_queries is None and .* is 3"),
        ({"plan": Plan(num_subsets=2)}, ValueError, "tuning_queries are given and .* is 0"),
        ({"tuning_queries": TUNING[0]}, ValueError, "query group 'tuning'"),
        ({"how": FULL, "target": "checkpoint"}, ValueError, "2 seeds, but training from the check"),
        ({"how": Recipe(1, 0.1, batch_size=11)}, ValueError, "batch_size is 11"),
        ({"how": no_module}, TypeError, "returned dict for subset 0 and seed 0; expected the tra"),
        ({"how": diverged}, FloatingPointError, "'loss' is NaN .* for subset 0 and seed 0"),
        ({"how": Recipe(9, 1e308, momentum=0.9)}, FloatingPointError, "diverged, the first"),
        (
            {"problem": classification(train_weights=torch.ones(20))},
            ValueError,
            "the problem has train_weights",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        bank(**changes)
