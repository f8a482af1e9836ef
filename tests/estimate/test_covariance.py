"""The streaming covariance and its standard errors, against slow references and known laws."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bif.estimate.covariance as module
from bif import LossTraces
from bif.estimate import Covariance, CovarianceSums, GroupSums, estimate_covariance
from bif.estimate.traces import TraceBlock
from small_problems import normal

N, Q = 6, 4
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def correlated(num_chains: int, num_draws: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Train `[C, D, N]` and query `[C, D, Q]` losses with common causes and chain offsets."""
    causes = normal(num_chains, num_draws, 3, seed=seed)
    train = causes @ normal(3, N, seed=1) + normal(num_chains, num_draws, N, seed=seed + 2)
    query = causes @ normal(3, Q, seed=3) + normal(num_chains, num_draws, Q, seed=seed + 4)
    return train + normal(num_chains, 1, N, seed=5), query + normal(num_chains, 1, Q, seed=6)


def slow(chains: Sequence[tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """Covariance within each part by numpy.cov, weighted by degrees of freedom."""
    freedom = np.array([len(train) - 1 for train, _ in chains])
    joint = [np.cov(np.concatenate([q.numpy(), t.numpy()], axis=1).T) for t, q in chains]
    whole = sum(f * c for f, c in zip(freedom, joint, strict=True)) / freedom.sum()
    means = [np.concatenate([q.mean(0).numpy(), t.mean(0).numpy()]) for t, q in chains]
    mean = sum(f * m for f, m in zip(freedom, means, strict=True)) / freedom.sum()
    return {
        "value": whole[:Q, Q:],
        "row_variance": np.diag(whole)[:Q],
        "column_variance": np.diag(whole)[Q:],
        "row_mean": mean[:Q],
        "column_mean": mean[Q:],
    }


def grouped(
    blocks: Sequence[tuple[Tensor, Tensor]], num_groups: int
) -> list[tuple[Tensor, Tensor]]:
    """Draws of each group's chains one after another; of blocks apart where a group straddles."""
    places = [(b, c) for b, (train, _) in enumerate(blocks) for c in range(len(train))]
    num_groups = min(num_groups, len(places))
    found = []
    for g in range(num_groups):
        own = places[g * len(places) // num_groups : (g + 1) * len(places) // num_groups]
        for b in sorted({b for b, _ in own}):
            chains = [c for block, c in own if block == b]
            found.append(tuple(x[chains].flatten(0, 1) for x in blocks[b]))
    return found


def assert_equals(covariance: Covariance, expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(covariance, name).numpy(), value, rtol=1e-10, atol=1e-10, err_msg=name
        )


def summed(parts: Sequence[tuple[Tensor, Tensor]]) -> CovarianceSums:
    """One group a part."""
    sums = CovarianceSums()
    for train, query in parts:
        group = GroupSums()
        group.update(train, query)
        sums.add(group.close())
    return sums


class TestValue:
    @pytest.mark.parametrize(("num_chains", "num_groups"), [(1, 1), (5, 1), (5, 3), (5, 99)])
    def test_it_equals_numpy_cov_of_each_group_of_chains(self, num_chains, num_groups):
        train, query = correlated(num_chains, 40)
        got = estimate_covariance(LossTraces.from_arrays(train, query), num_groups=num_groups)
        assert_equals(got, slow(grouped([(train, query)], num_groups)))
        assert got.num_groups == min(num_groups, num_chains)
        assert all(
            getattr(got, f.name).dtype == torch.float64
            for f in fields(got)
            if f.name != "num_groups"
        )

    def test_chains_of_unequal_length_count_by_their_degrees_of_freedom(self):
        blocks = []
        for i, (chains, draws) in enumerate(((3, 50), (2, 7), (4, 20))):
            blocks.append(TraceBlock(tuple(range(chains)), *correlated(chains, draws, seed=i)))
        for num_groups in (1, 4, 16):  # groups that straddle blocks, too
            got = estimate_covariance(LossTraces(tuple(blocks)), num_groups=num_groups)
            # Means are weighted by degrees of freedom as well: one less than a group's draws.
            assert_equals(got, slow(grouped([(b.train, b.query) for b in blocks], num_groups)))

    def test_offsets_of_groups_add_nothing(self):
        train, query = correlated(4, 30)
        shifted = train + 1000 * normal(4, 1, N, seed=8), query + 1000 * normal(4, 1, Q, seed=9)
        near = estimate_covariance(LossTraces.from_arrays(train, query))
        far = estimate_covariance(LossTraces.from_arrays(*shifted))
        torch.testing.assert_close(far.value, near.value, rtol=1e-9, atol=1e-9)
        pooled = np.cov(shifted[0][:, :, 0].flatten(), shifted[1][:, :, 0].flatten())[0, 1]
        assert abs(pooled - float(near.value[0, 0])) > 1000  # what global centring would say

    def test_what_chains_of_a_group_differ_in_widens_the_error(self):
        # A weight that never moves within a chain, and of which every chain has its own.
        train, query = correlated(64, 30)
        own = normal(64, 1, 1, seed=8)
        got = estimate_covariance(LossTraces.from_arrays(train + 3 * own, query + 3 * own))
        plain = estimate_covariance(LossTraces.from_arrays(train, query))
        away = (got.value - plain.value - 9 * float(own.var())).abs()
        assert (away < 5 * got.standard_error).all()
        assert (got.standard_error > 5 * plain.standard_error).all()

    def test_float32_traces_on_a_large_offset_keep_their_digits(self):
        # Around 1e6 float32 resolves 1/16: these traces are exactly representable.
        steps = torch.randint(-40, 40, (4, 50, N + Q), generator=torch.Generator().manual_seed(0))
        exact = steps.double() / 16
        far = (exact + 1e6).float()
        assert torch.equal(far.double() - 1e6, exact)
        got = estimate_covariance(LossTraces.from_arrays(far[..., :N], far[..., N:]))
        expected = estimate_covariance(LossTraces.from_arrays(exact[..., :N], exact[..., N:]))
        torch.testing.assert_close(got.value, expected.value, **EXACT)
        torch.testing.assert_close(got.column_variance, expected.column_variance, **EXACT)
        naive = far[..., 0] * far[..., N]
        naive = float(naive.mean() - far[..., 0].mean() * far[..., N].mean())
        assert abs(naive - float(expected.value[0, 0])) > 1  # what no reference point would say

    @pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 13, 20], [39, 1]])
    def test_updates_in_parts_equal_one_update(self, sizes):
        train, query = correlated(3, 40)
        whole, parts = GroupSums(), GroupSums()
        whole.update(train, query)
        for t, q in zip(train.split(sizes, dim=1), query.split(sizes, dim=1), strict=True):
            parts.update(t, q)
        a, b = whole.close(), parts.close()
        assert a.freedom == b.freedom == 3 * 40 - 1
        for name in ("covariance", "column_variance", "row_variance", "column_mean", "row_mean"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)

    def test_small_arithmetic_chunks_change_nothing(self, monkeypatch):
        train, query = correlated(5, 40)
        traces = LossTraces.from_arrays(train, query)
        whole = estimate_covariance(traces, num_groups=2)
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 50)
        parts = estimate_covariance(traces, num_groups=2)
        for field in fields(whole):
            if field.name != "num_groups":
                torch.testing.assert_close(
                    getattr(parts, field.name), getattr(whole, field.name), rtol=0, atol=1e-12
                )

    def test_the_callers_traces_are_only_read(self):
        train, query = correlated(3, 10)
        copies = train.clone(), query.clone()
        estimate_covariance(LossTraces.from_arrays(train, query))
        assert torch.equal(train, copies[0]) and torch.equal(query, copies[1])

    def test_the_square_of_the_train_items_is_symmetric_and_positive(self):
        train, query = correlated(4, 5)  # 16 degrees of freedom
        wide = torch.cat([train @ normal(N, 30, seed=4)], dim=2)  # 30 items of rank 6
        got = estimate_covariance(LossTraces.from_arrays(wide, query), rows="train")
        torch.testing.assert_close(got.value, got.value.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.value.diagonal(), got.column_variance, rtol=1e-12, atol=0)
        eigenvalues = torch.linalg.eigvalsh((got.value + got.value.T) / 2)
        assert eigenvalues[0] > -30 * 2**-52 * 100 * eigenvalues[-1]
        assert (eigenvalues > 1e-9 * eigenvalues[-1]).sum() == 6


class TestMerging:
    def test_every_order_gives_the_same_bits(self):
        # Parts of very different size, so that plain sums would depend on the order.
        parts = [
            [(t * 10.0**e, q)]
            for e, (t, q) in zip(
                (-6, 0, 3, 6), [correlated(2, 9, seed=10 * s) for s in range(4)], strict=True
            )
        ]
        found = []
        for permutation in itertools.permutations(range(4)):
            total = CovarianceSums()
            for i in permutation:
                total.merge(summed(parts[i]))
            found.append(total.finish())
        for other in found[1:]:
            for field in fields(other):
                a, b = getattr(found[0], field.name), getattr(other, field.name)
                assert a == b if isinstance(a, int) else torch.equal(a, b), field.name

    def test_every_tree_gives_the_bits_of_one_worker(self):
        parts = [correlated(2, 9, seed=10 * s) for s in range(4)]
        alone = summed(parts).finish()
        left, right = summed(parts[:2]), summed(parts[2:])
        right.merge(left)
        nested = summed(parts[3:])
        inner = summed(parts[1:2])
        inner.merge(summed(parts[2:3]))
        nested.merge(inner)
        nested.merge(summed(parts[:1]))
        for total in (right, nested):
            merged = total.finish()
            assert torch.equal(merged.value, alone.value)
            assert torch.equal(merged.standard_error, alone.standard_error)
            assert merged.num_groups == alone.num_groups == 4

    def test_merging_leaves_the_other_as_it_was(self):
        other = summed([correlated(2, 9)])
        kept = deepcopy(other)
        total = summed([correlated(2, 9, seed=50)])
        total.merge(other)
        assert torch.equal(other.finish().value, kept.finish().value)


class TestStandardErrors:
    R, C, D = 150, 16, 20
    ROOT = normal(N + Q, N + Q, seed=0) / 2

    def replicated(self) -> tuple[Tensor, Tensor]:
        """Values and errors `[R, Q, N]` of independent runs on i.i.d. Gaussian losses."""
        values, errors = [], []
        for r in range(self.R):
            joint = normal(self.C, self.D, N + Q, seed=100 + r) @ self.ROOT.T
            got = estimate_covariance(LossTraces.from_arrays(joint[..., :N], joint[..., N:]))
            values.append(got.value)
            errors.append(got.standard_error)
        return torch.stack(values), torch.stack(errors)

    def assert_right(self, squared_errors: Tensor) -> None:
        """The mean of se² is Var(estimate) = (Σ_qq Σ_ii + Σ_qi²) / freedom of Wishart's law."""
        sigma = self.ROOT @ self.ROOT.T
        variances = sigma.diagonal()
        known = variances[N:, None] * variances[None, :N] + sigma[N:, :N] ** 2
        known = known / (self.C * (self.D - 1))
        ratios = (squared_errors / known).mean(dim=(1, 2))  # one number a replicate, independent
        error = ratios.std() / self.R**0.5
        assert error < 0.05, "too few replicates"
        assert abs(ratios.mean() - 1) < 5 * error, "the standard error is off"

    def test_they_are_those_of_independent_gaussian_draws(self):
        values, errors = self.replicated()
        self.assert_right(errors.square())
        with pytest.raises(AssertionError, match="the standard error is off"):
            self.assert_right((errors / 2).square())
        sigma = (self.ROOT @ self.ROOT.T)[N:, :N]
        z = (values - sigma) / errors
        # Student's t with 15 degrees of freedom: variance 15/13.  Entries of one run are
        # correlated, so the spread over runs of their mean square gives the error.
        squares = z.square().mean(dim=(1, 2))
        assert abs(squares.mean() - 15 / 13) < 5 * squares.std() / self.R**0.5

    def test_correlated_draws_within_a_chain_widen_them(self):
        # An AR(1) chain with lag-1 correlation r: products decorrelate with r², so Var(cov) is
        # (1 + r²)/(1 - r²) times that of independent draws, up to O(1/D).
        r, chains, draws, replicates = 0.8, 16, 400, 30
        ratios = []
        for seed in range(replicates):
            x = normal(chains, draws, 2, seed=500 + seed)
            for t in range(1, draws):
                x[:, t] = r * x[:, t - 1] + (1 - r * r) ** 0.5 * x[:, t]
            got = estimate_covariance(LossTraces.from_arrays(x[..., :1], x[..., 1:]))
            ratios.append(float(got.standard_error) ** 2 * chains * (draws - 1))
        expected = (1 + r**2) / (1 - r**2)
        error = np.std(ratios, ddof=1) / replicates**0.5
        tau = (1 + r) / (1 - r)
        assert abs(np.mean(ratios) - expected) < 5 * error + expected * 2 * tau / draws

    def test_standard_errors_are_those_of_groups_of_chains_by_hand(self):
        train, query = correlated(6, 12)
        got = estimate_covariance(LossTraces.from_arrays(train, query), num_groups=3)
        groups = [slow(grouped([(train[i : i + 2], query[i : i + 2])], 1)) for i in (0, 2, 4)]
        for name, error, where in (
            ("value", "standard_error", "value"),
            ("column_variance", "column_variance_error", "column_variance"),
        ):
            values = np.stack([g[where] for g in groups])
            np.testing.assert_allclose(
                getattr(got, error), values.std(axis=0, ddof=1) / 3**0.5, rtol=1e-8, err_msg=name
            )

    def test_one_group_has_no_error(self):
        train, query = correlated(1, 12)
        got = estimate_covariance(LossTraces.from_arrays(train, query))
        assert got.standard_error.isnan().all() and got.column_variance_error.isnan().all()
        assert got.value.isfinite().all()


class TestRefusals:
    def test_one_draw_is_refused(self):
        train, query = correlated(3, 1)
        with pytest.raises(ValueError, match="at least 2 draws for a covariance, got 1"):
            estimate_covariance(LossTraces.from_arrays(train, query))

    def test_groups_without_a_draw_are_refused(self):
        with pytest.raises(ValueError, match="at least 2 draws for a covariance, got 0"):
            GroupSums().close()

    def test_totals_without_a_group_are_refused(self):
        with pytest.raises(ValueError, match="no group of chains was closed"):
            CovarianceSums().finish()

    def test_traces_of_other_draws_or_chains_are_refused(self):
        train, query = correlated(3, 5)
        with pytest.raises(ValueError, match="need the same chains and draws, of 3 chains"):
            TraceBlock((0, 1, 2), train, query[:, :4])
        with pytest.raises(ValueError, match="need the same chains and draws, of 2 chains"):
            TraceBlock((0, 1), train, query)


class TestTraces:
    def test_traces_count_truncate_and_select_their_draws(self):
        a, b = TraceBlock((0, 2), *correlated(2, 9)), TraceBlock((5,), *correlated(1, 4, seed=7))
        traces = LossTraces((a, b))
        assert (traces.num_chains, traces.total_draws, traces.shortest) == (3, 22, 4)
        assert [c for c, _, _ in traces.each_chain()] == [0, 2, 5]
        assert traces.truncated(6).total_draws == 16
        chosen = traces.selected(train=np.array([4, 1]), query=np.array([2]))
        assert torch.equal(chosen.blocks[0].train, a.train[:, :, [4, 1]])
        assert torch.equal(chosen.blocks[1].query, b.query[:, :, [2]])
        assert a.only([1]).chains == (2,)

    def test_sums_over_groups_are_sums_of_traces(self):
        train, query = correlated(2, 9)
        got = LossTraces.from_arrays(train, query).summed_over({"a": [0, 3], "b": [3], "none": []})
        expected = torch.stack(
            [train[..., 0] + train[..., 3], train[..., 3], torch.zeros(2, 9)], dim=-1
        )
        torch.testing.assert_close(got.blocks[0].train, expected, rtol=0, atol=1e-12)
