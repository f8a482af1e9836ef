"""Ids: how queries and items are selected, and what cannot be confused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bif
from bif import store
from small_problems import TINY, classification, labelled

NAMES = [f"row-{i}" for i in range(20)]


@pytest.fixture(scope="module")
def run() -> bif.Run:
    train = bif.Items(labelled(20, seed=1), ids=NAMES)
    queries = bif.Items(labelled(5, seed=2), ids=[17, 1, 3, 4, 0])  # type: ignore[list-item]
    return bif.attribute(classification(train=train, queries=queries), TINY)


def test_scores_are_selected_by_ids(run, tmp_path):
    scores = run.influence.dataset["influence"]
    one = scores.sel(query="17", train="row-5", observable="loss")
    assert float(one) == float(scores[0, 0, 5])
    both = scores.sel(train=["row-3", "row-1"])["train_id"].values.tolist()
    assert both == ["row-3", "row-1"]
    run.save(tmp_path / "run")
    again = bif.load(tmp_path / "run").influence.dataset["influence"]
    assert float(again.sel(query="17", train="row-5", observable="loss")) == float(one)


def test_ids_are_written_once(run, tmp_path):
    written = store.read_run(run.save(tmp_path / "run"))["influence"]
    assert {"train_id", "query_id"} <= set(written.coords) and not {"train", "query"} & set(
        written.coords
    )


def test_a_number_selects_nothing_by_id(run):
    with pytest.raises(KeyError):
        run.influence.dataset.sel(train=5)


def test_a_position_that_is_the_id_of_another_query_is_refused(run):
    with pytest.raises(KeyError, match="3 is the position of query '4' and the id of another"):
        run.influence.top(3)
    with pytest.raises(KeyError, match="0 is the position of query '17' and the id of another"):
        run.influence.top(np.int64(0))  # type: ignore[arg-type]
    assert run.influence.top(1).query_id == "1"  # both are the same query
    assert run.influence.top("17").query_id == "17"
    assert run.influence.top(-1 - 1).query_id == "4"


def test_further_groups_leave_the_names_that_are_there(run):
    alone, asked = classification(), classification(queries={"easy": labelled(3, seed=2)})
    more = {"hard": labelled(2, seed=3)}
    assert alone.query_ids.tolist() == list("01234")
    assert alone.extended(queries=more).query_ids.tolist() == [*"01234", "hard/0", "hard/1"]
    own = ["easy/0", "easy/1", "easy/2"]
    assert asked.query_ids.tolist() == own
    assert asked.extended(queries=more).query_ids.tolist() == [*own, "hard/0", "hard/1"]


def test_an_id_without_its_group_will_do_where_one_group_has_it():
    groups = {"easy": labelled(3, seed=2), "hard": labelled(2, seed=3)}
    scores = bif.attribute(classification(queries=groups), replace(TINY, draws=4)).influence
    assert scores.top("2").query_id == "easy/2"
    with pytest.raises(KeyError, match="several groups have a query '1': .*'easy/1', 'hard/1'"):
        scores.top("1")


def test_names_that_two_groups_would_share_are_refused():
    plain = bif.Items(labelled(1, seed=2), ids=["hard/0"])
    with pytest.raises(ValueError, match="two queries are named 'hard/0'"):
        classification(queries={"query": plain, "hard": labelled(1, seed=3)})


def test_a_ranking_is_a_table_with_its_sides(run):
    ranking = run.influence.top("17", 3, unresolved=True)
    table = ranking.to_dataframe()
    assert table["train_id"].tolist() == [s.train_id for s in ranking.helpful + ranking.harmful]
    assert table["side"].tolist() == ["helpful"] * 3 + ["harmful"] * 3
    assert table["influence"][0] == ranking.helpful[0].influence
    assert set(table["query_id"]) == {"17"} and table["certain"].dtype == bool


def test_notebooks_show_the_answer_before_everything_else(run):
    page, worst = run._repr_html_(), run.influence.hardest(1)[0]
    answer = page[: page.index("<details>")]
    assert f"query {worst}, loss" in answer and "row-" in answer and "helpful" in answer
    assert "xarray" not in answer and "R-hat" not in answer and "R-hat" in page
    assert run.influence.top("17")._repr_html_().startswith("<p><strong>query 17, loss")


def test_the_hardest_queries_have_the_largest_loss(run):
    loss = run.influence.dataset["query_center"].sel(observable="loss").values
    ids = run.influence.dataset["query_id"].values
    assert run.influence.hardest(5) == [str(ids[i]) for i in np.argsort(-loss)]
    margin = run.influence.dataset["query_center"].sel(observable="margin").values
    assert run.influence.hardest(2, observable="margin") == [
        str(ids[i]) for i in np.argsort(margin)[:2]
    ]
