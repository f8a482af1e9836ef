"""The result: named scores, rankings, sums, files and what it says about its sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from bif import Influence, LossTraces
from bif.estimate import ScoreAxes, estimate_covariance, estimate_influence
from bif.estimate.traces import TraceBlock
from small_problems import normal

N, Q = 8, 3
OBSERVABLES = {"loss": "lower", "margin": "higher", "entropy": None}
IDS = [f"item-{i}" for i in range(N)]
QUERIES = ["a", "b", "c"]


def traces() -> LossTraces:
    causes = normal(6, 40, 2, seed=0)
    train = causes @ normal(2, N, seed=1) + 0.3 * normal(6, 40, N, seed=2)
    query = causes @ normal(2, 3 * Q, seed=3) + 0.3 * normal(6, 40, 3 * Q, seed=4)
    train[:, :, 5] = 2.5  # an item whose loss never moves
    return LossTraces((TraceBlock(tuple(range(6)), train, query),))


def dataset(given: LossTraces | None = None, **changed: object) -> xr.Dataset:
    return estimate_influence(
        given or traces(),
        ScoreAxes(
            observables=OBSERVABLES,
            query_ids=QUERIES,
            train_ids=IDS,
            nbeta=4.0,
            **changed,  # type: ignore[arg-type]
        ),
    )


@pytest.fixture
def influence() -> Influence:
    return Influence(dataset(), traces())


class TestEstimate:
    def test_scores_are_three_views_of_one_covariance(self):
        got = dataset()
        covariance = estimate_covariance(traces())
        value = -covariance.value.reshape(3, Q, N).numpy()
        spread = (covariance.row_variance[:, None] * covariance.column_variance).sqrt().numpy()
        spread = spread.reshape(3, Q, N)
        expected = {
            "influence": value,
            "derivative": 4.0 / N * value,
            "correlation": np.where(spread > 0, value / np.maximum(spread, 1e-30), 0),
            "standard_error": covariance.standard_error.reshape(3, Q, N).numpy(),
        }
        for name, values in expected.items():
            assert got[name].dims == ("observable", "query", "train")
            assert got[name].dtype == np.float32
            np.testing.assert_allclose(got[name].values, values, rtol=1e-6, atol=1e-7)

    def test_the_sign_is_minus_the_covariance_of_losses(self):
        rising = torch.linspace(0, 1, 50).repeat(2, 1)[..., None]
        got = estimate_influence(
            LossTraces.from_arrays(rising, rising),
            ScoreAxes(observables={"loss": "lower"}, query_ids=["q"], train_ids=["z"], nbeta=1.0),
        )
        assert got["influence"].item() < 0  # losses that rise and fall together: helpful
        assert got["correlation"].item() == pytest.approx(-1, abs=1e-6)

    def test_an_item_that_never_moves_has_no_influence_and_correlation_0(self):
        got = dataset().isel(train=5)
        assert (got["influence"].values == 0).all() and (got["correlation"].values == 0).all()
        assert float(got["self_influence"]) == 0

    def test_means_and_self_influence_are_moments_of_the_traces(self):
        got, block = dataset(), traces().blocks[0]
        within = block.train - block.train.mean(dim=1, keepdim=True)
        variance = within.square().sum(dim=(0, 1)) / (6 * 39)
        np.testing.assert_allclose(got["self_influence"], -variance, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(got["train_mean_loss"], block.train.mean(dim=(0, 1)), rtol=1e-6)
        np.testing.assert_allclose(
            got["query_mean"].values.ravel(), block.query.mean(dim=(0, 1)), rtol=1e-6, atol=1e-7
        )
        assert (got["self_influence_standard_error"].values[:5] > 0).all()

    def test_coordinates_and_attributes_describe_the_run(self):
        got = dataset(query_groups=["x", "x", "y"])
        assert got["better"].values.tolist() == ["lower", "higher", ""]
        assert got["query_group"].values.tolist() == ["x", "x", "y"]
        assert got["train_id"].values.tolist() == IDS
        figures = {k: got.attrs[k] for k in ("nbeta", "num_train", "num_chains", "num_draws")}
        assert figures == {"nbeta": 4.0, "num_train": N, "num_chains": 6, "num_draws": 240}
        assert "-Cov" in got.attrs["sign"]


class TestTop:
    def test_rankings_hold_the_strongest_of_either_sign_in_order(self, influence):
        scores = influence.dataset["influence"].sel(observable="loss").isel(query=1).values
        ranking = influence.top("b", k=3, unresolved=True)
        order = np.argsort(scores)
        assert [s.train_id for s in ranking.negative] == [IDS[i] for i in order[:3]]
        assert [s.train_id for s in ranking.positive] == [IDS[i] for i in order[::-1][:3]]
        best = ranking.negative[0]
        assert best.influence == pytest.approx(scores.min())
        errors = influence.dataset["standard_error"].sel(observable="loss").isel(query=1).values
        assert best.standard_error == pytest.approx(errors[order[0]])

    def test_items_without_influence_are_in_neither_list(self, influence):
        ranking = influence.top("a", k=99, unresolved=True)
        assert len(ranking.positive) + len(ranking.negative) == N - 1
        assert "item-5" not in {s.train_id for s in ranking.positive + ranking.negative}

    def test_only_certain_signs_are_listed_and_the_others_counted(self, influence):
        dataset = influence.dataset.copy(deep=True)
        quantile = influence.error_quantile
        row = np.array([8.0, -7.0, 6.0, -5.0, 4.0, 0.0, 3.0, -2.0])
        dataset["influence"][0, 0] = row
        dataset["standard_error"][0, 0] = np.array([1, 7, 1, 1, 4, 1, 1, 1]) / quantile
        found = Influence(dataset)
        ranking = found.top("a", k=2)
        assert [s.train_id for s in ranking.positive] == ["item-0", "item-2"]
        assert [s.train_id for s in ranking.negative] == ["item-3", "item-7"]
        assert ranking.unresolved == 1 and all(s.resolved for s in ranking.positive)
        assert found.resolved().values[0, 0].sum() == 5
        low, high = found.interval()
        certain = (low.values[0, 0] > 0) | (high.values[0, 0] < 0)
        np.testing.assert_array_equal(certain, found.resolved().values[0, 0])
        everything = found.top("a", k=2, unresolved=True)
        assert [s.train_id for s in everything.negative] == ["item-1", "item-3"]
        assert everything.unresolved == 0 and "left out" not in str(everything)

    def test_of_an_untrusted_run_no_sign_is_certain(self, influence):
        found = Influence(influence.dataset.assign_attrs(trusted=0))
        ranking = found.top("a", k=2)
        assert influence.top("a", k=2).positive and influence.resolved().any()
        assert ranking.positive == ranking.negative == () and ranking.unresolved == 4
        assert ranking.draws_to_resolve == np.inf and not found.resolved().any()
        assert "the run is not trusted: no sign is certain" in str(ranking)
        assert "not certain; unresolved=True lists them" in str(ranking)
        shown = found.top("a", k=2, unresolved=True)
        assert len(shown.positive + shown.negative) == 4
        assert not any(score.resolved for score in shown.positive + shown.negative)
        assert not found.sum_over({"x": [0, 1], "y": [2, 3]}).trusted

    def test_the_draws_that_would_resolve_the_rest_follow_from_the_errors(self, influence):
        dataset = influence.dataset.copy(deep=True)
        dataset["influence"][0, 0] = 0.0
        dataset["influence"][0, 0, :2] = [1.0, -3.0]
        # Half as large an error would do, and errors halve with four times the draws.
        dataset["standard_error"][0, 0, :2] = 2 * np.array([1.0, 0.1]) / influence.error_quantile
        ranking = Influence(dataset).top("a", k=2)
        assert ranking.unresolved == 1 and ranking.positive == ()
        assert ranking.draws_to_resolve == pytest.approx(3 * 240, rel=1e-5)
        assert "1 among the strongest" in str(ranking) and "720 more draws" in str(ranking)

    def test_lower_is_better_makes_negative_helpful(self, influence):
        ranking = influence.top("a", observable="loss")
        assert ranking.helpful == ranking.negative and ranking.harmful == ranking.positive

    def test_higher_is_better_makes_positive_helpful(self, influence):
        ranking = influence.top("a", observable="margin")
        assert ranking.helpful == ranking.positive and ranking.harmful == ranking.negative

    @pytest.mark.parametrize("side", ["helpful", "harmful"])
    def test_without_a_better_direction_nothing_is_helpful_or_harmful(self, influence, side):
        ranking = influence.top("a", observable="entropy")
        with pytest.raises(ValueError, match="'entropy' does not say whether lower or higher"):
            getattr(ranking, side)
        assert "positive" in str(ranking) and "helpful" not in str(ranking)

    @pytest.mark.parametrize("query", ["c", 2, -1, np.int64(2)])
    def test_queries_go_by_id_or_position(self, influence, query):
        assert influence.top(query).query_id == "c"

    @pytest.mark.parametrize("query", [3, -4, np.int64(7)])
    def test_a_position_out_of_range_is_refused(self, influence, query):
        with pytest.raises(KeyError, match="no query at position .*there are 3"):
            influence.top(query)

    def test_unknown_names_are_refused(self, influence):
        with pytest.raises(KeyError, match=r"no query with id 'z'; the first ids are \['a', 'b'"):
            influence.top("z")
        with pytest.raises(KeyError, match="no observable 'logit'; there are"):
            influence.top("a", observable="logit")

    def test_a_ranking_prints_scores_with_errors_and_labels(self):
        labelled = dataset().assign_coords(train_label=("train", list("pqrstuvw")))
        text = str(Influence(labelled).top("a", k=1))
        score = Influence(labelled).top("a", k=1).helpful[0]
        assert text.splitlines()[0] == "query a, loss"
        assert f"{score.train_id} ({score.label}): {score.influence:+.4g} ± " in text
        assert score.label == "pqrstuvw"[IDS.index(score.train_id)]

    def test_a_score_is_resolved_beyond_two_standard_errors(self):
        from bif import Score

        assert Score("z", -2.1, 1.0).resolved and not Score("z", 1.9, 1.0).resolved
        assert not Score("z", 1.0, float("nan")).resolved


class TestSums:
    GROUPS = ["odd" if i % 2 else "even" for i in range(N)]

    def test_scores_of_groups_are_sums_over_their_items(self, influence):
        summed = influence.sum_over(self.GROUPS).dataset
        assert summed["train_id"].values.tolist() == ["even", "odd"]
        for name in ("influence", "derivative"):
            values = influence.dataset[name].values.astype(np.float64)
            expected = np.stack([values[..., 0::2].sum(-1), values[..., 1::2].sum(-1)], axis=-1)
            scale = np.abs(values).sum()
            np.testing.assert_allclose(summed[name], expected, rtol=0, atol=4 * 2**-24 * scale)
        assert (summed["standard_error"].values > 0).all()

    def test_their_errors_are_those_of_the_summed_trace(self, influence):
        block = traces().blocks[0]
        alone = LossTraces.from_arrays(block.train[..., ::2].sum(-1, keepdim=True), block.query)
        expected = estimate_covariance(alone)
        summed = influence.sum_over(self.GROUPS).dataset.isel(train=0)
        np.testing.assert_allclose(
            summed["standard_error"].values.ravel(), expected.standard_error.ravel(), rtol=1e-6
        )
        np.testing.assert_allclose(
            float(summed["self_influence"]), -expected.column_variance.item(), rtol=1e-6
        )

    def test_groups_may_overlap_and_leave_items_out(self, influence):
        summed = influence.sum_over({"first": [0, 1], "again": [1], "nothing": []}).dataset
        items = influence.dataset["influence"].values
        np.testing.assert_allclose(summed["influence"][..., 1], items[..., 1], rtol=1e-6)
        assert (summed["influence"][..., 2].values == 0).all()

    def test_without_traces_they_are_the_same_sums_and_errors_are_nan(self, influence):
        with_traces = influence.sum_over(self.GROUPS).dataset
        loaded = Influence(influence.dataset).sum_over(self.GROUPS).dataset
        for name in ("influence", "derivative"):
            np.testing.assert_allclose(loaded[name], with_traces[name], rtol=1e-5, atol=1e-5)
        for name in ("standard_error", "correlation", "self_influence"):
            assert np.isnan(loaded[name].values).all()
        assert loaded["train_id"].values.tolist() == ["even", "odd"]

    def test_without_traces_queries_keep_what_is_theirs_and_pictures_are_dropped(self):
        given = dataset().assign(
            train_image=(("train", "row", "column"), np.zeros((N, 2, 2), np.uint8)),
            query_image=(("query", "row", "column"), np.zeros((Q, 2, 2), np.uint8)),
            relabelled=("train", np.zeros(N, bool)),
            original_label=("train", np.array(list("pqrstuvw"))),
        )
        summed = Influence(given).sum_over(self.GROUPS).dataset
        assert summed["query_mean"].dims == ("observable", "query")
        assert summed["query_image"].dims == ("query", "row", "column")
        assert not {"train_image", "relabelled", "original_label"} & set(summed)
        np.testing.assert_array_equal(summed["query_mean"], given["query_mean"])
        assert summed["better"].values.tolist() == ["lower", "higher", ""]
        assert Influence(summed).top("a", observable="margin").helpful

    def test_group_names_that_do_not_fit_are_refused(self, influence):
        with pytest.raises(ValueError, match="groups names 2 items, but there are 8"):
            influence.sum_over(["a", "b"])


class TestFiles:
    def test_what_is_saved_is_what_is_loaded(self, influence, tmp_path):
        path = influence.save(tmp_path / "scores.zarr")
        loaded = Influence.load(path)
        xr.testing.assert_identical(loaded.dataset, influence.dataset)
        assert loaded.traces is None
        assert str(loaded.top("b", 4)) == str(influence.top("b", 4))

    def test_a_runs_folder_may_be_given(self, influence, tmp_path):
        influence.save(tmp_path / "influence.zarr")
        xr.testing.assert_identical(Influence.load(tmp_path).dataset, influence.dataset)

    def test_an_existing_path_is_refused(self, influence, tmp_path):
        path = influence.save(tmp_path / "scores.zarr")
        with pytest.raises(FileExistsError, match="exists: choose another path"):
            influence.save(path)

    def test_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no influence.zarr at .*expected a zarr"):
            Influence.load(tmp_path / "nowhere")

    def test_another_dataset_is_refused(self):
        with pytest.raises(ValueError, match=r"not an influence dataset: it lacks \['correlation'"):
            Influence(xr.Dataset({"influence": ("train", [1.0])}))


class TestPrinting:
    def test_the_sign_convention_is_printed(self, influence):
        text = repr(influence)
        assert "8 train items on 3 queries" in text
        assert "loss (lower better), margin (higher better), entropy (no better)" in text
        assert "-Cov(train loss, observable)" in text and "negative is helpful" in text

    def test_notebooks_show_the_ranking_too(self, influence):
        html = influence._repr_html_()
        assert "-Cov(train loss, observable)" in html and "<strong>" in html

    def test_self_influence_is_minus_the_variance(self, influence):
        assert influence.self_influence().dims == ("train",)
        assert (influence.self_influence().values <= 0).all()


def test_a_group_of_queries_is_no_query():
    given = Influence(dataset(query_groups=["easy", "easy", "hard"]))
    with pytest.raises(
        KeyError, match="'easy' is a group of queries: name one of it, as 'easy/ID'"
    ):
        given.top("easy")


def test_labels_in_a_tensor_name_groups_by_their_numbers(influence):
    summed = influence.sum_over(torch.arange(8) % 2)
    assert summed.dataset["train_id"].values.tolist() == ["0", "1"]
