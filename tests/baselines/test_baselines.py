"""Baselines against loops and dense algebra."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import bif
from bif import losses
from bif.baselines import EKFAC, gradient_product, item_gradients
from bif.sampling.item_gradients import item_gradient_chunks
from small_problems import (
    Pairs,
    assert_same_state,
    classification,
    dict_cross_entropy,
    labelled,
    network,
    state_of,
)

TRAIN, QUERIES = labelled(20, seed=1), labelled(5, seed=2)
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}


def looped(loss: Any, items: tuple[Tensor, Tensor], names: tuple[str, ...] = ()) -> Tensor:
    """Gradient of every item, one backward pass at a time, `[N, P]`."""
    rows = []
    for i in range(len(items[0])):
        model = network()
        loss(model, (items[0][i : i + 1], items[1][i : i + 1])).sum().backward()
        rows.append(
            torch.cat(
                [p.grad.flatten() for n, p in model.named_parameters()
                 if p.grad is not None and (not names or n in names)]
            )
        )  # fmt: skip
    return torch.stack(rows)


class TestGradientProduct:
    def test_item_gradients_equal_a_loop(self):
        problem = classification()
        got = item_gradients(problem, losses.margin, problem.train)
        torch.testing.assert_close(got, looped(losses.margin, TRAIN), **EXACT)

    @pytest.mark.parametrize("name", [None, "loss", "margin"])
    def test_scores_are_minus_the_product_of_gradients(self, name):
        function = losses.margin if name == "margin" else losses.cross_entropy
        expected = -looped(function, QUERIES) @ looped(losses.cross_entropy, TRAIN).T
        got = gradient_product(classification(), observable=name)
        assert got.shape == (5, 20)
        torch.testing.assert_close(got, expected, **EXACT)

    def test_only_movable_parameters_count(self):
        names = ("2.weight", "2.bias")
        expected = (
            -looped(losses.cross_entropy, QUERIES, names)
            @ looped(losses.cross_entropy, TRAIN, names).T
        )
        got = gradient_product(classification(), movable=["2.*"])
        torch.testing.assert_close(got, expected, **EXACT)

    @pytest.mark.parametrize("chunk_size", [1, 7, 20])
    def test_chunks_change_nothing(self, chunk_size):
        problem = classification()
        parts = list(
            item_gradient_chunks(problem, problem.loss, problem.train, chunk_size=chunk_size)
        )
        assert max(len(part) for part in parts) == chunk_size
        torch.testing.assert_close(torch.cat(parts), looped(problem.loss, TRAIN), **EXACT)

    def test_dicts_datasets_and_several_query_groups_give_the_same(self):
        plain = gradient_product(classification())
        parts = {"a": tuple(t[:2] for t in QUERIES), "b": tuple(t[2:] for t in QUERIES)}
        grouped = classification(train=Pairs(*TRAIN), queries=parts)
        dicts = classification(
            loss=dict_cross_entropy,
            train=dict(zip("xy", TRAIN, strict=True)),
            queries=dict(zip("xy", QUERIES, strict=True)),
            observables=None,
        )
        for problem in (grouped, dicts):
            torch.testing.assert_close(gradient_product(problem), plain, **EXACT)

    def test_token_losses_are_summed(self):
        def tokens(model: Any, batch: Any) -> Tensor:
            return losses.cross_entropy(model, batch).unsqueeze(1) * torch.tensor([0.25, 0.75])

        got = gradient_product(classification(loss=tokens, observables=None))
        torch.testing.assert_close(got, gradient_product(classification()), rtol=0, atol=1e-12)

    def test_an_unknown_observable_is_refused(self):
        with pytest.raises(
            KeyError, match=r"no observable 'logit'; there are \['loss', 'margin'\]"
        ):
            gradient_product(classification(), observable="logit")

    def test_nothing_movable_is_refused(self):
        with pytest.raises(ValueError, match="matches no parameter"):
            gradient_product(classification(), movable=["head.*"])

    def test_slices_add_up_to_the_whole(self):
        parts = [
            gradient_product(classification(), movable=[f"0.weight[{rows}]"])
            for rows in ("0:2", "2:5")
        ]
        whole = gradient_product(classification(), movable=["0.weight"])
        torch.testing.assert_close(parts[0] + parts[1], whole, rtol=0, atol=1e-12)

    def test_the_model_is_left_as_it_was(self):
        model = network().train()
        before = state_of(model)
        gradient_product(classification(model=model))
        assert_same_state(model, before)


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesian-influence\[baselines\]'"):
        EKFAC.fit(classification())


def test_baselines_share_the_shape_and_sign_of_the_influence():
    # An item is helpful to itself: negative, for every rule.
    same = classification(queries=TRAIN, observables=None)
    assert (gradient_product(same).diagonal() < 0).all()
    run = bif.attribute(same, bif.Settings(chains=2, draws=20))
    scores = run.influence.dataset["influence"].values[0]
    assert scores.shape == gradient_product(same).shape and (scores.diagonal() < 0).all()
