"""The anchored covariance: exact where all is linear, unbiased for any vector, honest intervals."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from bif.estimate.anchored import fit_anchors, remove_linear_part, slope_share
from bif.estimate.covariance import estimate_covariance
from bif.estimate.diagnostics import reliability
from bif.estimate.intervals import t_quantile
from bif.estimate.traces import LossTraces, TraceBlock

ITEMS = np.array([0.3, -1.0, 2.0])
"""Slopes of the losses `a·w + w²/2 + sin(w)/3` of one weight."""


def anchored_traces(train: Tensor, query: Tensor, anchor: Tensor, slope: Tensor) -> LossTraces:
    block = TraceBlock(tuple(range(len(train))), train, query, anchor, slope)
    return LossTraces((block,))


def parts(traces: LossTraces) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    block = traces.blocks[0]
    assert block.anchor is not None and block.slope is not None
    return block.train, block.query, block.anchor, block.slope


class Quartic:
    """`U = t·(w²/2 + w³/6 + w⁴/8)` of one weight, with draws by its inverse distribution."""

    def __init__(self, temperature_inverse: float) -> None:
        self.t = temperature_inverse
        self.grid = np.linspace(-6, 6, 200_001)
        density = np.exp(-self.potential(self.grid))
        self.norm = quad(lambda w: np.exp(-self.potential(w)), -6, 6, limit=200)[0]
        self.cumulative = np.cumsum(density)
        self.cumulative /= self.cumulative[-1]

    def potential(self, w):
        return self.t * (w**2 / 2 + w**3 / 6 + w**4 / 8)

    def force(self, w):
        return self.t * (w + w**2 / 2 + w**3 / 2)

    def losses(self, w):
        return np.multiply.outer(w, ITEMS) + (w**2 / 2 + np.sin(w) / 3)[..., None]

    def slopes(self, w):
        return np.broadcast_to(ITEMS, (*w.shape, 3)) + (w + np.cos(w) / 3)[..., None]

    @staticmethod
    def observable(w):
        return 2 * w - w**2 / 2

    def mean(self, function):
        def weighted(w):
            return function(w) * np.exp(-self.potential(w)) / self.norm

        return quad(weighted, -6, 6, limit=200)[0]

    def covariances(self) -> np.ndarray:
        phi = self.mean(self.observable)
        means = [self.mean(lambda w, i=i: self.losses(np.asarray(w))[..., i]) for i in range(3)]
        return np.array([
            self.mean(
                lambda w, i=i: (self.losses(np.asarray(w))[..., i] - means[i])
                * (self.observable(w) - phi)
            )
            for i in range(3)
        ])  # fmt: skip

    def traces(self, *, chains: int, draws: int, vector: float, seed: int) -> LossTraces:
        u = np.random.default_rng(seed).random((chains, draws))
        w = np.interp(u, self.cumulative, self.grid)
        return anchored_traces(
            torch.from_numpy(self.losses(w)),
            torch.from_numpy(self.observable(w))[..., None],
            torch.from_numpy(vector * self.force(w))[..., None],
            torch.from_numpy(vector * self.slopes(w).mean(axis=1))[:, None],
        )


def quadratic(num_chains: int, num_draws: int, seed: int = 0) -> tuple[LossTraces, Tensor]:
    """Traces of linear losses under a quadratic U with exact anchors, and the covariance."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    root, items, queries = normal(4, 4), normal(6, 4), normal(2, 4)
    curvature = root @ root.T + torch.eye(4, dtype=torch.float64)
    vectors = torch.linalg.solve(curvature, queries.T).T
    w = normal(num_chains, num_draws, 4)  # of any law: the answer does not depend on it
    exact = vectors @ items.T
    return anchored_traces(
        w @ items.T, w @ queries.T, w @ curvature @ vectors.T, exact.expand(num_chains, 2, 6)
    ), exact


class TestExactness:
    def test_two_draws_in_each_of_two_chains_give_the_exact_answer(self):
        traces, exact = quadratic(2, 2)
        found = estimate_covariance(traces)
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-12)
        assert found.standard_error.abs().max() < 1e-7  # a root of rounding

    def test_the_plain_covariance_of_these_draws_is_far_away(self):
        traces, exact = quadratic(2, 2)
        plain = estimate_covariance(traces.without_anchors()).value
        assert (plain - exact).abs().max() > 0.1

    def test_sums_over_items_and_queries_are_the_sums_of_scores(self):
        traces, exact = quadratic(4, 3)
        groups, queries = {"a": [0, 1], "b": [2, 5]}, {"both": [0, 1]}
        found = estimate_covariance(traces.summed_over(groups, queries=queries)).value
        expected = exact.sum(dim=0)[None, [[0, 1], [2, 5]]].sum(dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_chains_and_columns_can_be_left_out(self):
        traces, exact = quadratic(5, 3)
        some = LossTraces((traces.blocks[0].only([0, 3, 4]),))
        some = some.truncated(2).selected(train=np.array([4, 1]), query=np.array([1]))
        found = estimate_covariance(some).value
        torch.testing.assert_close(found, exact[1:][:, [4, 1]], rtol=0, atol=1e-12)

    def test_halves_of_the_chains_agree_entirely(self):
        traces, _ = quadratic(8, 3)
        assert reliability(traces) == pytest.approx(1.0, abs=1e-9)
        assert reliability(traces.without_anchors()) < 0.99

    def test_the_variance_of_rows_is_that_of_the_observable(self):
        traces, _ = quadratic(4, 50)
        plain = estimate_covariance(traces.without_anchors()).row_variance
        torch.testing.assert_close(estimate_covariance(traces).row_variance, plain)


class TestAnyVector:
    @pytest.mark.parametrize("t", [0.5, 2.0, 20.0])
    @pytest.mark.parametrize("vector", [1.0, -0.4, 3.0])
    def test_it_is_unbiased(self, t, vector):
        problem = Quartic(t)
        exact = problem.covariances()
        found = np.stack([
            estimate_covariance(
                problem.traces(chains=4, draws=25, vector=vector / t, seed=s)
            ).value.numpy()[0]
            for s in range(100)
        ])  # fmt: skip
        error = found.std(axis=0, ddof=1) / 10
        assert (np.abs(found.mean(axis=0) - exact) < 5 * error).all()

    def test_a_slope_of_the_wrong_sign_is_seen(self):
        problem = Quartic(20.0)
        traces = problem.traces(chains=16, draws=400, vector=0.05, seed=0)
        train, query, anchor, slope = parts(traces)
        turned = anchored_traces(train, query, anchor, -slope)
        found = estimate_covariance(turned)
        away = (found.value[0].numpy() - problem.covariances()) / found.standard_error[0].numpy()
        assert np.abs(away).min() > 5

    def test_a_coefficient_of_one_with_a_poor_vector_is_worse_than_none(self):
        problem = Quartic(2.0)
        traces = problem.traces(chains=64, draws=100, vector=-4.0, seed=1)
        phi, anchor = (x.flatten() for x in parts(traces)[1:3])
        assert (phi - anchor).var() > 2 * phi.var()  # the trap
        fit = fit_anchors(traces, 16)
        assert float(fit.variance_left) < 1

    def test_an_anchor_that_does_not_fit_is_not_used(self):
        problem = Quartic(2.0)
        traces = problem.traces(chains=16, draws=200, vector=1.0, seed=2)
        train, query, _, slope = parts(traces)
        noise = torch.randn(query.shape, generator=torch.Generator().manual_seed(3))
        unfit = anchored_traces(train, query, noise.double(), slope)
        plain = estimate_covariance(traces.without_anchors())
        assert (fit_anchors(unfit, 16).coefficient == 0).all()
        torch.testing.assert_close(estimate_covariance(unfit).value, plain.value)

    def test_an_observable_that_never_moves_has_scores_of_zero(self):
        problem = Quartic(2.0)
        traces = problem.traces(chains=4, draws=10, vector=1.0, seed=2)
        train, query, anchor, slope = parts(traces)
        still = anchored_traces(train, torch.zeros_like(query), anchor, slope)
        assert (estimate_covariance(still).value == 0).all()
        assert fit_anchors(still, 16).variance_left.isnan().all()


class TestIntervals:
    def test_they_hold_95_percent(self):
        """Draws are independent here; 500 runs of 16 chains: 93 to 97 %."""
        problem = Quartic(3.0)
        exact = problem.covariances()
        linear = ITEMS + 1 / 3  # slopes at the minimum, times those of phi, 2, over the curvature
        linear = 2 * linear / problem.t
        held = held_correction = 0
        for seed in range(500):
            traces = problem.traces(chains=16, draws=24, vector=1 / problem.t, seed=seed)
            found = estimate_covariance(traces)
            width = t_quantile(16) * found.standard_error[0].numpy()
            value = found.value[0].numpy()
            held += (np.abs(value - exact) < width).mean()
            correction, true = value - linear, exact - linear
            held_correction += (np.abs(correction - true) < width).mean()
        assert 0.93 <= held / 500 <= 0.97
        assert 0.93 <= held_correction / 500 <= 0.97

    @pytest.mark.slow
    def test_without_the_spread_of_slopes_they_would_be_too_narrow(self):
        problem = Quartic(3.0)
        exact, held = problem.covariances(), 0.0
        for seed in range(300):
            traces = problem.traces(chains=16, draws=24, vector=1 / problem.t, seed=seed)
            found = estimate_covariance(traces)
            train, query, anchor, slope = parts(traces)
            same = slope.mean(dim=0, keepdim=True).expand_as(slope)
            narrow = estimate_covariance(anchored_traces(train, query, anchor, same))
            width = t_quantile(16) * narrow.standard_error[0].numpy()
            held += (np.abs(found.value[0].numpy() - exact) < width).mean()
        assert held / 300 < 0.93


class TestShareOfSlopes:
    def test_it_falls_as_one_over_the_draws_behind_them(self):
        """Both variances are known to about a tenth from 400 chains."""
        problem = Quartic(3.0)
        traces = problem.traces(chains=400, draws=32, vector=1 / problem.t, seed=5)
        train, query, anchor, _ = parts(traces)
        w = np.interp(np.random.default_rng(6).random((400, 8)), problem.cumulative, problem.grid)
        few = torch.from_numpy(problem.slopes(w).mean(axis=1) / problem.t)[:, None]
        share = slope_share(traces)
        with_few = slope_share(anchored_traces(train, query, anchor, few))
        assert with_few / share == pytest.approx(4, rel=0.6)

    def test_what_is_left_has_no_anchors(self):
        traces, _ = quadratic(4, 3)
        rest = remove_linear_part(traces, fit_anchors(traces, 4))
        assert not rest.anchored
        assert rest.blocks[0].query.std(dim=1).max() < 1e-9
