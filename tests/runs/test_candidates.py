"""Candidates, scored beside the train items but not in the potential; problems with more groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bif
from bif.problem.identity import identity
from small_problems import (
    TINY,
    Pairs,
    assert_same_state,
    classification,
    dict_cross_entropy,
    global_randomness_untouched,
    labelled,
    network,
    state_of,
)

pytestmark = pytest.mark.usefixtures("unchecked")


class TestProblem:
    def test_they_stand_after_the_train_items_under_names_of_their_own(self):
        x, y = labelled(3, seed=4)
        problem = classification(
            train=bif.Items(labelled(20, seed=1), ids=[f"t{i}" for i in range(20)]),
            candidates={"b": labelled(2, seed=3), "a": bif.Items((x, y), ids=["x", "y", "z"])},
        )
        ids = problem.scored_ids.tolist()
        assert ids[:2] == ["t0", "t1"] and ids[20:] == ["b/0", "b/1", "a/x", "a/y", "a/z"]
        assert problem.scored_group_names.tolist() == ["train"] * 20 + ["b"] * 2 + ["a"] * 3
        assert list(problem.scored_groups) == ["train", "b", "a"]
        assert problem.num_train == 20 and problem.num_queries == 5

    def test_a_batch_alone_is_the_group_candidate_and_none_are_none(self):
        alone = classification(candidates=labelled(2, seed=3))
        assert alone.scored_ids.tolist()[20:] == ["candidate/0", "candidate/1"]
        without = classification()
        assert without.candidate_groups == {}
        assert without.scored_ids.tolist() == without.train.ids.tolist()

    def test_dict_batches_may_come_alone_or_in_groups(self):
        batch = dict(zip("xy", labelled(6, seed=2), strict=True))
        given: dict[str, Any] = {"loss": dict_cross_entropy, "train": batch, "queries": batch,
                                 "observables": None}  # fmt: skip
        assert list(classification(candidates=batch, **given).candidate_groups) == ["candidate"]
        grouped = classification(candidates={"one": batch, "two": bif.Items(batch)}, **given)
        assert list(grouped.candidate_groups) == ["one", "two"]

    def test_an_empty_mapping_of_candidates_is_refused(self):
        with pytest.raises(ValueError, match="candidates is an empty mapping: expected at least"):
            classification(candidates={})

    def test_candidates_of_another_structure_are_refused(self):
        x, y = labelled(2, seed=3)
        message = r"candidate group 'candidate' has another structure.*got batch\[0\] float32"
        with pytest.raises(ValueError, match=message):
            classification(candidates=(x.float(), y))

    def test_a_loss_that_is_not_finite_is_refused_at_construction(self):
        x, y = labelled(2, seed=3)
        x[1] = float("nan")
        message = r"the loss is NaN or infinite at w\* on group 'candidate', items \[\'1\'\]"
        with pytest.raises(ValueError, match=message):
            classification(candidates=(x, y))

    def test_broken_candidates_beyond_the_probed_items_are_refused_before_any_sampling(self):
        x, y = labelled(6, seed=3)
        x[5] = float("nan")
        with pytest.raises(ValueError, match=r"at w\* for 1 of 6 candidates .*'candidate': '5'"):
            bif.attribute(classification(candidates=(x, y)), TINY)


class TestExtended:
    def test_groups_are_added_after_those_that_are_there_and_the_original_stays(self):
        problem = classification(candidates={"old": labelled(2, seed=3)})
        more = problem.extended(
            queries={"new": bif.Items(labelled(2, seed=4), ids=["a", "b"])},
            candidates={"new": bif.Items(labelled(1, seed=5))},
        )
        assert more.query_ids.tolist() == [*map(str, range(5)), "new/a", "new/b"]
        assert more.scored_ids.tolist()[20:] == ["old/0", "old/1", "new/0"]
        assert list(problem.query_groups) == ["query"]
        assert list(problem.candidate_groups) == ["old"]
        for name in ("model", "loss", "train", "observables", "train_weights", "device"):
            assert getattr(more, name) is getattr(problem, name)

    def test_tensors_and_datasets_will_do(self):
        x, y = labelled(2, seed=4)
        more = classification().extended(queries={"t": (x, y)}, candidates={"d": Pairs(x, y)})
        assert more.query_ids.tolist()[5:] == ["t/0", "t/1"]
        assert more.scored_ids.tolist()[20:] == ["d/0", "d/1"]

    def test_it_is_the_problem_that_had_them_from_the_start(self):
        groups = {"query": labelled(5, seed=2), "new": labelled(2, seed=4)}
        more = classification().extended(queries={"new": labelled(2, seed=4)})
        asked = TINY.as_dict()
        assert identity(more, asked) == identity(classification(queries=groups), asked)
        assert identity(classification().extended(), asked) == identity(classification(), asked)

    @pytest.mark.parametrize(
        ("kind", "name"), [("queries", "query"), ("candidates", "old")]
    )  # fmt: skip
    def test_names_that_are_taken_are_refused(self, kind, name):
        problem = classification(candidates={"old": labelled(2, seed=3)})
        message = rf"{kind} named \['{name}'\] are there already: choose other names"
        with pytest.raises(ValueError, match=message):
            problem.extended(**{kind: {name: labelled(2, seed=4)}})

    @pytest.mark.parametrize("kind", ["queries", "candidates"])
    def test_further_groups_of_another_structure_are_refused(self, kind):
        x, y = labelled(2, seed=3)
        with pytest.raises(ValueError, match=r"group 'new' has another structure"):
            classification().extended(**{kind: {"new": bif.Items((x.float(), y))}})

    def test_extending_leaves_the_callers_model_as_it_is(self):
        model = network().train()
        problem, before = classification(model=model), state_of(model)
        with global_randomness_untouched():
            problem.extended(queries={"new": labelled(2, seed=4)})
        assert_same_state(model, before)


class TestScores:
    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls) -> tuple[bif.Run, bif.Run]:
        groups = {"new": bif.Items(labelled(7, seed=3), ids=list("abcdefg")),
                  "old": labelled(3, seed=4)}  # fmt: skip
        settings = replace(TINY, nbeta=8.0)
        return (
            bif.attribute(classification(), settings),
            bif.attribute(classification(candidates=groups), settings),
        )

    def test_candidates_do_not_enter_the_potential(self, runs):
        plain, more = runs
        assert more.traces.blocks[0].train.shape[2] == 20 + 7 + 3
        assert torch.equal(more.traces.blocks[0].train[..., :20], plain.traces.blocks[0].train)
        assert torch.equal(more.traces.blocks[0].query, plain.traces.blocks[0].query)

    def test_their_losses_are_those_of_train_items_with_the_same_data(self):
        train = labelled(20, seed=1)
        run = bif.attribute(classification(candidates=train), TINY)
        losses_ = run.traces.blocks[0].train
        torch.testing.assert_close(losses_[..., 20:], losses_[..., :20], rtol=0, atol=1e-12)
        scores = run.influence.dataset
        for name in ("influence", "derivative", "standard_error", "train_center_loss"):
            a, b = scores[name].values[..., :20], scores[name].values[..., 20:]
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-9)

    def test_the_derivative_is_scaled_by_the_number_of_train_items_alone(self, runs):
        for run in runs:
            scores = run.influence.dataset
            assert scores.attrs["num_train"] == 20
            # nbeta / n, with n = 20 whatever else is scored; float32.
            np.testing.assert_allclose(
                scores["derivative"], 8 / 20 * scores["influence"], rtol=1e-6, atol=0
            )
        a, b = (run.influence.dataset["derivative"].values[..., :20] for run in runs)
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=0)

    def test_sums_over_groups_keep_that_scale(self, runs):
        scores = runs[1].influence
        summed = scores.sum_over(scores.dataset["train_group"].values.tolist()).dataset
        np.testing.assert_allclose(
            summed["derivative"], 8 / 20 * summed["influence"], rtol=1e-6, atol=0
        )

    def test_candidates_have_names_of_their_own(self, runs):
        scores = runs[1].influence.dataset
        assert scores["train_id"].values[[19, 20, 26, 27]].tolist() == [
            "19",
            "new/a",
            "new/g",
            "old/0",
        ]
        assert scores["train_group"].values.tolist() == ["train"] * 20 + ["new"] * 7 + ["old"] * 3
        assert "train_group" not in runs[0].influence.dataset
        assert runs[1].manifest["num_train"] == 20
