"""Streaming top-k: what sorting all scores gives, from chunks of columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import bif
from bif import LossTraces
from bif.estimate import TopInfluences, estimate_covariance, top_influences
from bif.estimate.intervals import t_quantile
from largest_tensor import largest_tensor
from small_problems import normal
from token_problems import TINY, problem

pytestmark = pytest.mark.usefixtures("unchecked")
C, D, N, Q, K = 4, 8, 37, 3, 5


def traces(*, ties: bool = False) -> LossTraces:
    train, query = normal(C, D, N, seed=0), normal(C, D, Q, seed=1)
    train = train + query[..., :1] * torch.linspace(-2, 2, N, dtype=torch.float64)
    if ties:  # whole numbers, so that no sum is rounded: equal columns have equal scores
        train, query = (4 * train[:, :, torch.arange(N) % 6]).round(), (4 * query).round()
    return LossTraces.from_arrays(train, query)


def sorted_scores(given: LossTraces, *, certain: bool) -> tuple[np.ndarray, ...]:
    """All scores and errors, and columns by falling strength on either side, ties in order."""
    covariance = estimate_covariance(given)
    score, error = -covariance.value.numpy(), covariance.standard_error.numpy()
    listed = np.abs(score) > t_quantile(covariance.num_groups) * error if certain else score != 0
    sides = [np.where(listed & (sign * score > 0), sign * score, -np.inf) for sign in (1, -1)]
    return score, error, *(np.argsort(-x, axis=1, kind="stable") for x in sides)


@pytest.mark.parametrize("unresolved", [True, False], ids=["all", "certain"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("chunk", [1, 4, 36, 37, 1000])
def test_the_top_k_are_those_of_the_full_sort(chunk: int, ties: bool, unresolved: bool):
    given = traces(ties=ties)
    score, error, up, down = sorted_scores(given, certain=not unresolved)
    found = top_influences(given, K, unresolved=unresolved, chunk_columns=chunk)
    for side, order in ((found.positive, up), (found.negative, down)):
        for row in range(Q):
            got = side.column[row].numpy()
            real = got[got >= 0]
            expected = order[row, :K]
            np.testing.assert_array_equal(real, expected[: len(real)])
            np.testing.assert_allclose(
                side.influence[row, : len(real)], score[row, real], rtol=1e-12
            )
            np.testing.assert_allclose(
                side.standard_error[row, : len(real)], error[row, real], rtol=1e-12
            )
            assert (got[len(real) :] == -1).all()
            assert side.influence[row, len(real) :].isnan().all()
            # Nothing that would be listed is missing.
            sign = 1 if side is found.positive else -1
            fit = sign * score[row] > 0
            if not unresolved:
                fit &= np.abs(score[row]) > found.error_quantile * error[row]
            assert len(real) == min(K, fit.sum())


def test_ties_are_in_the_order_of_the_columns():
    found = top_influences(traces(ties=True), 20, unresolved=True, chunk_columns=7)
    columns = found.positive.column[0].numpy()
    scores = found.positive.influence[0].numpy()
    equal = (np.diff(scores) == 0) & (columns[1:] >= 0)
    assert equal.sum() > 5 and (np.diff(columns)[equal] > 0).all()


def test_what_is_left_out_is_counted():
    given = traces()
    certain, everything = (top_influences(given, K, unresolved=u) for u in (False, True))
    strong = [torch.cat([getattr(s, n) for s in (everything.positive, everything.negative)], dim=1)
              for n in ("influence", "standard_error")]  # fmt: skip
    ratio = strong[0].abs() / strong[1]
    assert certain.left_out.tolist() == (ratio <= certain.error_quantile).sum(dim=1).tolist()
    assert certain.left_out.max() > 0
    for row in range(Q):
        open_ = ratio[row][ratio[row] <= certain.error_quantile]
        assert len(open_) == 0 or float(open_.min()) == pytest.approx(float(certain.weakest[row]))
    assert everything.left_out.tolist() == [0] * Q


@pytest.mark.parametrize(("k", "chunk"), [(0, 5), (3, 0)])
def test_numbers_below_one_are_refused(k: int, chunk: int):
    with pytest.raises(ValueError, match="expected at least 1 each"):
        top_influences(traces(), k, chunk_columns=chunk)


def test_a_hundred_thousand_columns_are_never_held_at_once():
    columns, rows, chunk = 100_000, 8, 5000
    source = torch.Generator().manual_seed(0)
    given = LossTraces.from_arrays(
        torch.randn(2, 3, columns, generator=source), torch.randn(2, 3, rows, generator=source)
    )
    with largest_tensor(given) as seen:
        found = top_influences(given, 10, unresolved=True, chunk_columns=chunk)
    assert 0 < seen[0] <= max(columns, rows * (chunk + 10))  # of 800,000 scores
    score, _, up, _ = sorted_scores(given, certain=False)
    np.testing.assert_array_equal(found.positive.column, up[:, :10])
    assert found.negative.influence.shape == (rows, 10)
    with largest_tensor(given) as seen:  # the watch would notice all scores
        estimate_covariance(given)
    assert seen[0] >= rows * columns


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(problem(), replace(TINY, draws=12))


class TestRuns:
    @pytest.mark.parametrize("unresolved", [True, False])
    @pytest.mark.parametrize("trusted", [True, False])
    def test_rankings_of_every_query_token_are_those_of_influence(self, run, unresolved, trusted):
        run = replace(run, summary=replace(run.summary, trusted=trusted))
        found = run.top_k(4, unresolved=unresolved)
        dataset = run.influence.dataset
        assert [r.query_id for r in found] == dataset["query_id"].values.tolist()
        for ranking in found:
            expected = run.influence.top(ranking.query_id, 4, unresolved=unresolved)
            for side in ("positive", "negative"):
                ours, theirs = getattr(ranking, side), getattr(expected, side)
                # Ties apart, whose order may differ.
                values = [[s.influence for s in scores] for scores in (ours, theirs)]
                np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
                places = [dataset["train_id"].values.tolist().index(s.train_id) for s in ours]
                assert [s.label for s in ours] == dataset["train_text"].values[places].tolist()
                assert trusted or not any(score.resolved for score in ours)
            assert (ranking.unresolved, ranking.better) == (expected.unresolved, expected.better)
            assert ranking.trusted is expected.trusted is trusted
            assert ranking.draws_to_resolve == pytest.approx(expected.draws_to_resolve, rel=1e-4)

    def test_a_run_that_keeps_sums_has_no_top_k(self):
        kept = bif.attribute(problem(), TINY, keep="sums")
        with pytest.raises(ValueError, match="keeps sums: top_k needs the traces"):
            kept.top_k(3)

    def test_an_unknown_observable_is_refused(self, run):
        with pytest.raises(KeyError, match="no observable 'margin'"):
            run.top_k(3, observable="margin")

    def test_the_result_has_a_type_of_its_own(self, run):
        assert isinstance(top_influences(run.traces, 2), TopInfluences)
