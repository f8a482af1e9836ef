"""Suspects of a run: wrong labels, duplicates and items out of place, found where they were put."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.evaluate import auroc
from bif.kernel import suspects
from bif.results.suspects import Suspects
from small_problems import TINY, classification

ITEMS, CLASSES, FLIPPED, STRANGE = 120, 3, 6, 5
SETTINGS = bif.Settings(weight_decay=1e-3, chains=8, draws=80)


@pytest.fixture(scope="module")
def made() -> tuple[bif.Problem, dict[str, np.ndarray]]:
    """A trained classifier of clusters: some labels moved, some inputs far away, one item twice."""
    rng = torch.Generator().manual_seed(0)
    true = torch.arange(ITEMS) % CLASSES
    centres = 2.5 * torch.randn(CLASSES, 12, generator=rng)
    x = centres[true] + torch.randn(ITEMS, 12, generator=rng)
    places = torch.randperm(ITEMS, generator=rng).numpy()
    flipped, strange = places[:FLIPPED], places[FLIPPED : FLIPPED + STRANGE]
    one, other = places[-2:]
    y = true.clone()
    y[flipped] = (y[flipped] + 1) % CLASSES
    x[strange] = x[strange][:, torch.randperm(12, generator=rng)]
    x[other], y[other] = x[one], y[one]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, CLASSES))
    recipe = bif.evaluate.Recipe(steps=300, learning_rate=0.1, momentum=0.9, weight_decay=1e-3)
    network = bif.evaluate.train(network, bif.losses.cross_entropy, (x, y), recipe, seed=0)
    names = [f"row-{i}" for i in range(ITEMS)]
    problem = bif.Problem(
        network, bif.losses.cross_entropy,
        train=bif.Items((x, y), ids=names), queries=(x[:4], y[:4]),
    )  # fmt: skip
    known = {"flipped": flipped, "strange": strange, "pair": np.array([one, other]),
             "true": true.numpy()}  # fmt: skip
    return problem, known


@pytest.fixture(scope="module")
def sampled(made: Any) -> bif.Run:
    return bif.attribute(made[0], SETTINGS)


def of_all(count: int, places: np.ndarray) -> np.ndarray:
    found = np.zeros(count, dtype=bool)
    found[places] = True
    return found


def ids(suspects: Any) -> set[str]:
    return {s.train_id for s in suspects}


def test_each_kind_is_found_and_scores_are_larger_for_the_suspicious(made, sampled):
    known, found = made[1], sampled.suspects(FLIPPED)
    flipped, strange = (of_all(ITEMS, known[k]) for k in ("flipped", "strange"))
    # Ranked by chance .5 with a standard error of .12 at most; the measured ones are above .97.
    assert auroc(found.scores["loss"], flipped) > 0.9
    assert auroc(found.scores["isolation"].values[~flipped], strange[~flipped]) > 0.9
    assert len(ids(found.mislabelled) & {f"row-{i}" for i in known["flipped"]}) >= FLIPPED - 1
    pair = {f"row-{i}" for i in known["pair"]}
    (twins,) = found.duplicates
    assert twins.train_id in pair and any(twins.told.startswith(f"the same as {i}") for i in pair)
    assert twins.score == pytest.approx(1, abs=0.01)


def test_scores_are_those_of_the_kernel_and_the_class_that_it_moves_against_is_named(sampled):
    found, expected = sampled.suspects().scores, suspects(bif.loss_kernel(sampled))
    np.testing.assert_allclose(found["loss"], expected["mean_loss"])
    np.testing.assert_allclose(found["isolation"], expected["isolation"])
    assert found["likely_label"].values.tolist() == expected["moves_against"].values.tolist()
    first = sampled.suspects(1).mislabelled[0]
    place = found["train_id"].values.tolist().index(first.train_id)
    assert first.told == f"perhaps {found['likely_label'].values[place]}" != first.label


def test_no_item_is_listed_twice_and_k_is_the_length(sampled):
    found = sampled.suspects(3)
    listed = [s.train_id for s in (*found.mislabelled, *found.duplicates, *found.out_of_place)]
    assert len(listed) == len(set(listed)) == 3 + 1 + 3
    table = found.to_dataframe()
    assert table["train_id"].tolist() == listed
    assert set(table["why"]) == {"mislabelled", "duplicate", "out of place"}
    with pytest.raises(ValueError, match="k is 0"):
        sampled.suspects(0)


def test_a_solved_run_tells_wrong_labels_and_duplicates_and_says_what_it_cannot(made):
    problem, known = made
    found = bif.attribute(problem, bif.Settings(estimator="response")).suspects(FLIPPED)
    assert auroc(found.scores["loss"], of_all(ITEMS, known["flipped"])) > 0.9
    assert {found.duplicates[0].train_id} <= {f"row-{i}" for i in known["pair"]}
    assert len(found.duplicates) == 1 and found.out_of_place == ()
    assert "estimator='covariance'" in str(found) and "isolation" not in found.scores


def test_candidates_were_not_trained_on_and_are_no_suspects(made):
    problem = made[0].extended(candidates={"new": (100 * torch.ones(2, 12), torch.zeros(2).long())})
    run = bif.attribute(problem, replace(SETTINGS, draws=10))
    assert run.suspects().scores.sizes["train"] == ITEMS


def test_what_is_listed_is_escaped_in_a_notebook(made):
    problem = classification()
    problem.train.ids = np.asarray(["<b>", *map(str, range(1, 20))])
    found = bif.attribute(problem, TINY).suspects(20)
    assert isinstance(found, Suspects)
    assert "&lt;b&gt;" in found._repr_html_() and '<td style="text-align:left"><b>' not in (
        found._repr_html_()
    )


def test_a_page_lists_suspects_where_losses_are_finite_and_is_written_where_they_are_not():
    run = bif.attribute(classification(), TINY)
    assert "Train items to look at" in run._report(dict(run.summary))
    first, *others = run.traces.blocks
    losses = first.train.clone()
    losses[0, 0, 3] = torch.nan
    traces = replace(run.traces, blocks=(replace(first, train=losses), *others))
    broken = replace(run, traces=traces)
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken.suspects(3)
    page = broken._report(dict(run.summary))
    assert "Train items to look at" not in page and "What moves each query" in page
