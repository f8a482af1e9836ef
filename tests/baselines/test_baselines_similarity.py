"""Representation similarity, cosines of gradients and random scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif
from bif import losses
from bif.baselines import (
    gradient_cosine,
    gradient_product,
    item_gradients,
    random_scores,
    representation_similarity,
)
from bif.sampling.item_gradients import item_gradient_chunks, query_gradient_blocks, signed_products
from rival_problems import close, mlp_problem, tokens
from small_problems import (
    NotStackable,
    assert_same_state,
    classification,
    global_randomness_untouched,
    network,
    state_of,
)


def hidden(problem: bif.Problem, inputs: Tensor) -> Tensor:
    return torch.tanh(problem.model[0](inputs)).detach()  # type: ignore[index]


class TestRepresentations:
    def test_scores_are_the_cosine_before_the_last_linear_layer(self):
        problem = mlp_problem()
        train = hidden(problem, problem.train.data[0])
        queries = hidden(problem, problem.query_groups["query"].data[0])
        expected = nn.functional.cosine_similarity(queries[:, None], train[None], dim=2)
        close(representation_similarity(problem), -expected)
        close(representation_similarity(problem, observable="margin"), expected)
        close(representation_similarity(problem, kind="dot"), -queries @ train.T)

    def test_another_layers_input_can_be_named(self):
        problem = mlp_problem()
        x, qx = problem.train.data[0], problem.query_groups["query"].data[0]
        close(representation_similarity(problem, layer="0", kind="dot"), -qx @ x.T)

    def test_matching_labels_turns_the_sign_of_other_classes(self):
        problem = mlp_problem()
        plain = representation_similarity(problem)
        same = problem.query_groups["query"].data[1][:, None] == problem.train.data[1]
        close(representation_similarity(problem, labels="match"), torch.where(same, plain, -plain))

    def test_tokens_are_averaged(self):
        problem, _ = tokens()
        model: Any = problem.model

        def mean(ids: Tensor) -> Tensor:
            return torch.tanh(model.hidden(model.embed(ids))).mean(dim=1).detach()

        train = mean(problem.train.data["input_ids"])
        queries = mean(problem.query_groups["query"].data["input_ids"])
        close(representation_similarity(problem, kind="dot"), -queries @ train.T)

    def test_the_model_and_its_hooks_are_left_as_they_were(self):
        model = network().train()
        before = state_of(model)
        representation_similarity(classification(model=model))
        assert_same_state(model, before)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"kind": "euclidean"}, "kind is 'euclidean': expected one of cosine, dot"),
            ({"labels": "same"}, "labels is 'same': expected one of ignore"),
            ({"layer": "9"}, r"no layer '9'; the model has \['0', '1', '2'\]"),
        ],
    )
    def test_choices_that_do_not_exist_are_refused(self, given, message):
        with pytest.raises(ValueError, match=message):
            representation_similarity(classification(), **given)

    def test_an_observable_without_a_better_side_has_no_sign(self):
        neutral = [bif.Observable("loss", losses.cross_entropy)]
        with pytest.raises(ValueError, match="'loss' calls neither lower nor higher better"):
            representation_similarity(classification(observables=neutral))

    def test_classes_are_needed_to_match_them(self):
        with pytest.raises(ValueError, match="labels='match' needs batches"):
            representation_similarity(tokens()[0], labels="match")

    def test_a_model_without_a_linear_layer_asks_for_one(self):
        class Plain(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.ones(4, 3).double())

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.w

        with pytest.raises(ValueError, match="runs no Linear layer: name the module"):
            representation_similarity(classification(model=Plain()))


class TestCosine:
    def test_the_cosine_is_the_product_over_the_lengths(self):
        problem = classification()
        q = item_gradients(problem, problem.loss, problem.query_groups["query"]).norm(dim=1)
        g = item_gradients(problem, problem.loss, problem.train).norm(dim=1)
        close(gradient_cosine(problem), gradient_product(problem) / (q[:, None] * g))

    def test_an_item_with_itself_is_minus_one_and_a_zero_gradient_zero(self):
        def first_is_flat(model: Any, batch: Any) -> Tensor:
            values = losses.cross_entropy(model, batch)
            return torch.where(batch[0][:, 0] > 0, values, 0 * values)

        problem = classification(loss=first_is_flat, observables=None,
                                 queries=classification().train)  # fmt: skip
        scores = gradient_cosine(problem)
        flat = problem.train.data[0][:, 0] <= 0
        assert 0 < int(flat.sum()) < 20
        close(scores.diagonal(), torch.where(flat, 0.0, -1.0).double())
        assert (scores[:, flat] == 0).all() and (scores[flat] == 0).all()

    def test_only_movable_parameters_count(self):
        whole, part = (gradient_cosine(classification(), movable=m) for m in (["*"], ["2.*"]))
        assert not torch.allclose(whole, part)


class TestChunks:
    @pytest.mark.parametrize("max_rows", [1, 2, 3, 100])
    def test_blocks_of_queries_keep_their_order_across_groups(self, max_rows):
        problem = classification()
        queries = problem.query_groups["query"]
        parts = {"a": tuple(t[:2] for t in queries.data), "b": tuple(t[2:] for t in queries.data)}
        grouped = classification(queries=parts)
        blocks = list(query_gradient_blocks(grouped, problem.loss, max_rows=max_rows))
        assert max(map(len, blocks)) <= max_rows
        close(torch.cat(blocks), item_gradients(problem, problem.loss, queries))

    def test_small_budgets_change_nothing(self, monkeypatch):
        expected = gradient_product(classification())
        monkeypatch.setattr("bif.sampling.item_gradients._CHUNK_BYTES", 3 * 43 * 8)
        monkeypatch.setattr("bif.sampling.item_gradients._QUERY_BYTES", 2 * 43 * 8)
        chunks = list(item_gradient_chunks(
            classification(), losses.cross_entropy, classification().train
        ))  # fmt: skip
        assert [len(c) for c in chunks] == [3] * 6 + [2]
        close(gradient_product(classification()), expected)

    def test_a_model_that_vmap_cannot_take_is_scored_item_by_item(self):
        close(gradient_product(classification(model=NotStackable())),
              gradient_product(classification()))  # fmt: skip

    def test_a_preparation_acts_on_queries_alone(self):
        problem = classification()
        got = signed_products(problem, problem.loss, prepare=lambda rows: 3 * rows)
        close(got, 3 * gradient_product(problem))


class TestRandom:
    def test_scores_depend_on_the_seed_and_nothing_else(self):
        with global_randomness_untouched():
            scores = random_scores(mlp_problem(), seed=1)
        assert scores.shape == (6, 40) and scores.dtype == torch.float64
        assert torch.equal(scores, random_scores(mlp_problem(), seed=1))
        assert not torch.equal(scores, random_scores(mlp_problem(), seed=2))

    def test_an_unknown_observable_is_refused(self):
        with pytest.raises(KeyError, match="no observable 'logit'"):
            random_scores(mlp_problem(), observable="logit")
