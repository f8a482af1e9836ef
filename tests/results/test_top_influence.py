"""Runs that keep the strongest scores only: the same answers as all scores, in less memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bif
from bif.estimate import ScoreAxes
from bif.estimate import strongest_influences as found
from bif.estimate.top_k import top_influences
from bif.estimate.traces import LossTraces
from bif.interop import read_scores
from bif.results.excerpt import excerpt
from bif.results.ranking import strongest_of_row
from bif.results.top_influence import top_k_dataset
from bif.store import FolderInUse
from largest_tensor import largest_tensor
from small_problems import nothing_measured
from token_problems import TINY, problem, texts

pytestmark = pytest.mark.usefixtures("unchecked")
K = 4
SETTINGS = replace(TINY, chains=12, draws=40)
SCORES = ("influence", "derivative", "correlation", "standard_error")

PROBLEMS: dict[str, Any] = {
    "tokens on tokens": {},
    "tokens on queries": {"tokens": "train"},
    "items on tokens": {"tokens": "query"},
    "items": {"tokens": None},
    "two observables": {
        "observables": [
            bif.Observable("loss", bif.losses.next_token, "lower"),
            bif.Observable("gain", lambda m, b: -bif.losses.next_token(m, b), "higher"),
        ]
    },
}


def both(**changed: Any) -> tuple[bif.Run, bif.Run]:
    """The same run with all scores and with the strongest."""
    return (
        bif.attribute(problem(**changed), SETTINGS),
        bif.attribute(problem(**changed), SETTINGS, top=K),
    )


def called(run: bif.Run, *, trusted: bool) -> bif.Run:
    """The same run, whatever its gates said."""
    return replace(run, summary=replace(run.summary, trusted=trusted))


def test_of_an_untrusted_run_the_strongest_are_counted_and_listed_only_when_asked_for():
    whole, kept = (called(run, trusted=False) for run in both())
    for unresolved in (False, True):
        ours = kept.influence.top(0, K, unresolved=unresolved)
        assert str(ours) == str(whole.influence.top(0, K, unresolved=unresolved))
        assert not ours.trusted and "the run is not trusted: no sign is certain" in str(ours)
        listed = ours.positive + ours.negative
        assert (listed == ()) is not unresolved
        assert not any(score.resolved for score in listed)
        assert (ours.unresolved > 0) is not unresolved


@pytest.fixture(scope="module")
def pair() -> tuple[bif.Run, bif.Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.runs.block_run.check", nothing_measured)
        return both()


@pytest.mark.parametrize("unresolved", [False, True], ids=["certain", "all"])
@pytest.mark.parametrize("changed", PROBLEMS.values(), ids=PROBLEMS)
def test_rankings_are_those_of_all_scores(changed: dict[str, Any], unresolved: bool):
    whole, kept = (called(run, trusted=True) for run in both(**changed))
    assert kept.influence.kept == K
    names = [str(o) for o in whole.influence.dataset["observable"].values]
    ids, listed = whole.influence.dataset["train_id"].values.tolist(), 0
    for name in names:
        for query in range(whole.influence.dataset.sizes["query"]):
            for k in (1, K):
                given = {"observable": name, "unresolved": unresolved}
                ours = kept.influence.top(query, k, **given)
                theirs = whole.influence.top(query, k, **given)
                for side in ("positive", "negative"):
                    got, expected = getattr(ours, side), getattr(theirs, side)
                    # The same word in two texts has equal scores, whose order may differ.
                    np.testing.assert_allclose(
                        [(s.influence, s.standard_error) for s in got],
                        [(s.influence, s.standard_error) for s in expected],
                        rtol=1e-5,
                    )
                    scores = whole.influence.dataset["influence"].sel(observable=name)[query]
                    places = [ids.index(s.train_id) for s in got]
                    np.testing.assert_allclose(
                        scores.values[places], [s.influence for s in got], rtol=1e-5
                    )
                    listed += len(got)
                assert (ours.query_id, ours.better) == (theirs.query_id, theirs.better)
                assert ours.unresolved == theirs.unresolved
                assert ours.draws_to_resolve == pytest.approx(theirs.draws_to_resolve, rel=1e-4)
    assert listed > 5


def test_derivatives_and_correlations_are_those_of_all_scores(pair):
    whole, kept = (run.influence.dataset for run in pair)
    column = kept["column"].values
    assert (column >= 0).any()
    for place in np.argwhere(column >= 0):
        observable, query = place[:2]
        for name in SCORES:
            expected = whole[name].values[observable, query, column[tuple(place)]]
            assert kept[name].values[tuple(place)] == pytest.approx(expected, rel=1e-5)
    for name in ("self_influence", "train_mean_loss", "query_mean", "train_center_loss"):
        np.testing.assert_allclose(kept[name], whole[name], rtol=1e-12)


@pytest.mark.parametrize("side", ["train", "query", "both"])
def test_sums_over_tokens_come_from_the_traces(pair, side):
    whole, kept = (run.influence.by_item(side).dataset for run in pair)
    for name in SCORES:
        np.testing.assert_allclose(kept[name], whole[name], rtol=1e-6)
    labels = pair[1].influence.by_group("label").dataset
    assert labels["train_id"].values.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("made_with", [0, 1], ids=["all scores", "top"])
def test_a_part_has_all_its_scores(pair, made_with):
    whole, rows, columns = pair[0], [5, 1], [7, 0, 3]
    part = pair[made_with].influence.part(query=rows, train=columns)
    for name in SCORES:
        expected = whole.influence.dataset[name].values[:, rows][:, :, columns]
        np.testing.assert_allclose(part.dataset[name].values, expected, rtol=1e-6)
    assert part.dataset["train_id"].values.tolist() == [
        whole.influence.dataset["train_id"].values[i] for i in columns
    ]
    # Sums over the part's items hold its own tokens only.
    assert part.by_item().dataset.sizes["train"] == len(set(part.dataset["train_item"].values))


class TestMemory:
    def test_scores_that_would_be_too_many_are_refused_and_the_strongest_are_not(self, monkeypatch):
        asked = problem()
        pairs = asked.num_queries * asked.num_scored
        monkeypatch.setattr("bif.runs.retention.MOST_SCORE_BYTES", 56 * pairs - 1)
        with pytest.raises(ValueError, match=r"keep the strongest of each row only \(top=10; --to"):
            bif.attribute(asked, TINY)
        with pytest.raises(ValueError, match="keep='traces' and top=10"):
            bif.attribute(asked, TINY, keep="sums")
        kept = bif.attribute(asked, TINY, top=1)
        assert kept.influence.dataset["influence"].size == asked.num_queries * 4
        with pytest.raises(ValueError, match="strongest scores either way of .* choose a smaller"):
            bif.attribute(asked, TINY, top=asked.num_scored)

    def test_no_tensor_is_as_large_as_all_scores(self, monkeypatch):
        asked = problem(train=texts(60, seed=1), queries=texts(60, seed=5))
        run = bif.attribute(asked, replace(TINY, chains=2, draws=3), top=2)
        pairs = asked.num_queries * asked.num_scored
        monkeypatch.setattr(
            "bif.results.top_influence.strongest_influences",
            partial(found, chunk_columns=20, chunk_rows=25),
        )
        with largest_tensor(run.traces) as seen:
            again = top_k_dataset(
                run.traces,
                2,
                ScoreAxes(
                    observables={"loss": "lower"},
                    query_ids=asked.query_ids,
                    train_ids=asked.scored_ids,
                    nbeta=60.0,
                    num_train=60,
                ),
            )
        np.testing.assert_allclose(again["influence"], run.influence.dataset["influence"])
        assert 0 < seen[0] <= max(25 * (20 + 2), asked.num_queries * 8) < pairs / 8

    def test_a_page_is_an_excerpt_of_whole_items(self, monkeypatch):
        asked = problem(train=texts(60, seed=1), queries=texts(60, seed=5))
        run = bif.attribute(asked, replace(TINY, chains=2, draws=3), top=2)
        monkeypatch.setattr("bif.results.excerpt._MOST_PAIRS", 400)
        few = excerpt(run.influence).dataset
        assert few.sizes["query"] * few.sizes["train"] <= 400
        assert 1 <= few.sizes["query_parent"] <= 8 and few.sizes["train_parent"] > 1
        for side in ("query", "train"):
            everything = run.influence.dataset[f"{side}_item"].values
            shown, counts = np.unique(few[f"{side}_item"].values, return_counts=True)
            for name, count in zip(shown, counts, strict=True):
                assert (everything == name).sum() == count

    def test_sums_that_would_be_too_many_are_refused(self, pair, monkeypatch):
        monkeypatch.setattr("bif.results.top_influence.MOST_SCORE_BYTES", 56)
        with pytest.raises(ValueError, match=r"6 sums over train columns on 3 rows .*part\(query"):
            pair[1].influence.by_item()


class TestRunsOnDisk:
    def test_they_are_read_as_they_were_written(self, tmp_path: Path):
        made = bif.attribute(problem(), SETTINGS, top=K, out=tmp_path / "run")
        read = bif.load(tmp_path / "run")
        assert read.influence.kept == K
        for name in made.influence.dataset.variables:
            np.testing.assert_array_equal(
                read.influence.dataset[name].values, made.influence.dataset[name].values
            )
        assert [str(r) for r in read.top_k(K)] == [str(r) for r in made.top_k(K)]
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert f"kept the {K} strongest pairs of each row" in page and "Which tokens move" in page
        again = bif.attribute(problem(), SETTINGS, top=K, out=tmp_path / "run")
        assert again.influence.dataset.equals(read.influence.dataset)

    def test_one_of_items_has_a_page(self, tmp_path: Path):
        bif.attribute(problem(tokens=None), SETTINGS, top=K, out=tmp_path / "run")
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert f"kept the {K} strongest pairs of each row" in page

    def test_one_in_memory_can_be_saved(self, pair, tmp_path: Path):
        pair[1].save(tmp_path / "saved")
        read = bif.load(tmp_path / "saved")
        assert read.manifest["top"] == K
        assert read.influence.dataset.equals(pair[1].influence.dataset)

    def test_another_top_is_another_run(self, tmp_path: Path):
        bif.attribute(problem(), TINY, top=K, out=tmp_path / "run")
        for top in (None, K + 1):
            with pytest.raises(FolderInUse, match="keeps the 4 strongest scores"):
                bif.attribute(problem(), TINY, top=top, out=tmp_path / "run")
        bif.attribute(problem(), TINY, out=tmp_path / "all")
        with pytest.raises(FolderInUse, match="keeps all scores"):
            bif.attribute(problem(), TINY, top=K, out=tmp_path / "all")

    def test_a_run_with_top_can_be_extended(self, tmp_path: Path):
        bif.attribute(problem(), TINY, top=K, out=tmp_path / "run")
        grown = bif.extend(tmp_path / "run", problem(), draws=12)
        straight = bif.attribute(problem(), replace(TINY, draws=12), top=K)
        assert grown.influence.dataset["influence"].equals(straight.influence.dataset["influence"])

    def test_several_runs_with_top_are_merged(self, tmp_path: Path):
        for seed, top in ((0, K), (1, K), (2, None)):
            bif.attribute(problem(), replace(TINY, seed=seed), top=top, out=tmp_path / str(seed))
        merged = bif.merge([tmp_path / "0", tmp_path / "1"])
        assert merged.manifest["top"] == K
        assert merged.influence.dataset.sizes["rank"] == K
        assert merged.influence.top(0).positive or merged.influence.top(0).unresolved
        with pytest.raises(ValueError, match="made with top 4, None"):
            bif.merge([tmp_path / "0", tmp_path / "2"])


class TestBadInput:
    def test_top_below_one_is_refused(self):
        with pytest.raises(ValueError, match="top is 0: expected the number of scores"):
            bif.attribute(problem(), TINY, top=0)

    def test_sums_and_controls_are_refused(self):
        with pytest.raises(ValueError, match="top would save nothing"):
            bif.attribute(problem(), TINY, top=K, keep="sums")
        with pytest.raises(ValueError, match="controls are other scores of all pairs"):
            bif.attribute(problem(), replace(TINY, controls=True), top=K)

    def test_more_than_were_kept_are_refused(self, pair):
        with pytest.raises(ValueError, match=r"kept the 4 strongest .* run.top_k\(5\)"):
            pair[1].influence.top(0, 5)

    def test_without_traces_sums_and_parts_are_refused(self, pair):
        alone = bif.Influence(pair[1].influence.dataset)
        assert alone.top(0, K) == pair[1].influence.top(0, K)
        for ask in (alone.by_item, lambda: alone.part(query=[0], train=[0])):
            with pytest.raises(ValueError, match="need the traces"):
                ask()

    def test_whole_items_are_left_as_they_are(self):
        kept = bif.attribute(problem(tokens=None), TINY, top=K)
        assert kept.influence.by_item() is kept.influence

    def test_a_file_of_scores_is_refused_where_the_strongest_alone_are_kept(
        self, pair, tmp_path: Path
    ):
        pair[1].save(tmp_path / "run")
        with pytest.raises(ValueError, match="keeps the strongest scores of every query only"):
            read_scores(tmp_path / "run")


def test_the_command_line_keeps_and_shows_the_strongest(call, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("from token_problems import problem\n", encoding="utf-8")
    steps = ["--draws", 12, "--chains", 4, "--burn-in", 4, "--thin", 2, "--gamma", 5]
    steps += ["--step-size", 0.05, "--friction", 2.0, "--top", 3]
    code, _, said = call("attribute", f"{file}:problem", "--out", tmp_path / "r", *steps)
    assert code == 0, said
    code, shown, _ = call("show", tmp_path / "r", "--query", "t0[1]", "--verbose")
    assert code == 0
    assert "The 3 strongest either way of every query." in shown and "query t0[1], loss" in shown
    code, _, said = call("attribute", f"{file}:problem", "--from", tmp_path / "r", "--top", 5)
    assert code == 2 and "--from keeps the run's own --top" in said


def test_equal_scores_are_in_the_order_of_the_columns_on_either_side():
    score = np.array([0.0, 2.0, -1.0, 2.0, -1.0, np.nan])
    up, down = strongest_of_row(score, np.ones(6), 3)
    assert up.column.tolist() == [1, 3] and down.column.tolist() == [2, 4]


def test_scores_that_rounding_alone_tells_apart_are_equal():
    """Two tokens of one context have one loss; the last bits of a sum depend on where they lie."""
    rng = np.random.default_rng(0)
    train, query = rng.normal(size=(4, 30, 3)), rng.normal(size=(4, 30, 1))
    train[..., 0] = train[..., 2] * (1 + 1e-14)
    train[..., 2] *= 1 + 3e-14
    strongest = top_influences(LossTraces.from_arrays(train, query), 3, unresolved=True)
    sides = strongest.positive, strongest.negative
    side = sides[0] if (sides[0].column == 0).any() else sides[1]
    listed = side.column[0].tolist()
    assert listed.index(0) < listed.index(2)
