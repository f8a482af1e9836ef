"""Damping by what draws can tell: the formula densely, against sampled reliability, and in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import bif
from bif.calibration import alignment
from bif.calibration.alignment import FACTORS, Damping, best_damping, dampings, gradient_sketches
from bif.sampling.oracles import StackedOracle
from small_problems import classification, filled, normal


def gradients(num_items: int, num_weights: int, *, shared: float, seed: int = 0) -> Tensor:
    """Gradients that are all but orthogonal, and what of them lies in three directions."""
    own = normal(num_items, num_weights, seed=seed) / num_weights**0.5
    few = normal(num_items, 3, seed=seed + 1) @ normal(3, num_weights, seed=seed + 2)
    return own + shared * few / num_weights**0.5


def test_dampings_are_those_of_the_dense_formula():
    """With each item's share of F brought down to one of all items, by matrices of the weights."""
    g, usual, num_train = gradients(6, 9, shared=0.5), 0.3, 40
    for found in dampings(g, usual=usual, num_train=num_train):
        signals, rows = [], []
        for j in range(6):
            others = [i for i in range(6) if i != j]
            base = sum(torch.outer(g[i], g[i]) for i in others) / 5
            row, own = [], []
            of_query = None
            for i in others:
                here = base - (1 / 5 - 1 / num_train) * torch.outer(g[i], g[i])
                inverse = torch.linalg.inv(here + found.factor * usual * torch.eye(9))
                row.append(g[j] @ inverse @ g[i])
                own.append(g[i] @ inverse @ g[i])
            whole = torch.linalg.inv(base + found.factor * usual * torch.eye(9))
            of_query = g[j] @ whole @ g[j]
            rows.append(torch.stack(row))
            signals.append(rows[-1].var() / (torch.stack(own).mean() * of_query))
        assert 1 / found.draws_for_half == pytest.approx(float(torch.stack(signals).median()))


def test_alignment_forecasts_the_reliability_of_sampled_scores():
    """Linear losses have Gaussian covariances: two runs agree as the forecast says."""
    num_items, num_weights, draws = 40, 400, 300
    g = gradients(num_items, num_weights, shared=0.15)
    usual = 1.0
    (first, *_) = dampings(g, usual=usual, num_train=num_items)
    precision = g.T @ g / num_items + usual * torch.eye(num_weights)
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    agreements = []
    for seed in range(20):
        scores = []
        for half in range(2):
            losses = normal(draws, num_weights, seed=1000 + 2 * seed + half) @ root.T @ g.T
            scores.append(torch.cov(losses.T))
        keep = ~torch.eye(num_items, dtype=torch.bool)
        rows = [
            torch.corrcoef(torch.stack([a[k], b[k]]))[0, 1]
            for a, b, k in zip(*scores, keep, strict=True)
        ]
        agreements.append(torch.stack(rows).median())
    agreement = float(torch.stack(agreements).mean())
    forecast = draws / (draws + first.draws_for_half)
    assert 0.3 < forecast < 0.7
    assert agreement == pytest.approx(forecast, abs=0.07)


def test_orthogonal_gradients_ask_for_more_damping_and_shared_ones_for_none():
    apart = best_damping(dampings(gradients(48, 50_000, shared=0.0), usual=1e-4, num_train=48))
    shared = best_damping(dampings(gradients(48, 200, shared=1.0), usual=1e-1, num_train=48))
    assert apart.factor > 3 and shared.factor == 1


def test_more_damping_needs_fewer_draws_and_changes_the_scores_more():
    found = dampings(gradients(30, 2000, shared=0.1), usual=1e-3, num_train=30)
    assert [d.factor for d in found] == list(FACTORS) and found[0].agreement == pytest.approx(1)
    needed, agreement = [d.draws_for_half for d in found], [d.agreement for d in found]
    assert needed == sorted(needed, reverse=True) and agreement == sorted(agreement, reverse=True)


def test_of_dampings_nearly_as_good_the_least_is_taken():
    found = [Damping(1.0, 4000.0, 1.0), Damping(3.0, 100.0, 0.99), Damping(10.0, 10.0, 0.99)]
    assert [d.quality for d in found] == pytest.approx([0.7071, 0.9779, 0.9888], abs=1e-4)
    assert best_damping(found).factor == 3


class TestGradients:
    def test_sketched_gradients_are_those_of_single_items(self):
        problem = classification()
        params = {n: p.unsqueeze(0) for n, p in problem.center().items()}
        oracle = StackedOracle(problem.model, problem.loss)
        found = gradient_sketches(oracle, params, problem.train, range(4), masks={})
        for i in range(4):
            loss = problem.loss(problem.model, problem.train.take(torch.tensor([i]))).sum()
            expected = torch.autograd.grad(loss, list(problem.model.parameters()))
            flat = torch.cat([x.flatten() for x in expected])
            torch.testing.assert_close(found[i].double(), flat, rtol=1e-5, atol=1e-7)

    def test_weights_that_do_not_move_are_left_out(self):
        problem = classification()
        params = {n: p.unsqueeze(0) for n, p in problem.center().items()}
        name, leaf = next(iter(problem.center().items()))
        mask = torch.arange(leaf.numel()).view(leaf.shape) % 2 == 0
        oracle = StackedOracle(problem.model, problem.loss)
        whole, part = (
            gradient_sketches(oracle, params, problem.train, range(3), masks=masks)
            for masks in ({}, {name: mask})
        )
        kept = torch.ones(whole.shape[1], dtype=torch.bool)
        kept[: leaf.numel()] = mask.flatten()
        assert torch.equal(part, whole * kept) and (whole[:, ~kept] != 0).any()

    def test_long_ones_keep_their_inner_products_roughly(self, monkeypatch):
        monkeypatch.setattr(alignment, "_SKETCHED", 2000)
        g = gradients(10, 30_000, shared=0.3)
        rows = torch.stack(
            [alignment._sketch({"a": x[None, :7001], "b": x[None, 7001:]}) for x in g]
        )
        assert rows.shape == (10, 2000)
        norms = g.norm(dim=1)
        error = (rows.double() @ rows.double().T - g @ g.T) / torch.outer(norms, norms)
        # Its standard deviation is at most about sqrt(2 / 2000).
        assert error.abs().max() < 5 * (2 / 2000) ** 0.5


class TestCalibration:
    SETTINGS = bif.Settings(chains=2, draws=4)

    @staticmethod
    def problem(width: int) -> bif.Problem:
        """A wide linear map of random inputs: gradients of items share next to nothing."""
        with torch.random.fork_rng(devices=[]):
            model = filled(nn.Linear(width, 1, bias=False))
        x = normal(12, width, seed=0)
        data = (x, model(x).detach() + normal(12, 1, seed=1).sign())
        return bif.Problem(model, bif.losses.squared_error, train=data, queries=data)

    def test_gamma_is_raised_and_it_says_why(self):
        problem = self.problem(4000)
        found = bif.calibrate(problem, replace(self.SETTINGS, nbeta=12.0))
        (line,) = [x for x in found.explanations if x.startswith("gamma")]
        assert "nearly orthogonal" in line and "for a reliability of one half" in line
        factor = float(line.split("× ")[1].split(":")[0])
        assert factor in FACTORS[1:]
        top = float(line.split("at w*, ")[1].split(",")[0])
        assert found.settings.gamma == pytest.approx(12 * top / 50 * factor, rel=1e-3)

    def test_a_gamma_that_is_given_stays(self):
        found = bif.calibrate(self.problem(4000), replace(self.SETTINGS, gamma=3.0))
        assert not any("orthogonal" in line for line in found.explanations)
        assert found.settings.gamma == 3.0

    def test_nothing_is_damped_at_nbeta_zero(self):
        found = bif.calibrate(self.problem(4000), replace(self.SETTINGS, nbeta=0.0))
        (line,) = [x for x in found.explanations if x.startswith("gamma")]
        top = float(line.split("at w*, ")[1].split(",")[0])
        assert found.settings.gamma == pytest.approx(top / 50, rel=1e-3)
