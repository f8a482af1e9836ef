"""What a run records of items that are a few numbers each, and where it is shown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bif
from bif.cli.answers import query_in_words
from bif.runs.numbers import numbers_in_words
from small_problems import TINY, classification, filled, labelled, normal

pytestmark = pytest.mark.usefixtures("unchecked")


def regression(num_features: int = 3, loss=bif.losses.squared_error, **changed) -> bif.Problem:
    """12 items, 2 queries, one output."""
    with torch.random.fork_rng(devices=[]):
        model = filled(nn.Linear(num_features, 1))
    given = {
        "train": (normal(12, num_features, seed=1), normal(12, seed=2)),
        "queries": (normal(2, num_features, seed=3), normal(2, seed=4)),
        **changed,
    }
    return bif.Problem(model, loss, **given)


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return bif.attribute(regression(), TINY)


def test_features_targets_and_predictions_are_recorded_to_three_digits(run):
    problem, dataset = regression(), run.influence.dataset
    x, y = normal(2, 3, seed=3), normal(2, seed=4)
    assert dataset["query_features"].values.tolist() == [
        ", ".join(f"{v:.3g}" for v in row) for row in x.tolist()
    ]
    assert dataset["query_target"].values.tolist() == [f"{v:.3g}" for v in y.tolist()]
    said = problem.model(x).flatten().tolist()
    assert dataset["query_prediction"].values.tolist() == [f"{v:.3g}" for v in said]
    assert dataset["train_features"].shape == dataset["train_target"].shape == (12,)


def test_terminal_and_page_name_queries_and_items_by_them(run):
    dataset = run.influence.dataset
    features, target, said = (
        str(dataset[f"query_{n}"].values[1]) for n in ("features", "target", "prediction")
    )
    words = f"Query 1 ({features}), target {target}; the model says {said}"
    assert query_in_words(run.influence, "1") == words
    page = run._report(dict(run.summary))
    assert f"target {target}, <span>model says {said}</span>" in page
    assert f'<span class="what">{dataset["train_features"].values[0]}</span>' in page
    assert "Fit worst: largest mean loss first" in page


def test_a_classifier_has_features_beside_its_labels():
    dataset = bif.attribute(classification(), TINY).influence.dataset
    assert "train_features" in dataset and "train_label" in dataset
    assert "train_target" not in dataset


@pytest.mark.parametrize(
    "items",
    [
        bif.Items((normal(12, 33, seed=1), normal(12, seed=2))),
        bif.Items((normal(12, 3, seed=1), normal(12, seed=2)), about={"text": ["a"] * 12}),
    ],
)
def test_items_of_many_numbers_or_with_texts_have_no_features(items):
    width = items.data[0].shape[1]
    problem = regression(width, train=items, queries=(normal(2, width, seed=3), normal(2, seed=4)))
    dataset = bif.attribute(problem, TINY).influence.dataset
    assert "train_features" not in dataset and "train_target" in dataset


def test_of_many_features_the_first_are_told_and_targets_of_any_loss():
    def huber(model, batch):
        return nn.functional.huber_loss(model(batch[0])[:, 0], batch[1], reduction="none")

    problem = regression(10, loss=huber)
    found = numbers_in_words(problem, TINY, torch.device("cpu"))
    x, y = problem.train.data
    row = ", ".join(f"{v:.3g}" for v in x[0, :8].tolist())
    assert found["train_features"][0] == f"{row}, …"
    assert found["train_target"].tolist() == [f"{v:.3g}" for v in y.tolist()]
    assert "query_prediction" not in found


def test_several_targets_of_an_item_are_not_told():
    with torch.random.fork_rng(devices=[]):
        model = filled(nn.Linear(4, 2))
    x, _ = labelled(6, seed=1)
    train, queries = (x, normal(6, 2, seed=2)), (x[:2], normal(2, 2, seed=3))
    problem = bif.Problem(model, bif.losses.squared_error, train=train, queries=queries)
    dataset = bif.attribute(problem, TINY).influence.dataset
    assert "query_target" not in dataset and "query_prediction" not in dataset
