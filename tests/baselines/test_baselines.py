"""Baselines against loops and dense algebra."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian

import bif
from bif import losses
from bif.baselines import exact_influence, gradient_product, item_gradients
from bif.sampling.item_gradients import item_gradient_chunks
from small_problems import (
    Pairs,
    assert_same_state,
    classification,
    dict_cross_entropy,
    labelled,
    network,
    normal,
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


def dense_hessian(weights: Tensor | None = None) -> Tensor:
    model = network()
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def mean(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        at = {n: x.view(p.shape) for (n, p), x in zip(named.items(), parts, strict=True)}
        call: Any = lambda x: functional_call(model, at, (x,))  # noqa: E731
        values = losses.cross_entropy(call, TRAIN)
        return (values if weights is None else weights * values).mean()

    return hessian(mean)(torch.cat([p.detach().flatten() for p in named.values()]))


class TestGradientProduct:
    def test_item_gradients_equal_a_loop(self):
        problem = classification()
        got = item_gradients(problem, losses.margin, problem.train)
        torch.testing.assert_close(got, looped(losses.margin, TRAIN), **EXACT)

    @pytest.mark.parametrize("name", [None, "loss", "margin"])
    def test_it_is_minus_the_product_of_gradients(self, name):
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


class TestExactInfluence:
    @pytest.fixture(autouse=True)
    def _needs_curvlinops(self):
        pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")

    @pytest.mark.parametrize("name", ["loss", "margin"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_it_is_the_dense_solve(self, name, weighted):
        weights = normal(20, seed=4).exp() if weighted else None
        function = losses.margin if name == "margin" else losses.cross_entropy
        queries, train = looped(function, QUERIES), looped(losses.cross_entropy, TRAIN)
        damping = 0.3 - float(torch.linalg.eigvalsh(dense_hessian(weights))[0].clamp(max=0))
        damped = dense_hessian(weights) + damping * torch.eye(train.shape[1], dtype=torch.float64)
        expected = -queries @ torch.linalg.solve(damped, train.T)
        got = exact_influence(
            classification(train_weights=weights), damping=damping, observable=name
        )
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)

    def test_times_damping_it_tends_to_the_gradient_product(self):
        # d (H + d)⁻¹ = 1 - H/d + …: the error is at most ‖g_q‖ ‖H‖ ‖g_i‖ / d.
        problem, damping = classification(), 1e6
        product = gradient_product(problem)
        got = damping * exact_influence(problem, damping=damping)
        g_q = looped(losses.cross_entropy, QUERIES).norm(dim=1)
        g_i = looped(losses.cross_entropy, TRAIN).norm(dim=1)
        bound = g_q[:, None] * g_i * torch.linalg.matrix_norm(dense_hessian(), 2) / damping
        assert ((got - product).abs() <= 1.01 * bound + 1e-12).all()
        assert (got - product).abs().max() > 0.01 * bound.max()  # and not nearer than that

    def test_a_hessian_that_is_not_positive_is_refused_with_the_damping_it_needs(self):
        lowest = float(torch.linalg.eigvalsh(dense_hessian())[0])
        assert lowest < -1e-3
        with pytest.raises(ValueError, match="damped Hessian is not positive") as error:
            exact_influence(classification(), damping=0.0)
        needed = float(str(error.value).split("above ")[1].rstrip("."))
        assert needed == pytest.approx(-lowest, rel=1e-2)
        exact_influence(classification(), damping=1.01 * needed)

    def test_too_many_weights_are_refused(self, monkeypatch):
        module = importlib.import_module("bif.baselines.exact")
        monkeypatch.setattr(module, "_LARGEST", 42)
        with pytest.raises(ValueError, match="Hessian of 43 weights does not fit: at most 42"):
            exact_influence(classification(), damping=1.0)

    def test_an_unknown_observable_is_refused(self):
        with pytest.raises(KeyError, match="no observable 'logit'"):
            exact_influence(classification(), damping=1.0, observable="logit")

    def test_the_model_is_left_as_it_was(self):
        model = network().train()
        before = state_of(model)
        exact_influence(classification(model=model), damping=1.0)
        assert_same_state(model, before)


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesian-influence\[baselines\]'"):
        exact_influence(classification(), damping=1.0)


def test_baselines_share_the_shape_and_sign_of_the_influence():
    # An item is helpful to itself: negative, for every rule.
    same = classification(queries=TRAIN, observables=None)
    assert (gradient_product(same).diagonal() < 0).all()
    run = bif.attribute(same, bif.Settings(chains=2, draws=20))
    scores = run.influence.dataset["influence"].values[0]
    assert scores.shape == gradient_product(same).shape and (scores.diagonal() < 0).all()
