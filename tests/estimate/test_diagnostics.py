"""Reliability, R-hat and effective sample size, against slow definitions and arviz-stats."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from bif import LossTraces
from bif.estimate import convergence, diagnose, reliability, reliability_by_draws
from bif.estimate.diagnostics import subsample
from bif.estimate.traces import TraceBlock
from small_problems import normal

N, Q = 12, 5


def traces(num_chains: int, num_draws: int, *, signal: float = 1.0, seed: int = 0) -> LossTraces:
    causes = normal(num_chains, num_draws, 4, seed=seed)
    train = signal * causes @ normal(4, N, seed=1) + normal(num_chains, num_draws, N, seed=seed + 2)
    query = causes @ normal(4, Q, seed=3) + normal(num_chains, num_draws, Q, seed=seed + 4)
    return LossTraces.from_arrays(train, query)


def half_scores(traces: LossTraces, chains: list[int]) -> np.ndarray:
    """Within-chain covariance `[Q, N]` of some chains, weighted by degrees of freedom."""
    total, freedom = np.zeros((Q, N)), 0
    for i, (_, train, query) in enumerate(traces.each_chain()):
        if i in chains:
            joint = np.cov(np.concatenate([query.numpy(), train.numpy()], axis=1).T)
            total += joint[:Q, Q:] * (len(train) - 1)
            freedom += len(train) - 1
    return total / freedom


def agreement(traces: LossTraces, first: list[int]) -> float:
    second = [c for c in range(traces.num_chains) if c not in first]
    a, b = half_scores(traces, first), half_scores(traces, second)
    r = np.array([np.corrcoef(a[q], b[q])[0, 1] for q in range(Q)])
    return float(np.median(2 * r / (1 + r)))


class TestReliability:
    def test_two_chains_have_one_split(self):
        given = traces(2, 60)
        assert reliability(given) == pytest.approx(agreement(given, [0]), abs=1e-10)

    @pytest.mark.parametrize("num_chains", [5, 8])
    def test_it_is_the_mean_over_twenty_random_splits(self, num_chains):
        given = traces(num_chains, 30)
        rng = np.random.default_rng(2)  # the library's stream for seed 0
        expected = np.mean(
            [
                agreement(given, rng.permutation(num_chains)[: num_chains // 2].tolist())
                for _ in range(20)
            ]
        )
        assert reliability(given) == pytest.approx(expected, abs=1e-10)

    def test_reliability_takes_blocks_of_unequal_length(self):
        a, b = traces(1, 60).blocks[0], traces(1, 25, seed=20).blocks[0]
        given = LossTraces((a, TraceBlock((1,), b.train, b.query)))
        assert reliability(given) == pytest.approx(agreement(given, [0]), abs=1e-10)

    def test_it_agrees_with_an_independent_run_of_the_same_length(self):
        # Spearman-Brown: the expected correlation of two runs of 2×16 chains.
        found, crossed = [], []
        for seed in range(12):
            one, two = (traces(32, 25, signal=0.3, seed=100 * seed + k) for k in (0, 50))
            found.append(np.mean([reliability(one), reliability(two)]))
            a, b = (half_scores(t, list(range(32))) for t in (one, two))
            crossed.append(np.median([np.corrcoef(a[q], b[q])[0, 1] for q in range(Q)]))
        gap = np.array(found) - np.array(crossed)
        assert 0.2 < np.mean(crossed) < 0.99
        assert abs(gap.mean()) < 5 * gap.std(ddof=1) / len(gap) ** 0.5

    def test_pure_noise_is_not_reliable_and_the_same_chains_are(self):
        train, query = normal(2, 4000, N, seed=0), normal(2, 4000, Q, seed=1)
        # r of N values without signal has standard deviation 1/sqrt(N - 1).
        assert abs(reliability(LossTraces.from_arrays(train, query))) < 5 * 2 / (N - 1) ** 0.5
        same = traces(1, 50).blocks[0]
        twice = LossTraces.from_arrays(same.train.expand(2, -1, -1), same.query.expand(2, -1, -1))
        assert reliability(twice) == pytest.approx(1, abs=1e-12)

    def test_it_is_not_defined_where_no_loss_moves_or_between_two_items(self):
        constant = LossTraces.from_arrays(torch.ones(4, 9, N), normal(4, 9, Q, seed=0))
        assert np.isnan(reliability(constant))
        assert np.isnan(reliability(traces(4, 20).selected(train=np.arange(2), query=np.arange(Q))))

    def test_halves_that_disagree_are_not_stepped_up_without_bound(self):
        found = [
            reliability(LossTraces.from_arrays(normal(2, 5, 3, seed=s), normal(2, 5, 1, seed=99)))
            for s in range(20)
        ]
        assert -1 <= min(found) < 0

    def test_one_chain_has_no_reliability(self):
        assert np.isnan(reliability(traces(1, 20)))

    def test_subsets_are_the_same_for_the_same_seed(self):
        given = traces(4, 20)
        first = reliability(given, num_queries=3, num_train=6, seed=4)
        assert first == reliability(given, num_queries=3, num_train=6, seed=4)
        assert first != reliability(given, num_queries=3, num_train=6, seed=5)

    def test_growing_prefixes_end_at_the_whole(self):
        given = traces(4, 50)
        draws, values = reliability_by_draws(given)
        assert draws[0] == 4 * 8 and draws[-1] == given.total_draws
        assert (np.diff(draws) > 0).all() and len(draws) == len(values)
        for total, value in zip(draws, values, strict=True):
            assert value == pytest.approx(reliability(given.truncated(int(total) // 4)), abs=1e-12)

    def test_the_shortest_traces_have_one_prefix(self):
        draws, values = reliability_by_draws(traces(3, 2))
        assert draws.tolist() == [6] and len(values) == 1


class TestConvergence:
    def test_convergence_is_that_of_arviz_stats(self):
        given = traces(6, 40)
        ess, rhat = convergence(given)
        losses = given.blocks[0].train.numpy()
        assert len(ess) == len(rhat) == N
        for i in range(N):
            np.testing.assert_allclose(ess[i], array_stats.ess(losses[..., i]), rtol=1e-10)
            np.testing.assert_allclose(rhat[i], array_stats.rhat(losses[..., i]), rtol=1e-10)

    def test_chains_that_disagree_show_in_rhat(self):
        apart = traces(4, 100).blocks[0]
        offsets = torch.tensor([0.0, 0.0, 10.0, 10.0], dtype=torch.float64)[:, None, None]
        _, rhat = convergence(LossTraces.from_arrays(apart.train + offsets, apart.query))
        assert (rhat > 1.5).all()

    def test_a_constant_item_has_nan_and_spoils_no_other(self):
        given = traces(4, 40)
        plain = convergence(given)
        given.blocks[0].train[:, :, 3] = 7.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = convergence(given)
        for values, was in zip(got, plain, strict=True):
            assert np.flatnonzero(np.isnan(values)).tolist() == [3]
            np.testing.assert_array_equal(np.delete(values, 3), np.delete(was, 3))

    def test_fewer_than_four_draws_have_none(self):
        assert all(np.isnan(values).all() for values in convergence(traces(4, 3)))

    def test_blocks_are_cut_to_the_shortest_chain(self):
        a, b = traces(2, 60).blocks[0], traces(2, 25, seed=20).blocks[0]
        mixed = convergence(LossTraces((a, b)))
        cut = LossTraces.from_arrays(
            torch.cat([a.train[:, :25], b.train]), torch.cat([a.query[:, :25], b.query])
        )
        np.testing.assert_array_equal(mixed, convergence(cut))


class TestDiagnose:
    def test_it_holds_mean_losses_of_every_chain_and_all_figures(self):
        given = traces(3, 20)
        got = diagnose(given, center_mean_loss=0.25, diverged=[4, 7])
        np.testing.assert_allclose(
            got["mean_loss"].values, given.blocks[0].train.mean(dim=2), rtol=1e-6, atol=1e-6
        )
        assert got["mean_loss"].dims == ("chain", "draw")
        assert got["draw"].values.tolist() == list(range(20))
        assert got.attrs["diverged_chains"] == [4, 7]
        assert float(got["center_mean_loss"]) == 0.25
        assert got["reliability_draws"].values[-1] == 60
        assert got["ess"].shape == got["rhat"].shape == (N,)

    def test_chains_keep_their_numbers_and_long_traces_are_thinned_evenly(self):
        train, query = torch.zeros(2, 5000, 1), torch.zeros(2, 5000, 1)
        train[:, :, 0] = torch.arange(5000.0)
        got = diagnose(LossTraces((TraceBlock((1, 3), train, query),)), center_mean_loss=0.0)
        assert got["chain"].values.tolist() == [1, 3]
        shown = got["draw"].values
        assert len(shown) == 2000 and shown[0] == 0 and shown[-1] == 4999
        assert set(np.diff(shown)) <= {2, 3}
        np.testing.assert_array_equal(got["mean_loss"].values[0], shown.astype(np.float32))


def test_subsamples_are_sorted_distinct_and_all_where_there_are_few():
    assert subsample(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = subsample(1000, 50, seed=3)
    assert len(set(chosen.tolist())) == 50 and (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, subsample(1000, 50, seed=3))
