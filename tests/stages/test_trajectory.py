"""Influence over checkpoints: each as of a run of its own, in one folder that goes on."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bif
from bif import store
from bif.cli import stages as stages_command
from bif.problem.series import stage_problem
from bif.stages import run as stages_run
from command_line import failed, write_problem
from small_problems import classification, labelled, network

SOLVED = bif.Settings(estimator="response", nbeta=20.0, gamma=4.0)
SAMPLED = bif.Settings(
    estimator="covariance", nbeta=20.0, gamma=8.0, chains=4, draws=20, controls=True
)


def path_of_training(steps: int = 30, every: int = 15) -> dict[int, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, found = network(), {}
    x, y = labelled(20, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(steps + 1):
        if step % every == 0:
            found[step] = {n: leaf.detach().clone() for n, leaf in model.state_dict().items()}
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return found


SERIES = bif.CheckpointSeries.from_weights(path_of_training())
FEW = bif.CheckpointSeries(list(SERIES)[:2])
STEPPED = replace(SAMPLED, controls=False, step_size=0.02, burn_in=2, thin=1, friction=2.0)


@pytest.mark.parametrize("settings", [SOLVED, SAMPLED], ids=["solved", "sampled"])
def test_each_checkpoint_is_as_of_a_run_of_its_own(settings, tmp_path: Path):
    found = bif.trajectory(classification(), SERIES, settings, out=tmp_path / "all")
    chosen = json.loads((tmp_path / "all" / store.STAGES).read_text())["chosen"]["settings"]
    assert found.steps.tolist() == [0, 15, 30]
    for k, stage in enumerate(SERIES):
        at = stage_problem(classification(), stage)
        alone = bif.attribute(at, bif.Settings.from_dict(chosen)).influence.dataset
        for name in ("influence", "standard_error", "train_center_loss", "query_center"):
            np.testing.assert_array_equal(found.dataset[name][k], alone[name])
    values, errors = found.of_pair("3", "1")
    np.testing.assert_array_equal(values, found.dataset["influence"][:, 0, 1, 3])
    assert (errors > 0).all()


def test_one_gamma_is_the_largest_that_any_checkpoint_needs():
    asked = bif.Settings(estimator="response", nbeta=20.0)
    alone = [
        bif.attribute(stage_problem(classification(), stage), asked).manifest["settings"]["gamma"]
        for stage in SERIES
    ]
    found = bif.trajectory(classification(), SERIES, asked)
    assert found.dataset.attrs["gamma"] == max(alone) > 1.01 * min(alone)
    assert any("the largest that any of 3" in note for note in found.notes)


def test_chains_of_all_checkpoints_have_the_same_steps():
    found = bif.trajectory(classification(), FEW, replace(SAMPLED, gamma=None, controls=False))
    assert any(note.startswith("step_size, burn_in, thin = ") for note in found.notes)
    assert found.dataset["rhat"].notnull().all()


def test_it_goes_on_to_the_last_bit_where_it_was_cut_short(tmp_path: Path, monkeypatch):
    whole = bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path / "whole")
    attribute, done = stages_run.attribute, []

    def cut_short(*given, **named):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return attribute(*given, **named)

    monkeypatch.setattr(stages_run, "attribute", cut_short)
    with pytest.raises(KeyboardInterrupt):
        bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path / "cut")
    done.clear()
    monkeypatch.setattr(stages_run, "common_settings", None)  # what was chosen is kept
    monkeypatch.setattr(stages_run, "attribute", attribute)
    again = bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path / "cut")
    for name in ("influence", "standard_error", "rhat"):
        np.testing.assert_array_equal(again.dataset[name], whole.dataset[name])
    loaded = bif.Trajectory.load(tmp_path / "cut")
    np.testing.assert_array_equal(loaded.dataset["influence"], whole.dataset["influence"])
    assert loaded.notes == whole.notes and loaded.events() == whole.events()


def test_nothing_given_solves_and_says_which_checkpoints_are_no_minimum(monkeypatch):
    monkeypatch.setattr(stages_run, "_FAR", 1.0)
    found = bif.trajectory(classification(), SERIES)
    assert found.dataset.attrs["estimator"] == "response"
    far = found.dataset["center_gradient"].values
    assert far[0] > 1 > far[-1]
    assert any(note.startswith("1 of 3 checkpoints are far") for note in found.notes)
    sampled = bif.trajectory(classification(), FEW, bif.Settings(chains=4, draws=10))
    assert "estimator" not in sampled.dataset.attrs


def test_a_gamma_below_what_a_checkpoint_needs_is_warned_of():
    few = replace(SAMPLED, gamma=1e-3, controls=False)
    found = bif.trajectory(classification(), FEW, few)
    assert any("step-0: " in note and "curves downwards" in note for note in found.notes)


def test_another_series_or_other_settings_are_refused_in_the_same_folder(tmp_path: Path):
    bif.trajectory(classification(), SERIES, SOLVED, out=tmp_path)
    with pytest.raises(store.FolderInUse, match="another weights.30"):
        bif.trajectory(classification(), FEW, SOLVED, out=tmp_path)
    with pytest.raises(store.FolderInUse, match="another settings.gamma"):
        bif.trajectory(classification(), SERIES, replace(SOLVED, gamma=5.0), out=tmp_path)


def test_groups_are_sums_with_errors_of_sums():
    names, asked = ["a" if i < 5 else "b" for i in range(20)], {"c": [0, 2], "d": [4]}
    items = bif.trajectory(classification(), SERIES, SAMPLED)
    groups = bif.trajectory(
        classification(), SERIES, SAMPLED, groups=names, query_groups=asked
    )  # fmt: skip
    for name, rtol in (("influence", 1e-4), ("control_nbeta_0", 1e-6)):
        expected = items.dataset[name][:, 0, [0, 2], :5].sum(axis=(1, 2))
        np.testing.assert_allclose(groups.dataset[name][:, 0, 0, 0], expected, rtol=rtol)
    assert groups.of_pair("a", "c")[0][0] == groups.dataset["influence"][0, 0, 0, 0]
    # On a sum of correlated losses: less than the sum of the errors, more than that of one.
    wide = items.dataset["standard_error"].values[:, 0, [0, 2]][..., :5].sum(axis=(1, 2))
    assert (groups.of_pair("a", "c")[1] < wide).all()
    groups.events(nulls=["nbeta_0"])
    solved = bif.trajectory(classification(), SERIES, SOLVED, query_groups=asked)
    assert solved.dataset["query_id"].values.tolist() == ["c", "d"]
    with pytest.raises(ValueError, match="query_groups names 2 items, but there are 5"):
        bif.trajectory(classification(), SERIES, SOLVED, query_groups=["c", "d"])


def test_an_event_is_one_that_a_second_gamma_has_too(tmp_path: Path):
    both = bif.trajectory(classification(), SERIES, SOLVED, second_gamma=3.0, out=tmp_path)
    first = bif.trajectory(classification(), SERIES, SOLVED)
    second = bif.trajectory(classification(), SERIES, replace(SOLVED, gamma=12.0))
    np.testing.assert_array_equal(both.dataset["influence"], first.dataset["influence"])
    np.testing.assert_array_equal(both.dataset["second_influence"], second.dataset["influence"])
    assert both.dataset.attrs["second_gamma"] == 12.0
    kept = [(e.kind, e.place) for e in both.events()]
    there = {(e.kind, e.place) for e in second.events()}
    assert kept and set(kept) <= there < {*there, *((e.kind, e.place) for e in first.events())}
    assert bif.Trajectory.load(tmp_path).events() == both.events()


def test_shares_of_the_checkpoints_are_joined(tmp_path: Path):
    def part(k: int) -> bif.Trajectory:
        return bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path, share=(k, 2))

    assert part(1).steps.tolist() == [15] and part(0).steps.tolist() == [0, 30]
    assert not (tmp_path / store.TRAJECTORY).exists()
    whole = bif.trajectory(classification(), SERIES, STEPPED)
    found = bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path)
    np.testing.assert_array_equal(found.dataset["influence"], whole.dataset["influence"])
    with pytest.raises(ValueError, match=r"n at most the 3 checkpoints, got \(0, 4\)"):
        bif.trajectory(classification(), SERIES, STEPPED, out=tmp_path, share=(0, 4))
    with pytest.raises(ValueError, match="needs out"):
        bif.trajectory(classification(), SERIES, STEPPED, share=(0, 2))


def test_nulls_are_those_of_the_controls():
    sampled = bif.trajectory(classification(), FEW, SAMPLED)
    sampled.events(nulls=["nbeta_0", "gradient_product", "shuffled"])
    with pytest.raises(ValueError, match=r"no null 'nbeta_0': run .*controls=True"):
        bif.trajectory(classification(), SERIES, SOLVED).events(nulls=["nbeta_0"])
    with pytest.raises(ValueError, match="'none' names 0 entries"):
        sampled.of_pair("none", "1")


def test_intervals_count_as_wide_as_they_are():
    solved = bif.trajectory(classification(), SERIES, SOLVED)
    narrow = bif.Trajectory(solved.dataset.assign_coords(
        error_quantile=("checkpoint", np.full(3, 1.96))
    ))  # fmt: skip
    assert len(narrow.events()) >= len(solved.events())
    one = narrow.events()[0]
    start = f"{one.kind}: {one.train} on {one.query} ({one.observable}): "
    assert one.observable in ("loss", "margin") and one.in_words().startswith(start)


def test_the_command_follows_a_folder_and_names_what_it_left_out(call, tmp_path: Path, monkeypatch):
    for step, weights in path_of_training().items():
        store.save_weights(tmp_path / "saved", step, weights)
    (tmp_path / "saved" / "step-99.pt").write_bytes(b"damaged")
    target = f"{write_problem(tmp_path)}:problem"
    asked = ["stages", target, "--checkpoints", tmp_path / "saved", "--out", tmp_path / "out"]
    code, out, said = call(*asked, "--nbeta", 20, "--gamma", 4)
    assert code == 0, said
    assert "3 checkpoints, " in out and "left out: step-99.pt" in out
    assert bif.Trajectory.load(tmp_path / "out").steps.tolist() == [0, 15, 30]
    asked[-1] = tmp_path / "shared"
    shared = []

    class Here:
        """Does in this process what others would do, as it would reach them."""

        def __init__(self, count: int, *_: object) -> None:
            shared.append(count)

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, work: Any) -> Future:
            done = Future()
            done.set_result(pickle.loads(pickle.dumps(work))())
            return done

    monkeypatch.setattr(stages_command, "ProcessPoolExecutor", Here)
    code, again, said = call(*asked, "--nbeta", 20, "--gamma", 4, "--jobs", 5)
    assert code == 0 and shared == [3] and out.splitlines()[-3] in again, said
    assert "--share must be K/N" in failed(call(*asked, "--share", "3"))
    assert "expected --jobs of 1 or more" in failed(call(*asked, "--jobs", "0"))
    assert "expected --checkpoints DIR" in failed(call("stages", target, "--out", tmp_path / "o"))
    example = call("stages", target, "--example", "hierarchy", "--out", tmp_path / "o")
    assert "trains its own network" in failed(example)
